"""The span decoder: writes the pieces of a masked span from left to right, and says where the span ends.

Invariant: the probabilities of all strings of one or more pieces add up to 1. A string y_1 .. y_n has the probability

    product over t of p(last_t | y_<t) p(y_t | y_<t, last_t),    where last_t is 1 for t = n and 0 before,

so the length is part of the model and needs no further slot for an end symbol. A fresh decoder scores each piece
exactly as the span-boundary objective (SBO) does, since every addition to SBO's state ends in a kernel that is 0.

The row has one [MASK] for the whole span (corpus/collapsing.py). The state of a slot is SBO's for the slot's offset,
plus maps of the piece before and of the encoder's state at the [MASK], followed by causal layers that attend to the
slots of the same span and to the row. Scores are products with the word embeddings (decoder.py).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.model.axes import ParameterAxes, constrain
from spanbert_jax.model.gelu import gelu
from spanbert_jax.model.kernels.attention_dense import MASKED
from spanbert_jax.model.layer_norm import LayerNorm
from spanbert_jax.model.linear import Dense, initializer

# Patterns of paths below the name of the head.
AXES: ParameterAxes = (
    ("bias", ("vocab",)),
    ("(start|last)", (None,)),
    (r"(norm|norm_piece|layers_\d+/norm_[123])/(scale|bias)", (None,)),
    ("(previous|mask|output_[12])/kernel", ("embed", None)),
    ("(previous|mask|output_[12]|end)/bias", (None,)),
    ("end/kernel", (None, None)),
    (r"layers_\d+/(own|row)/(query|key|value)/kernel", ("embed", "heads")),
    (r"layers_\d+/(own|row)/(query|key|value)/bias", ("heads",)),
    (r"layers_\d+/(own|row)/output/kernel", ("heads", "embed")),
    (r"layers_\d+/up/kernel", ("embed", "mlp")),
    (r"layers_\d+/up/bias", ("mlp",)),
    (r"layers_\d+/down/kernel", ("mlp", "embed")),
    (r"layers_\d+/((own|row)/output|down)/bias", (None,)),
)
HIDDEN_MATRICES = r"(previous|mask|output_[12]|layers_\d+/(own/\w+|row/\w+|up|down))/kernel"


def multiply_adds(model: ModelConfig) -> int:
    """Of one slot, without SBO's, the attention's and those of `row_multiply_adds`."""
    layer = 6 * model.embed**2 + 2 * model.embed * model.mlp
    return 4 * model.embed**2 + model.embed + model.decoder_layers * layer


def row_multiply_adds(model: ModelConfig, length: int, slots: int) -> int:
    """Of one row: keys and values of its positions, and the products of the attention."""
    layer = 2 * length * model.embed**2 + 2 * slots * (slots + length) * model.embed
    return model.decoder_layers * layer


class Row(NamedTuple):
    """A batch of rows as the decoder attends to them."""

    hidden: jax.Array  # [batch, length, embed], the encoder's states
    lengths: jax.Array  # int32 [batch]


class Slots(NamedTuple):
    """Places of pieces. The slots of a span follow each other, in the order of their offsets."""

    pieces: jax.Array  # int32 [batch, slots]; a slot's state depends on the pieces of the slots before it alone
    offsets: jax.Array  # int32 [batch, slots], places in the span, from 0
    spans: jax.Array  # int32 [batch, slots], the same number for all slots of a span, and for no others
    boundary: jax.Array  # [batch, slots, embed], SBO's states
    mask: jax.Array  # [batch, slots, embed], the encoder's states at the span's [MASK]


class Attention(nn.Module):
    """Attention of `x` to `y`, which begins as 0."""

    model: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, seen: jax.Array) -> jax.Array:
        """[batch, slots, embed]. x: [batch, slots, embed]; y: [batch, keys, embed]; seen: bool, broadcasts to [batch,
        slots, keys]."""
        model = self.model
        init, zeros, width = initializer(model), nn.initializers.zeros, (model.embed,)

        def heads(name: str, states: jax.Array) -> jax.Array:  # [batch, n, heads, head_dim]
            mapped = Dense(width, init, self.dtype, bias=model.head_bias, name=name)(states)
            return mapped.reshape(*mapped.shape[:2], model.heads, -1)

        query, key, value = heads("query", x), heads("key", y), heads("value", y)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = jnp.where(seen[:, None], scores * query.shape[-1] ** -0.5, MASKED)
        found = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(self.dtype), value)
        return Dense(width, zeros, self.dtype, bias=model.head_bias, name="output")(found.reshape(x.shape))


class Layer(nn.Module):
    """Attention to the slots of the same span up to this one, attention to the row, and an MLP, with LayerNorm before
    each."""

    model: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, row: Row, spans: jax.Array) -> jax.Array:
        model = self.model
        norms = [LayerNorm(model.layer_norm_eps, model.norm_bias, name=f"norm_{number}") for number in (1, 2, 3)]
        slot, position = jnp.arange(x.shape[1]), jnp.arange(row.hidden.shape[1])
        own = (spans[:, :, None] == spans[:, None]) & (slot[:, None] >= slot)  # [batch, slots, slots]
        valid = position < row.lengths[:, None, None]  # [batch, 1, length]
        normed = norms[0](x)
        x = x + Attention(model, self.dtype, name="own")(normed, normed, own)
        x = x + Attention(model, self.dtype, name="row")(norms[1](x), row.hidden, valid)
        wide = Dense((model.mlp,), initializer(model), self.dtype, bias=model.head_bias, name="up")(norms[2](x))
        down = Dense((model.embed,), nn.initializers.zeros, self.dtype, bias=model.head_bias, name="down")
        return constrain(x + down(gelu(wide)), "batch", "length", "embed")


class SpanDecoder(nn.Module):
    """The decoder. It has no dropout, like the other heads."""

    config: Config
    vocab: int  # rows of the word embeddings
    dtype: jnp.dtype

    def setup(self) -> None:
        model, zeros = self.config.model, nn.initializers.zeros
        init, bias = initializer(model), model.head_bias

        def dense(kernel_init: nn.initializers.Initializer) -> Dense:
            return Dense((model.embed,), kernel_init, self.dtype, bias=bias)

        self.start = self.param("start", init, (model.embed,))  # in the place of the piece before a span's first
        self.norm_piece = LayerNorm(model.layer_norm_eps, model.norm_bias)
        self.previous, self.mask = dense(zeros), dense(zeros)
        self.layers = [Layer(model, self.dtype) for _ in range(model.decoder_layers)]
        self.norm = LayerNorm(model.layer_norm_eps, model.norm_bias)
        self.end = Dense((1,), zeros, self.dtype)
        self.last = self.param("last", init, (model.embed,))
        self.output_1, self.output_2 = dense(init), dense(zeros)
        self.bias = self.param("bias", zeros, (self.vocab,))  # is added to the scores, beside SBO's

    def states(self, slots: Slots, row: Row, word: jax.Array) -> jax.Array:
        """The state of each slot before its piece is known, [batch, slots, embed]. word: the word embeddings."""
        before = jnp.take(word, jnp.pad(slots.pieces[:, :-1], [(0, 0), (1, 0)]), axis=0)
        before = jnp.where((slots.offsets == 0)[..., None], self.start, before)  # [batch, slots, embed]
        x = slots.boundary + self.previous(self.norm_piece(before.astype(self.dtype))) + self.mask(slots.mask)
        for layer in self.layers:
            x = layer(x, row, slots.spans)
        return x

    def end_scores(self, states: jax.Array) -> jax.Array:
        """The log-odds that each slot is its span's last one, float32 [batch, slots]."""
        scores: jax.Array = self.end(self.norm(states))[..., 0]
        return scores.astype(jnp.float32)

    def outputs(self, states: jax.Array, is_last: jax.Array) -> jax.Array:
        """The vectors [batch, slots, embed] which score the pieces of slots whose span ends there where `is_last` (bool
        [batch, slots]), and goes on elsewhere."""
        told = self.output_1(self.norm(states)) + jnp.where(is_last[..., None], self.last, 0).astype(self.dtype)
        return states + self.output_2(gelu(told))

    def __call__(
        self, batch: Batch, boundary: jax.Array, mask: jax.Array, row: Row, word: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The vectors [batch, slots, embed] that score the pieces of a collapsed batch, and the cross-entropy of
        whether each slot is its span's last one, float32 [batch, slots]. boundary, mask: as in `Slots`."""
        spans = batch["masked_positions"]
        states = self.states(Slots(batch["masked_ids"], batch["span_offset"], spans, boundary, mask), row, word)
        # After a row's last span comes an unused slot, whose position is 0, or nothing.
        is_last = jnp.diff(spans, axis=1, append=-1) != 0
        scores = self.end_scores(states)
        return self.outputs(states, is_last), jax.nn.softplus(jnp.where(is_last, -scores, scores))
