"""Flash attention on a TPU: JAX's splash kernel, forward and backward, without a [length, length] array in memory.

Invariant: no valid query sees padding, because padding is a segment of its own. Queries of padding see padding alone,
so every row of the softmax has something to average: with a window too, a query sees itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from spanbert_jax.model.kernels.interpreter import is_interpreted

_LANES = 128  # of a TPU's vector registers; the sizes of blocks are multiples of this number
_LARGEST_BLOCK = 512  # queries, or keys, of a block: a whole row of BERT's length
_MOST_PARTS = 4  # of the gradients of queries with a window
SCOPE = "windowed_splash"  # in the names of the operations of attention with a window


def splash_attention(query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, window: int) -> jax.Array:
    """`attention` without dropout, of rows that are all on this device: query, key, value [batch, length, heads,
    head_dim] and lengths int32 [batch] -> [batch, length, heads, head_dim]. window: as that of `attention`.

    Rows are padded to a multiple of 128 pieces. This doubles rows of 64 pieces, and even there a v5e's memory traffic
    is 13% lower than with the "xla" kernel.
    """
    length, heads, head_dim = query.shape[1:]
    padded = -(-length // _LANES) * _LANES

    def by_head(x: jax.Array) -> jax.Array:
        return jnp.pad(x.swapaxes(1, 2), [(0, 0), (0, 0), (0, padded - length), (0, 0)])

    is_padding = (jnp.arange(padded) >= lengths[:, None]).astype(jnp.int32)  # [batch, padded]
    shape = (padded, padded)
    mask = masks.LocalMask(shape, window_size=(window, window), offset=0) if window else masks.FullMask(shape)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=_block_sizes(padded, window),
        head_shards=1,
        q_seq_shards=1,
        interpret=is_interpreted(),
    )
    scaled = query * head_dim**-0.5  # the kernel does not scale; exact where head_dim is a power of 4, such as 64
    segments = splash.SegmentIds(is_padding, is_padding)
    arrays = (by_head(scaled), by_head(key), by_head(value))  # [batch, heads, padded, head_dim] each, as the result
    with jax.named_scope(SCOPE if window else "splash"):
        result = jax.vmap(kernel)(*arrays, segments)
    return result[:, :, :length].swapaxes(1, 2)


def computed_scores(length: int, window: int) -> int:
    """How many scores a kernel computes for a head of a row: those of all blocks that are not skipped. window: 0 for
    all keys."""
    padded = -(-length // _LANES) * _LANES
    block = _block_sizes(padded, window).block_q
    apart = np.abs(np.subtract.outer(*2 * [np.arange(padded // block)]))  # of a block of queries and one of keys
    visited = (apart == 0) | ((apart - 1) * block < (window or padded))
    return int(visited.sum()) * block**2


def _block_sizes(length: int, window: int) -> splash.BlockSizes:
    """The largest equal blocks, and one kernel for all three gradients, or two for long rows with a window.

    With a single block of keys, as at 512 pieces, the one kernel has no partial gradients of the queries to add up.
    With several it writes a part for each block of keys. With a window most parts are 0, and two kernels skip them.
    Compiled for a v5e, 2 rows of 8,192 pieces and 12 heads with a window of 64: attention and its gradients move
    957 MB with two kernels and 1,527 MB with one, and need 270 and 896 MiB. With 16 rows of 1,024 pieces they move
    964 and 834 MB.

    Blocks without a score in the window are skipped: of 8,192 pieces 46 of 256 blocks are left, of 1,024 all 4. Blocks
    of 256 would leave 94 of 1,024, half the scores, and 10 of 16, and move 1% less. They were not taken, because each
    block has fixed costs, which no compiler tells.

    Positions lie along the lanes (SEQ_MINOR). With head_dim along the lanes, a head of 64 numbers would be padded to
    128, in memory too: compiled for a v5e, SEQ_MINOR saves 15% of the attention's traffic and 29% of the memory.
    """
    block = max(size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % size == 0)
    separate = block if window and length > _MOST_PARTS * block else None
    return splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=separate,
        block_kv_dq=separate,
        use_fused_bwd_kernel=separate is None,
        q_layout=splash.QKVLayout.SEQ_MINOR,
        k_layout=splash.QKVLayout.SEQ_MINOR,
        v_layout=splash.QKVLayout.SEQ_MINOR,
    )
