"""Attention whose heads are mixed before and after the softmax, by weights that depend on the query and the key.

Invariant: with `mix_out` and `diagonal` 0, where they begin, scores and probabilities are bit for bit those of heads
that are not mixed. Scores, probabilities and their mixing are float32. Facts: dynamically composable multi-head
attention, Xiao et al. 2024 (arXiv:2405.08553), and the authors' dc_attentions.py. The mixing has a part of rank
`model.attention_composition` and a diagonal. The static matrix of their paper is off in their models, and absent here.

The result needs the scores of all heads at once, which the other kernels never hold. Queries are taken in chunks, and
the backward pass computes a chunk again, so no array has the size [batch, heads, length, length].
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ModelConfig
from spanbert_jax.model.axes import ParameterAxes
from spanbert_jax.model.dropout import counter, drop_others, keep
from spanbert_jax.model.kernels.attention_dense import MASKED, Seeds

AXES: ParameterAxes = (
    (r"encoder/attention/heads/composition/hidden", (None, "embed", None, None)),
    (r"encoder/attention/heads/composition/mix_(in|out)", (None, None, None, None, "heads")),
    (r"encoder/attention/heads/composition/diagonal", (None, "embed", None, "heads")),
)
MATRICES = ((r"encoder/attention/heads/composition/hidden", "-i-o"),)
ZERO = r"encoder/attention/heads/composition/(mix_out|diagonal)"

CHUNK = 128  # queries whose scores are held at once, as in the authors' code
_HIDDEN = 4  # width of the hidden layer, in heads
_EPS = 1e-6  # of the normalisation of mix_in's weights


class Mixing(NamedTuple):
    """How a query or a key mixes the heads, before and after the softmax: float32, `place` counts these two.

    reads: [batch, length, place, rank, heads]; writes: the same; diagonal: [batch, length, place, heads].
    """

    reads: jax.Array
    writes: jax.Array
    diagonal: jax.Array


class AttentionComposition(nn.Module):
    """Attention over all heads together; the arguments are those of `attention`, with the layer's input."""

    model: ModelConfig
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, qkv: jax.Array, lengths: jax.Array, seeds: Seeds) -> jax.Array:
        """[batch, length, heads, head_dim], from `x` [batch, length, embed] and `qkv` [batch, length, 3, heads,
        head_dim]."""
        of_queries, of_keys = self._mixings(x)
        return composed_attention(qkv, of_queries, of_keys, lengths, seeds, self.model.attention_dropout, self.window)

    def _mixings(self, x: jax.Array) -> tuple[Mixing, Mixing]:
        """The mixing by queries and that by keys. The axis "kind" has both, each before and after the softmax."""
        embed, heads, rank = self.model.embed, self.model.heads, self.model.attention_composition
        width = _HIDDEN * heads
        normal, zeros = nn.initializers.normal, nn.initializers.zeros
        hidden = self.param("hidden", normal(math.sqrt(2 / (embed + width))), (embed, 4, width))
        read = normal(0.01 * math.sqrt(1 / width) * 2 / (heads + rank))
        mix_in = self.param("mix_in", read, (4, width, rank, heads))
        mix_out = self.param("mix_out", zeros, (4, width, rank, heads))
        diagonal = self.param("diagonal", zeros, (embed, 4, heads))
        wide = x.astype(jnp.float32)
        inner = nn.gelu(jnp.einsum("ble,ekw->blkw", wide, hidden), approximate=False)
        reads = jnp.einsum("blkw,kwrh->blkrh", inner, mix_in)
        reads *= jax.lax.rsqrt(jnp.mean(jnp.square(reads), axis=-1, keepdims=True) + _EPS)
        writes = jnp.einsum("blkw,kwrh->blkrh", inner, mix_out)
        shares = jnp.tanh(jnp.einsum("ble,ekh->blkh", wide, diagonal))
        parts = (reads, writes, shares)
        return Mixing(*(part[:, :, :2] for part in parts)), Mixing(*(part[:, :, 2:] for part in parts))


