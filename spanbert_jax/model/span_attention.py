"""Spans that attend to the pieces of their row and write back to their own.

Invariant: with the output's kernel 0, where it begins, the hidden states are unchanged, and a position outside of every
span keeps its state at any time. The order of spans does not matter.

A span's query is made from the states of its first and last pieces, their mean, and its width. softmax over pieces of
query_j . key_i / sqrt(head_dim) weighs the values, and each piece of the span adds the result. A span is kept at the
position where it begins, so there are as many places for spans as for pieces, and no span is ever left out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ModelConfig
from spanbert_jax.model import span_tags as spans
from spanbert_jax.model.axes import ParameterAxes, constrain
from spanbert_jax.model.kernels.attention_dense import MASKED
from spanbert_jax.model.linear import Dense, initializer

AXES: ParameterAxes = (
    (r"span_attention/ends/kernel", ("embed", None, None)),
    (r"span_attention/ends/bias", (None, None)),
    (r"span_attention/width", (None, None)),
    (r"span_attention/(query|key|value)/kernel", ("embed", "heads", None)),
    (r"span_attention/(query|key|value)/bias", ("heads", None)),
    (r"span_attention/output/kernel", ("heads", None, "embed")),
)
MATRICES = (
    (r"span_attention/ends/kernel", "i-o"),
    (r"span_attention/(query|key|value)/kernel", "ioo"),
    (r"span_attention/output/kernel", "iio"),
)
ZERO = r"span_attention/output/kernel"

_WIDTHS = 31  # rows of the table of widths; longer spans take the last


class SpanAttention(nn.Module):
    """The attention of spans, after the last layer."""

    model: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        model, init = self.model, initializer(self.model)
        heads = (model.heads, model.embed // model.heads)
        self.ends = Dense((3, model.embed), init, self.dtype)
        self.width = self.param("width", init, (_WIDTHS, model.embed))
        self.query, self.key, self.value = (Dense(heads, init, self.dtype) for _ in range(3))
        self.output = Dense((model.embed,), nn.initializers.zeros, self.dtype, axes=2, bias=False)

    def __call__(self, hidden: jax.Array, tags: jax.Array, lengths: jax.Array) -> jax.Array:
        """The next `hidden` [batch, length, embed]; tags: int32 [batch, length] of `span_tags`, lengths int32
        [batch]."""
        position = jnp.arange(hidden.shape[1], dtype=jnp.int32)
        starts = spans.starts(tags)
        member = starts[:, None] == position[:, None]  # [batch, span, piece]; a span is where its first piece is
        width = jnp.sum(member, axis=-1)
        last = (member & spans.ends(tags)[:, None]).astype(self.dtype)
        mean = (member / jnp.maximum(width, 1)[..., None]).astype(self.dtype)
        parts = self.ends(hidden)  # [batch, length, 3, embed]
        begin, end, middle = (parts[:, :, part] for part in range(3))
        at_last, average = jnp.einsum("bsl,ble->bse", last, end), jnp.einsum("bsl,ble->bse", mean, middle)
        widths = jax.nn.one_hot(jnp.minimum(width, _WIDTHS - 1), _WIDTHS, dtype=self.dtype)
        span = begin + at_last + average + widths @ self.width.astype(self.dtype)  # [batch, span, embed]

        query, key, value = self.query(span), self.key(hidden), self.value(hidden)
        scores = jnp.einsum("bshd,blhd->bhsl", query, key, preferred_element_type=jnp.float32)
        valid = position < lengths[:, None, None]
        seen = member if self.model.span_attention == "own" else jnp.broadcast_to(valid, member.shape)
        scores = jnp.where(seen[:, None], scores * query.shape[-1] ** -0.5, MASKED)
        found = jnp.einsum("bhsl,blhd->bshd", jax.nn.softmax(scores).astype(self.dtype), value)
        written = jnp.einsum("bsl,bse->ble", member.astype(self.dtype), self.output(found))
        return constrain(hidden + written, "batch", "length", "embed")


def flops(model: ModelConfig, length: int) -> float:
    """FLOPs of one row's forward pass: matrix products alone."""
    linear = length * 2 * (3 + 4) * model.embed**2  # the three parts of a span; query, key, value and output
    pairs = length**2 * 2 * 5 * model.embed  # at the last piece, the mean, the scores, the values, the way back
    return float(linear + pairs + 2 * length * _WIDTHS * model.embed)
