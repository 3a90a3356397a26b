"""Sliding-window attention that computes the scores of a band of keys around each query, by plain array operations.

Invariant: the results are exactly those of `dense_attention` with the same window, up to rounding, with the same
dropped probabilities bit for bit. A row is cut into chunks of queries. The queries of a chunk see the keys of their own
chunk and `window` keys on each side, so time and memory grow with the length and not with its square.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.model.dropout import counter, drop_others, keep
from spanbert_jax.model.kernels.attention_dense import MASKED, Seeds

_SMALLEST_CHUNK = 32  # smaller chunks make smaller matrix products, and were slower on a CPU


class Band(NamedTuple):
    """How rows of `length` positions are cut for a window.

    The arrays of all chunks are [batch, heads, chunks, positions of a chunk, ...]: the axes over which matrix products
    are repeated come first, as the products want them.
    """

    length: int
    window: int

    @property
    def chunk(self) -> int:
        """Positions of a chunk; not fewer than the window, so that no query sees beyond the neighbouring chunks."""
        return max(self.window, _SMALLEST_CHUNK)

    @property
    def chunks(self) -> int:
        """Chunks of a row; the last one may be padded."""
        return -(-self.length // self.chunk)

    @property
    def keys(self) -> int:
        """Keys that the queries of a chunk are multiplied with."""
        return self.chunk + 2 * self.window

    def is_cheaper(self) -> bool:
        """Whether the banded form is faster than the dense one, forward and backward.

        On two cores of an AMD EPYC the dense form was as fast with as many scores (windows 64 and 128), and the banded
        one was 1.02 to 1.25 times as fast with three quarters of them, for windows of 8 to 128 positions.
        """
        return 4 * self.chunks * self.chunk * self.keys <= 3 * self.length**2

    def cut(self, x: jax.Array) -> jax.Array:
        """[batch, heads, chunks, chunk, n] of `x` [batch, length, heads, n], padded with 0."""
        x = jnp.pad(x, ((0, 0), (0, self.chunks * self.chunk - self.length), (0, 0), (0, 0)))
        batch, _, heads, width = x.shape
        return x.swapaxes(1, 2).reshape(batch, heads, self.chunks, self.chunk, width)

    def join(self, chunks: jax.Array) -> jax.Array:
        """The inverse of `cut`: [batch, length, heads, n]."""
        batch, heads, _, _, width = chunks.shape
        return chunks.reshape(batch, heads, -1, width).swapaxes(1, 2)[:, : self.length]

    def with_sides(self, chunks: jax.Array) -> jax.Array:
        """[batch, heads, chunks, keys, n]: each of `chunks` between the end of the one before and the start of the one
        after, or zeros where there is none."""
        before = _shifted(chunks[:, :, :-1, self.chunk - self.window :], 1, 0)
        after = _shifted(chunks[:, :, 1:, : self.window], -1, 0)
        return jnp.concatenate([before, chunks, after], axis=3)

    def without_sides(self, wide: jax.Array) -> jax.Array:
        """The transpose of `with_sides`: [batch, heads, chunks, chunk, n], each chunk with its copies in the sides of
        its neighbours added."""
        before, chunks, after = jnp.split(wide, (self.window, self.window + self.chunk), axis=3)
        rest = self.chunk - self.window
        return chunks + _shifted(before[:, :, 1:], -1, rest) + _shifted(after[:, :, :-1], 1, -rest)

    def positions(self) -> tuple[jax.Array, jax.Array]:
        """int32 [chunks, chunk, 1] and [chunks, 1, keys]: the positions of queries and of keys in their row. Keys
        before the row have negative positions."""
        first = self.chunk * jnp.arange(self.chunks)[:, None, None]
        return first + jnp.arange(self.chunk)[:, None], first - self.window + jnp.arange(self.keys)

    def keep_mask(self, seeds: jax.Array, heads: int, rate: float) -> jax.Array:
        """bool [batch, heads, chunks, chunk, keys]: the elements of `dropout.keep_mask` of the dense probabilities
        [batch, heads, length, length]. Elements whose query or key lies outside of the row are arbitrary."""
        first, second = (seed[:, None, None, None, None] for seed in seeds)
        queries, keys = (at.astype(jnp.uint32) for at in self.positions())
        of_head = jnp.arange(heads, dtype=jnp.uint32)[:, None, None, None] * np.uint32(self.length**2 % 2**32)
        counters = counter(first) + counter(of_head) + counter(queries * np.uint32(self.length)) + counter(keys)
        return keep(counters, second, rate)


def _shifted(chunks: jax.Array, by: int, rest: int) -> jax.Array:
    """`chunks`, moved to the place of the next chunk (`by` is 1) or of the one before (-1). The first or last place is
    filled with zeros. rest: zeros before the positions of each chunk; -rest zeros after them where negative."""
    along = (by, 0) if by > 0 else (0, -by)
    within = (rest, 0) if rest > 0 else (0, -rest)
    return jnp.pad(chunks, ((0, 0), (0, 0), along, within, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def banded_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float, window: int
) -> jax.Array:
    """`dense_attention` with the same arguments; window: at least 1. Rows may be shorter than a chunk."""
    return _forward(query, key, value, lengths, seeds, rate, window)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float, window: int
) -> tuple[jax.Array, tuple]:
    """The result, and the arrays that the backward pass needs."""
    band = Band(query.shape[1], window)
    logits = _logits(band, band.cut(query), band.with_sides(band.cut(key)), lengths)
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [batch, heads, chunks, chunk, 1]
    probabilities = jnp.exp(logits - normaliser).astype(query.dtype)  # [batch, heads, chunks, chunk, keys]
    kept = _dropped(band, probabilities, seeds, rate)
    result = band.join(jnp.einsum("bhnqk,bhnkd->bhnqd", kept, band.with_sides(band.cut(value))))
    return result, (query, key, value, lengths, seeds, normaliser, result)


def _logits(band: Band, query: jax.Array, key: jax.Array, lengths: jax.Array) -> jax.Array:
    """float32 [batch, heads, chunks, chunk, keys], -1e30 where the key is padding or outside of the query's window."""
    logits = jnp.einsum("bhnqd,bhnkd->bhnqk", query, key, preferred_element_type=jnp.float32)
    queries, keys = band.positions()
    near = (keys >= 0) & (jnp.abs(keys - queries) <= band.window)
    seen = near & (keys < lengths[:, None, None, None, None])
    return jnp.where(seen, logits * query.shape[-1] ** -0.5, MASKED)


