"""Bidirectional self-attention over the valid pieces of each row, by interchangeable kernels.

Invariant: with every kernel and compute dtype, logits and softmax are float32 (SpanBERT-large's logits reach about
-3000, where bfloat16 steps by 16), and a padded key never changes the result at a valid position.

"xla" runs everywhere. Its dense form (kernels/attention_dense.py) is the reference; with a sliding window, rows of some
length take its banded form (kernels/attention_banded.py). "triton" (NVIDIA GPUs) has dropout too; "cudnn" (NVIDIA GPUs)
and "splash" (TPUs) have none. These three never hold a [length, length] array, and "splash" alone of them has windows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spanbert_jax.config import DROPPING_KERNELS, WINDOW_KERNELS
from spanbert_jax.model.axes import on_each_device
from spanbert_jax.model.kernels.attention_banded import Band, banded_attention
from spanbert_jax.model.kernels.attention_dense import Seeds, dense_attention
from spanbert_jax.model.kernels.attention_splash import splash_attention
from spanbert_jax.model.kernels.attention_triton import triton_attention


def attention(
    qkv: jax.Array, lengths: jax.Array, seeds: Seeds = None, rate: float = 0.0, kernel: str = "xla", window: int = 0
) -> jax.Array:
    """softmax(query key^T / sqrt(head_dim)) value, with dropout on the probabilities: [batch, length, heads, head_dim].

    qkv: [batch, length, 3, heads, head_dim], queries, keys and values, of the result's dtype. lengths: int32 [batch];
    positions from a row's length on are padding, and the results there are finite and otherwise unspecified. rate: the
    share of probabilities that is dropped; without seeds none is. kernel: a result of `choice.choose_attention`. Where
    dropout or a window is asked for, "xla" replaces a kernel that has none. "xla" replaces "auto" too. window: the most
    positions between a query and a key that the query sees, so that a query sees 2 * window + 1 keys; 0: all keys.
    """
    length = qkv.shape[1]
    is_known = isinstance(length, int)  # not in an export for rows of any length
    if window and is_known and window >= length - 1:
        window = 0  # every query sees every key
    if not rate:
        seeds = None
    able = (seeds is None or kernel in DROPPING_KERNELS) and (not window or kernel in WINDOW_KERNELS)
    if kernel not in FLASH or not able:
        banded = window and is_known and Band(length, window).is_cheaper()
        return (banded_attention if banded else dense_attention)(*_parts(qkv), lengths, seeds, rate, window)
    mapped = on_each_device(
        lambda *arrays: (FLASH[kernel](*arrays, rate, window),),
        (("batch", "length", "qkv", "heads", "head_dim"), ("batch",), ("heads",), (None, "batch")),
        (("batch", "length", "heads", "head_dim"),),
    )
    return mapped(qkv, lengths.astype(jnp.int32), jnp.arange(qkv.shape[3], dtype=jnp.int32), seeds)[0]


def _parts(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, [batch, length, heads, head_dim] each."""
    query, key, value = (jnp.squeeze(part, 2) for part in jax.lax.split(qkv, (1, 1, 1), axis=2))
    return query, key, value


def _cudnn_attention(
    qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: Seeds, rate: float, window: int
) -> jax.Array:
    """cuDNN's flash attention; padded queries give 0. A row without a valid piece attends to its first one, because
    cuDNN does not define a softmax over nothing. cuDNN gets lengths, because JAX would turn a mask into a
    [length, length] bias."""
    lengths = jnp.maximum(lengths, 1)
    return jax.nn.dot_product_attention(
        *_parts(qkv), query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _splash_attention(
    qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: Seeds, rate: float, window: int
) -> jax.Array:
    return splash_attention(*_parts(qkv), lengths, window)


def _triton_attention(
    qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: Seeds, rate: float, window: int
) -> jax.Array:
    return triton_attention(qkv, lengths, heads, seeds, rate)


# Each kernel takes qkv, lengths, the number of each head in the whole model, seeds, rate and the window, which is 0 for
# kernels without windows.
FLASH: dict[str, Callable[..., jax.Array]] = {
    "splash": _splash_attention,
    "triton": _triton_attention,
    "cudnn": _cudnn_attention,
}