def composed_attention(
    qkv: jax.Array,
    of_queries: Mixing,
    of_keys: Mixing,
    lengths: jax.Array,
    seeds: Seeds,
    rate: float,
    window: int,
) -> jax.Array:
    """Attention whose scores and probabilities are mixed over the heads: [batch, length, heads, head_dim].

    qkv, lengths, seeds, rate, window: as for `attention`. The dropped probabilities are those of `dense_attention`.
    """
    length = qkv.shape[1]
    query, key, value = (qkv[:, :, part] for part in range(3))
    if not rate:
        seeds = None

    def chunk(first: jax.Array, query: jax.Array, of_queries: Mixing) -> jax.Array:
        """The result for the queries from `first` on; `query` and `of_queries` have these queries alone."""
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = mixed(scores * query.shape[-1] ** -0.5, of_queries, of_keys, 0)
        keys, queries = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (3, 2))
        seen = keys < lengths[:, None, None, None]
        if window:
            seen &= jnp.abs(keys - queries - first) <= window
        scores = jnp.where(seen, scores, MASKED)
        # As the dense kernel computes them; `softmax` rounds differently.
        probabilities = jnp.exp(scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True))
        probabilities = mixed(probabilities, of_queries, of_keys, 1).astype(value.dtype)
        if seeds is not None:
            probabilities = drop_others(probabilities, _kept(seeds, probabilities.shape, first, length, rate), rate)
        return jnp.einsum("bhqk,bkhd->bqhd", probabilities, value)

    # An export for rows of any length does not know the number of chunks.
    chunks = -(-length // CHUNK) if isinstance(length, int) else 1
    if chunks == 1:
        return jax.checkpoint(chunk)(jnp.int32(0), query, of_queries)
    padding = chunks * CHUNK - length

    def cut(x: jax.Array) -> jax.Array:
        """[chunks, batch, CHUNK, ...]"""
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, CHUNK, *x.shape[2:]), 1, 0)

    firsts = jnp.arange(chunks, dtype=jnp.int32) * CHUNK
    results = jax.lax.map(
        lambda args: jax.checkpoint(chunk)(*args), (firsts, cut(query), jax.tree.map(cut, of_queries))
    )
    return jnp.moveaxis(results, 0, 1).reshape(qkv.shape[0], -1, *qkv.shape[3:])[:, :length]


def mixed(x: jax.Array, of_queries: Mixing, of_keys: Mixing, place: int) -> jax.Array:
    """`x` float32 [batch, heads, query, key] with its heads mixed; place: 0 for scores, 1 for probabilities."""
    total = x
    for mixing, axis in ((of_queries, "q"), (of_keys, "k")):
        reads, writes, diagonal = (part[:, :, place] for part in mixing)
        read = jnp.einsum(f"b{axis}rh,bhqk->brqk", reads, x)
        total = total + jnp.einsum(f"b{axis}rh,brqk->bhqk", writes, read)
        shares = jnp.swapaxes(diagonal, 1, 2)  # [batch, heads, query or key]
        total = total + x * (shares[..., None] if axis == "q" else shares[:, :, None])
    return total


def _kept(seeds: jax.Array, shape: tuple[int, ...], first: jax.Array, length: int, rate: float) -> jax.Array:
    """bool `shape` [batch, heads, query, key]: `keep_mask` of all queries, at the queries from `first` on."""
    counters = counter(seeds[0].reshape(-1, 1, 1, 1))
    for axis, stride in ((1, length * length), (2, length), (3, 1)):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        counters = counters + counter((index + first.astype(jnp.uint32) if axis == 2 else index) * jnp.uint32(stride))
    return keep(counters, seeds[1].reshape(-1, 1, 1, 1), rate)


def flops(model: ModelConfig, length: int) -> float:
    """FLOPs of one row's forward pass through all layers: matrix products alone."""
    width, rank = _HIDDEN * model.heads, model.attention_composition
    of_position = 2 * 4 * (model.embed * width + 2 * width * rank * model.heads + model.embed * model.heads)
    of_pair = 2 * 2 * 2 * 2 * rank * model.heads  # before and after the softmax, of query and key, read and write
    return float(model.layers * (length * of_position + length**2 * of_pair))
