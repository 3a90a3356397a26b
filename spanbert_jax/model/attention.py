"""Bidirectional self-attention over the valid pieces of each row, by interchangeable kernels.

Invariant: with every kernel and compute dtype, logits and softmax are float32 (SpanBERT-large's logits reach about
-3000, where bfloat16 steps by 16), and a padded key never changes the result at a valid position.

"xla" runs everywhere and is the reference. "triton" (NVIDIA GPUs) has dropout too; "cudnn" (NVIDIA GPUs) and "splash"
(TPUs) have none. These three never hold a [length, length] array.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spanbert_jax.config import DROPPING_KERNELS
from spanbert_jax.model.axes import on_each_device
from spanbert_jax.model.dropout import drop
from spanbert_jax.model.kernels.attention_splash import splash_attention
from spanbert_jax.model.kernels.attention_triton import triton_attention

_MASKED = -1e30  # finite, so that a row without a valid piece averages all of its values instead of giving NaN

Seeds = jax.Array | None  # uint32 [2, batch] of `dropout.site_seeds`; None for no dropout


def attention(
    qkv: jax.Array, lengths: jax.Array, seeds: Seeds = None, rate: float = 0.0, kernel: str = "xla", window: int = 0
) -> jax.Array:
    """softmax(query key^T / sqrt(head_dim)) value, with dropout on the probabilities: [batch, length, heads, head_dim].

    qkv: [batch, length, 3, heads, head_dim], queries, keys and values, of the result's dtype. lengths: int32 [batch];
    positions from a row's length on are padding, and the results there are finite and otherwise unspecified. rate: the
    share of probabilities that is dropped; without seeds none is. kernel: a result of `choice.choose_attention`. Where
    dropout is asked for, "xla" replaces a kernel that has none. "xla" replaces "auto" too. window: the most positions
    between a query and a key that the query sees, so that it sees 2 * window + 1 keys; 0: a query sees all keys. With
    a window "xla" replaces every kernel.
    """
    if not rate:
        seeds = None
    if window or kernel not in FLASH or (seeds is not None and kernel not in DROPPING_KERNELS):
        return _xla_attention(*_parts(qkv), lengths, seeds, rate, window)
    mapped = on_each_device(
        lambda *arrays: (FLASH[kernel](*arrays, rate),),
        (("batch", "length", "qkv", "heads", "head_dim"), ("batch",), ("heads",), (None, "batch")),
        (("batch", "length", "heads", "head_dim"),),
    )
    return mapped(qkv, lengths.astype(jnp.int32), jnp.arange(qkv.shape[3], dtype=jnp.int32), seeds)[0]


def _parts(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, [batch, length, heads, head_dim] each."""
    query, key, value = (jnp.squeeze(part, 2) for part in jax.lax.split(qkv, (1, 1, 1), axis=2))
    return query, key, value


def _cudnn_attention(qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: Seeds, rate: float) -> jax.Array:
    """cuDNN's flash attention; padded queries give 0. A row without a valid piece attends to its first one, because
    cuDNN does not define a softmax over nothing. cuDNN gets lengths, because JAX would turn a mask into a
    [length, length] bias."""
    lengths = jnp.maximum(lengths, 1)
    return jax.nn.dot_product_attention(
        *_parts(qkv), query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _splash_attention(qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: Seeds, rate: float) -> jax.Array:
    return splash_attention(*_parts(qkv), lengths)


# Each kernel takes qkv, lengths, the number of each head in the whole model, seeds and rate.
FLASH: dict[str, Callable[..., jax.Array]] = {
    "splash": _splash_attention,
    "triton": triton_attention,
    "cudnn": _cudnn_attention,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _xla_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float, window: int
) -> jax.Array:
    return _forward(query, key, value, lengths, seeds, rate, window)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float, window: int
) -> tuple[jax.Array, tuple]:
    """The result, and the arrays that the backward pass needs. The backward pass computes the [length, length] arrays
    again."""
    logits = _logits(query, key, lengths, window)
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [batch, heads, query, 1]
    probabilities = jnp.exp(logits - normaliser).astype(query.dtype)  # [batch, heads, query, key]
    kept = probabilities if seeds is None else drop(probabilities, seeds, rate)
    result = jnp.einsum("bhqk,bkhd->bqhd", kept, value)
    return result, (query, key, value, lengths, seeds, normaliser, result)


def _logits(query: jax.Array, key: jax.Array, lengths: jax.Array, window: int) -> jax.Array:
    """float32 [batch, heads, query, key], -1e30 where the key is padding or outside of the query's window."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    keys = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3)
    seen = keys < lengths[:, None, None, None]
    if window:
        seen &= jnp.abs(keys - jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)) <= window
    return jnp.where(seen, logits * query.shape[-1] ** -0.5, _MASKED)


def _backward(rate: float, window: int, saved: tuple, cotangent: jax.Array) -> tuple:
    query, key, value, lengths, seeds, normaliser, result = saved
    # Without the barrier XLA recognises the recomputation and keeps the forward pass's logits and masks of unrolled
    # layers.
    query, key, seeds = jax.lax.optimization_barrier((query, key, seeds))
    probabilities = jnp.exp(_logits(query, key, lengths, window) - normaliser).astype(query.dtype)
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