def _dropped(band: Band, x: jax.Array, seeds: Seeds, rate: float) -> jax.Array:
    return x if seeds is None else drop_others(x, band.keep_mask(seeds, x.shape[1], rate), rate)


def _backward(rate: float, window: int, saved: tuple, cotangent: jax.Array) -> tuple:
    query, key, value, lengths, seeds, normaliser, result = saved
    # Without the barrier XLA recognises the recomputation and keeps the forward pass's logits and masks of unrolled
    # layers.
    query, key, seeds = jax.lax.optimization_barrier((query, key, seeds))
    band, dtype = Band(query.shape[1], window), query.dtype
    queries, keys, coming = band.cut(query), band.with_sides(band.cut(key)), band.cut(cotangent)
    probabilities = jnp.exp(_logits(band, queries, keys, lengths) - normaliser).astype(dtype)
    kept = _dropped(band, probabilities, seeds, rate)
    d_value = jnp.einsum("bhnqk,bhnqd->bhnkd", kept, coming, preferred_element_type=jnp.float32)
    values = band.with_sides(band.cut(value))
    d_kept = jnp.einsum("bhnqd,bhnkd->bhnqk", coming, values, preferred_element_type=jnp.float32)
    d_probabilities = _dropped(band, d_kept, seeds, rate)
    # The softmax's gradient needs sum_k(d_probabilities * probabilities), which equals sum_d(cotangent * result).
    mean = jnp.sum(cotangent.astype(jnp.float32) * result.astype(jnp.float32), axis=-1, keepdims=True)
    d_logits = probabilities.astype(jnp.float32) * (d_probabilities - band.cut(mean)) * query.shape[-1] ** -0.5
    d_logits = d_logits.astype(dtype)
    d_query = jnp.einsum("bhnqk,bhnkd->bhnqd", d_logits, keys)
    d_key = jnp.einsum("bhnqk,bhnqd->bhnkd", d_logits, queries, preferred_element_type=jnp.float32)
    # A key's gradient comes from up to three chunks of queries; the parts are added in float32.
    d_key, d_value = (band.join(band.without_sides(wide)).astype(dtype) for wide in (d_key, d_value))
    return band.join(d_query), d_key, d_value, None, None


banded_attention.defvjp(_forward, _backward)
