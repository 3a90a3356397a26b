"""Bidirectional self-attention over the valid pieces of each row, by interchangeable kernels.

Invariant: whatever the kernel and the compute dtype, logits and softmax are float32 (SpanBERT-large's logits reach
about -3000, where bfloat16 steps by 16), and a padded key has no part in what a valid position becomes.

"xla" runs everywhere, is the reference, and the only one that can drop probabilities out. "cudnn" (NVIDIA GPUs) and
"splash" (TPUs) never hold a [length, length] array.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spanbert_jax.errors import UserError
from spanbert_jax.model.attention_splash import splash_attention
from spanbert_jax.model.axes import dividing, free_axes
from spanbert_jax.model.dropout import drop

_MASKED = -1e30  # finite, so that a row without a valid piece averages all of its values instead of giving NaN

# seeds of the dropout, or None
Seeds = jax.Array | None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array,
    seeds: Seeds = None,
    rate: float = 0.0,
    kernel: str = "xla",
) -> jax.Array:
    """softmax(query key^T / sqrt(head_dim)) value, with dropout on the probabilities.

    query, key, value: [batch, length, heads, head_dim] of one dtype, which the result has too. lengths: int32 [batch];
    keys from there on are padding, and results from there on are finite and otherwise the kernel's own business.
    seeds: `dropout.site_seeds`, or None for no dropout. kernel: what `choose_kernel` gave; "xla" runs in the place of
    one that cannot drop out, and of "auto" where nobody resolved it.
    """
    if kernel not in _FLASH or (seeds is not None and rate):
        return _xla_attention(query, key, value, lengths, seeds if rate else None, rate)
    return _on_each_device(_FLASH[kernel], query, key, value, lengths.astype(jnp.int32))


def choose_kernel(name: str, platform: str, dtype: jnp.dtype, head_dim: int) -> str:
    """`config.compute.attention`, with "auto" resolved to the fastest kernel there is for `platform`
    (`jax.Device.platform`). Raises UserError where a kernel that was named cannot run."""
    if name == "auto":
        return next((kernel for kernel in _FLASH if not _obstacle(kernel, platform, dtype, head_dim)), "xla")
    if name != "xla" and (obstacle := _obstacle(name, platform, dtype, head_dim)):
        raise UserError(f"config.compute.attention is {name!r}, which needs {obstacle}; use 'auto' or 'xla'")
    return name


def _obstacle(kernel: str, platform: str, dtype: jnp.dtype, head_dim: int) -> str:
    """What `kernel` needs and does not get, or ""."""
    if dtype != jnp.bfloat16:
        return f"config.compute.dtype 'bfloat16', not {dtype.name!r}"
    if kernel == "splash":
        return "" if platform == "tpu" else f"a TPU, not {platform!r}"
    if platform not in ("gpu", "cuda"):
        return f"an NVIDIA GPU, not {platform!r}"
    if head_dim % 8 or head_dim > 128:
        return f"a multiple of 8 up to 128 as config.model.embed / config.model.heads, not {head_dim}"
    return "" if _has_flash_gpu() else "an NVIDIA GPU of the Ampere generation or newer"


def _has_flash_gpu() -> bool:
    """Whether this process's GPU is NVIDIA's and new enough; True without one: the program is for another machine."""
    try:
        capability = str(getattr(jax.local_devices(backend="gpu")[0], "compute_capability", ""))
    except RuntimeError:
        return True
    return capability[:1].isdigit() and float(capability) >= 8  # AMD's are "gfx90a" and the like


def _on_each_device(
    kernel: Callable[..., jax.Array], query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array
) -> jax.Array:
    """The kernel on each device's rows and heads: the compiler cannot divide it by itself.

    Axes that an enclosing shard_map has divided already are left alone; so is a dimension that does not divide evenly.
    """
    free = free_axes()
    if not free:
        return kernel(query, key, value, lengths)
    sizes = jax.sharding.get_abstract_mesh().shape

    def divided(name: str, size: int) -> str | tuple[str, ...] | None:
        over = dividing(name)
        parts = math.prod(sizes[axis] for axis in ((over,) if isinstance(over, str) else over or ()))
        return over if size % parts == 0 else None

    rows, heads = divided("batch", query.shape[0]), divided("heads", query.shape[2])
    by_head = PartitionSpec(rows, None, heads)
    mapped = jax.shard_map(
        kernel,
        in_specs=(by_head, by_head, by_head, PartitionSpec(rows)),
        out_specs=by_head,
        axis_names=free,
        check_vma=False,  # the kernels do not say over which axes their results vary
    )
    return mapped(query, key, value, lengths)


def _cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array) -> jax.Array:
    """cuDNN's flash attention; padded queries give 0. A row without a valid piece attends to its first one: a softmax
    over nothing would be left to cuDNN. Lengths and no mask: a mask becomes a [length, length] bias."""
    lengths = jnp.maximum(lengths, 1)
    return jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


_FLASH: dict[str, Callable[..., jax.Array]] = {"splash": splash_attention, "cudnn": _cudnn_attention}


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _xla_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float
) -> jax.Array:
    return _forward(query, key, value, lengths, seeds, rate)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float
) -> tuple[jax.Array, tuple]:
    """The result and what the backward pass needs: none of the [length, length] arrays, which it computes again."""
    logits = _logits(query, key, lengths)
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [batch, heads, query, 1]
    probabilities = jnp.exp(logits - normaliser).astype(query.dtype)  # [batch, heads, query, key]
    kept = probabilities if seeds is None else drop(probabilities, seeds, rate)
    result = jnp.einsum("bhqk,bkhd->bqhd", kept, value)
    return result, (query, key, value, lengths, seeds, normaliser, result)


def _logits(query: jax.Array, key: jax.Array, lengths: jax.Array) -> jax.Array:
    """float32 [batch, heads, query, key], -1e30 where the key is padding."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    valid = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3) < lengths[:, None, None, None]
    return jnp.where(valid, logits * query.shape[-1] ** -0.5, _MASKED)


def _backward(rate: float, saved: tuple, cotangent: jax.Array) -> tuple:
    query, key, value, lengths, seeds, normaliser, result = saved
    query, key = jax.lax.optimization_barrier((query, key))  # or unrolled layers keep the forward pass's logits
    probabilities = jnp.exp(_logits(query, key, lengths) - normaliser).astype(query.dtype)
    kept = probabilities if seeds is None else drop(probabilities, seeds, rate)
    d_value = jnp.einsum("bhqk,bqhd->bkhd", kept, cotangent)
    d_kept = jnp.einsum("bqhd,bkhd->bhqk", cotangent, value, preferred_element_type=jnp.float32)
    d_probabilities = d_kept if seeds is None else drop(d_kept, seeds, rate)
    # The softmax's gradient needs sum_k(d_probabilities * probabilities), which equals sum_d(cotangent * result).
    mean = jnp.sum(cotangent.astype(jnp.float32) * result.astype(jnp.float32), axis=-1)  # [batch, query, heads]
    mean = jnp.swapaxes(mean, 1, 2)[..., None]
    d_logits = probabilities.astype(jnp.float32) * (d_probabilities - mean) * query.shape[-1] ** -0.5
    d_logits = d_logits.astype(query.dtype)
    d_query = jnp.einsum("bhqk,bkhd->bqhd", d_logits, key)
    d_key = jnp.einsum("bhqk,bqhd->bkhd", d_logits, query)
    return d_query, d_key, d_value, None, None


_xla_attention.defvjp(_forward, _backward)
