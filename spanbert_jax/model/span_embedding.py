"""Embeddings of the spans that positions lie in, added to those of words and positions.

Invariant: the tables are 0 at the start, so the sum is that of the embeddings without spans. A position outside of
every span gets nothing. In pre-training the batch has no span that overlaps a masked piece: the kind of such a span was
computed from the text that is to be predicted (corpus/masking.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ModelConfig
from spanbert_jax.model import span_tags as spans
from spanbert_jax.model.axes import ParameterAxes

AXES: ParameterAxes = ((r"embeddings/spans/(kind|place)", (None, "embed")),)
MATRICES = ()
ZERO = r"embeddings/spans/(kind|place)"

_PLACES = 4  # inside, first, last, and the only piece of a span


class SpanEmbedding(nn.Module):
    """A table of kinds and a table of places in a span."""

    model: ModelConfig

    @nn.compact
    def __call__(self, tags: jax.Array) -> jax.Array:
        """float32 [batch, length, embed], from the tags int32 [batch, length] of `span_tags`.

        Products with one-hot matrices read the tables, because the gradient of a lookup would be a slow scatter.
        """
        zeros, embed, count = nn.initializers.zeros, self.model.embed, self.model.span_kinds
        kind, place = self.param("kind", zeros, (count, embed)), self.param("place", zeros, (_PLACES, embed))
        inside = tags > 0
        at = spans.begins(tags) + 2 * spans.ends(tags).astype(jnp.int32)
        # Position 0 of each table has a number below 0 outside of spans, for which one_hot gives a row of zeros.
        chosen = (jax.nn.one_hot(spans.kinds(tags) - 1, count), jax.nn.one_hot(jnp.where(inside, at, -1), _PLACES))
        return _looked_up(chosen[0], kind) + _looked_up(chosen[1], place)


def _looked_up(one_hot: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.einsum("blt,te->ble", one_hot, table, precision=jax.lax.Precision.HIGHEST)


def flops(model: ModelConfig, length: int) -> float:
    """FLOPs of one row's forward pass: matrix products alone, of which the lookups are none."""
    return 0.0
