"""The span head: scores of every type for every span of up to `max_width` words.

Invariant: a span's scores depend on the hidden states of its own pieces and on its width alone, and no array has both
an axis of spans and an axis of pieces. Facts: Lee et al. 2017 (arXiv:1707.07045), section 4, represent a span by its
two ends, an attention over its pieces and its width. The hidden layer is that of the span-boundary objective.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.axes import ParameterAxes
from spanbert_jax.model.dropout import Dropout, dropout
from spanbert_jax.model.encoder import Encoder, Inputs, dropout_state, resolved
from spanbert_jax.model.gelu import gelu
from spanbert_jax.model.layer_norm import LayerNorm
from spanbert_jax.model.linear import Dense, initializer

_NEVER = -1e9  # score of a piece outside the word, and of a word outside the span

# The classifier's rows are those of linear_heads.py.
AXES: ParameterAxes = (
    (r"spans/kernel", ("embed", None, None)),
    (r"spans/width", (None, None)),
    (r"spans/attention", (None,)),
    (r"spans/norm/(scale|bias)", (None,)),
)


class SpanRepresentation(nn.Module):
    """[hidden at the first piece; hidden at the last; pooled hidden; width] through one layer, GELU and LayerNorm.

    The layer's matrix product is linear, so it is applied to positions before spans are formed: there are `max_width`
    times fewer positions than spans. `kernel` [embed, 3, embed] is its part for the two ends and the pooled states.
    `width` [max_width, embed] is the embedding of the width after that layer, and includes the layer's bias.

    The pooled hidden state is an average over the span's pieces, weighted by a softmax of a learnt score. A first
    softmax pools the pieces of each word. A second one, over a band of `max_width` words, weighs the words by the
    logarithm of their sums. The result is as exact as one softmax over a [span, piece] matrix, in 56% of its time and
    58% of its memory at 128 pieces (forward and backward, CPU), and gains more in longer rows. Differences of
    cumulative sums would be no faster, and wrong by 0.03 for scores from N(0, 3) and by 0 / 0 for scores from N(0, 30).
    """

    model: ModelConfig
    max_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
        """[batch, words, max_width, embed]: the spans of 1, 2, ... words that begin at each word.

        hidden: [batch, length, embed]. first, last: int32 [batch, words], the places of each word's first and last
        piece; -1 for no word.
        """
        embed, init = self.model.embed, initializer(self.model)
        kernel = self.param("kernel", init, (embed, 3, embed)).astype(self.dtype)
        width = self.param("width", init, (self.max_width, embed)).astype(self.dtype)
        attention = self.param("attention", init, (embed,))
        projected = jnp.einsum("ble,eph->blph", hidden, kernel)
        scores = jnp.einsum("ble,e->bl", hidden.astype(jnp.float32), attention)

        position = jnp.arange(hidden.shape[1])
        inside = (position >= first[..., None]) & (position <= last[..., None])
        scores = jnp.where(inside, scores[:, None], _NEVER)  # [batch, words, length]
        word = jax.nn.logsumexp(scores, axis=-1)
        # One-hot matrices for a product, because the gradient of a lookup is a slow scatter.
        at = [position == place[..., None] for place in (first, last)]
        chosen = jnp.stack([*at, jax.nn.softmax(scores)], axis=2).astype(self.dtype)
        begins, ends, pooled = jnp.split(jnp.einsum("bwpl,blph->bwph", chosen, projected), 3, axis=2)

        shares = jnp.where(jnp.tri(self.max_width, dtype=bool), _window(word, self.max_width)[:, :, None], _NEVER)
        shares = jax.nn.softmax(shares).astype(self.dtype)  # [batch, words, max_width of the span, max_width]
        pooled = jnp.einsum("bwkj,bwjh->bwkh", shares, _window(pooled[:, :, 0], self.max_width))
        x = begins + _window(ends[:, :, 0], self.max_width) + pooled + width
        return LayerNorm(self.model.layer_norm_eps, self.model.norm_bias, name="norm")(gelu(x))


def _mostly_none(key: jax.Array, shape: tuple[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """The classifier's bias before training: the first label, no entity, has probability 0.99.

    Nearly all spans are no entities. From a bias of 0 the first hundreds of steps would go to learn this alone (Lin et
    al. 2017, arXiv:1708.02002, section 4.1).
    """
    return jnp.zeros(shape, dtype).at[0].set(math.log(99 * max(shape[0] - 1, 1)))


class SpanModel(Encoder):
    """The encoder with scores of every label for each span."""

    labels: int
    max_width: int

    def setup(self) -> None:
        super().setup()
        self.spans = SpanRepresentation(self.model, self.max_width, self.dtype)
        self.classifier = Dense((self.labels,), initializer(self.model), self.dtype, bias_init=_mostly_none)

    def score(
        self,
        inputs: Inputs,
        first: jax.Array,
        last: jax.Array,
        state: Dropout | None,
    ) -> jax.Array:
        """Scores [batch, words, max_width, labels], in `dtype`; arguments as for `apply`."""
        hidden = self.encode(inputs, state)
        return self.classifier(self.spans(dropout(hidden, self.model.dropout, state, 0, sites.HEAD), first, last))


def span_model(config: Config, vocab_size: int, labels: int, platform: str) -> SpanModel:
    """The model for spans of up to `config.tagging.max_width` words on `platform` (`jax.Device.platform`)."""
    compute = resolved(config.compute, config.model, platform)
    dtype = jnp.dtype(compute.dtype)
    return SpanModel(config.model, compute, vocab_size, dtype, labels, config.tagging.max_width)


def init_params(model: SpanModel, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters of the encoder and the head, from the distributions of pre-training."""
    one = jnp.ones((1, 1), jnp.int32)
    return model.init(key, Inputs(one, one[0]), one * 0, one * 0, None, method="score")["params"]


def apply(
    model: SpanModel,
    params: dict[str, Any],
    batch: dict[str, jax.Array],
    dropout_key: jax.Array | None = None,
    row_numbers: jax.Array | None = None,
) -> jax.Array:
    """Scores [batch, words, max_width, labels], float32, of the spans that begin at each word and have 1, 2, ... words.

    batch: input_ids, token_type_ids int32 [batch, length]; lengths int32 [batch]; first, last int32 [batch, words], the
    places of each word's first and last piece, or -1. Other entries are ignored. Scores where `valid_spans` is False
    mean nothing. dropout_key, row_numbers: as for `encoder.encode`.
    """
    state = dropout_state(dropout_key, row_numbers, batch["input_ids"].shape[0])
    inputs = Inputs.of(batch)
    logits: Any = model.apply({"params": params}, inputs, batch["first"], batch["last"], state, method="score")
    return logits.astype(jnp.float32)


def valid_spans(first: jax.Array, starts: jax.Array, max_width: int) -> jax.Array:
    """bool [batch, words, max_width]: whether a span begins at one of the first `starts` [batch] words of the row and
    ends at a word of the row. A word is where `first` [batch, words] is not -1."""
    begins = jnp.arange(first.shape[1]) < starts[:, None]
    return begins[:, :, None] & _window(first >= 0, max_width)


def _window(x: jax.Array, width: int) -> jax.Array:
    """[batch, words, ...] -> [batch, words, width, ...]: the values of a word and of those after it; 0 beyond the
    last."""
    padded = jnp.pad(x, [(0, 0), (0, width - 1)] + [(0, 0)] * (x.ndim - 2))
    return jnp.stack([padded[:, i : i + x.shape[1]] for i in range(width)], axis=2)
