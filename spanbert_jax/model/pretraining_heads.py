"""The pre-training heads: masked language model (MLM) and span-boundary objective (SBO), and the model that has both.

Invariant: both heads score with one matrix, the word embeddings, in one product (decoder.py), each with a bias of its
own. Facts: Joshi et al. 2020, section 3.2; the authors' models/pair_bert.py:324-402.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.model import decoder
from spanbert_jax.model.dropout import Dropout
from spanbert_jax.model.encoder import Dense, Encoder, dropout_state, resolved, table_rows
from spanbert_jax.model.gelu import gelu
from spanbert_jax.model.layer_norm import LayerNorm

Batch = dict[str, jax.Array]


class Logits(NamedTuple):
    """Scores of the whole (padded) vocabulary for each masked position, float32 [batch, masked, vocab]."""

    mlm: jax.Array
    sbo: jax.Array | None  # None where only MLM was asked for


class HeadLoss(NamedTuple):
    """Of each masked position the cross-entropy, and 1 if the right piece scores highest: float32 [batch, masked]."""

    loss: jax.Array
    right: jax.Array


class Losses(NamedTuple):
    """What each head loses."""

    mlm: HeadLoss
    sbo: HeadLoss | None  # None where only MLM was asked for


class MaskedLanguageModelHead(nn.Module):
    """The piece at a position from the hidden state there."""

    model: ModelConfig
    vocab: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.dense = Dense((self.model.embed,), self.model.init_std, self.dtype)
        self.norm = LayerNorm(self.model.layer_norm_eps)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab,))

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[..., embed] -> [..., embed], ready for the decoder."""
        return self.norm(gelu(self.dense(hidden)))


class SpanBoundaryHead(nn.Module):
    """The piece at an offset inside a span from the hidden states on the span's two sides (paper, equation 1)."""

    model: ModelConfig
    vocab: int
    max_span_offset: int
    dtype: jnp.dtype

    def setup(self) -> None:
        model, init = self.model, nn.initializers.normal(self.model.init_std)
        self.offset = self.param("offset", init, (self.max_span_offset, model.span_offset_embed))
        self.dense_1 = Dense((model.embed,), model.init_std, self.dtype)
        self.norm_1 = LayerNorm(model.layer_norm_eps)
        self.dense_2 = Dense((model.embed,), model.init_std, self.dtype)
        self.norm_2 = LayerNorm(model.layer_norm_eps)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab,))

    def __call__(self, left: jax.Array, right: jax.Array, span_offset: jax.Array) -> jax.Array:
        """[..., embed] twice and int32 [...] -> [..., embed]; an offset beyond the table takes its last row."""
        one_hot = jax.nn.one_hot(jnp.clip(span_offset, 0, self.max_span_offset - 1), self.max_span_offset)
        offset = (one_hot.astype(self.dtype)) @ self.offset.astype(self.dtype)
        x = jnp.concatenate([left, right, offset], axis=-1)  # [..., 2 * embed + span_offset_embed]
        x = self.norm_1(gelu(self.dense_1(x)))
        return self.norm_2(gelu(self.dense_2(x)))


class PretrainingModel(Encoder):
    """The encoder with both heads."""

    max_span_offset: int

    def setup(self) -> None:
        super().setup()
        vocab = table_rows(self.model, self.vocab_size)
        self.mlm = MaskedLanguageModelHead(self.model, vocab, self.dtype)
        self.sbo = SpanBoundaryHead(self.model, vocab, self.max_span_offset, self.dtype)

    def rows(self, batch: Batch, state: Dropout | None, with_sbo: bool) -> tuple[jax.Array, jax.Array]:
        """What the decoder multiplies, [batch, heads, masked, embed], and the biases, [heads, vocab]."""
        hidden = self.encode(batch["input_ids"], batch["lengths"], batch.get("token_type_ids"), state)
        if not with_sbo:
            (masked,) = _at(hidden, batch["masked_positions"])
            return self.mlm(masked)[:, None], self.mlm.bias[None]
        masked, left, right = _at(hidden, batch["masked_positions"], batch["span_left"], batch["span_right"])
        rows = jnp.stack([self.mlm(masked), self.sbo(left, right, batch["span_offset"])], axis=1)
        return rows, jnp.stack([self.mlm.bias, self.sbo.bias])

    def score(self, batch: Batch, state: Dropout | None, with_sbo: bool) -> Logits:
        """The scores of `apply`, below."""
        rows, bias = self.rows(batch, state, with_sbo)
        scores = decoder.scores(rows, self.embeddings.word, bias, self.vocab_size)
        return Logits(scores[:, 0], scores[:, 1] if with_sbo else None)

    def lose(self, batch: Batch, state: Dropout | None, with_sbo: bool) -> Losses:
        """The losses of `losses`, below."""
        rows, bias = self.rows(batch, state, with_sbo)
        lost, right = decoder.cross_entropy(rows, self.embeddings.word, bias, batch["masked_ids"], self.vocab_size)
        mlm, *sbo = (HeadLoss(lost[:, head], right[:, head]) for head in range(rows.shape[1]))
        return Losses(mlm, sbo[0] if sbo else None)


def _at(hidden: jax.Array, *positions: jax.Array) -> list[jax.Array]:
    """`hidden` [batch, length, embed] at each of the int32 [batch, masked] positions: [batch, masked, embed] each.

    One product with a one-hot matrix, and so is its gradient; that of a lookup is a scatter, which is slow on
    accelerators, serial on CPU, and badly divided over a mesh. The product is under 0.5% of a step's arithmetic.
    """
    one_hot = jax.nn.one_hot(jnp.concatenate(positions, axis=1), hidden.shape[1], dtype=hidden.dtype)
    return jnp.split(jnp.einsum("bml,ble->bme", one_hot, hidden), len(positions), axis=1)


def pretraining_model(config: Config, vocab_size: int, platform: str) -> PretrainingModel:
    """The model of `config` for a tokenizer of `vocab_size` pieces on `platform` (`jax.Device.platform`)."""
    compute = resolved(config.compute, config.model, platform)
    return PretrainingModel(
        model=config.model,
        compute=compute,
        vocab_size=vocab_size,
        dtype=jnp.dtype(compute.dtype),
        max_span_offset=config.masking.max_span_offset,
    )


def init_params(model: PretrainingModel, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters: N(0, init_std), not truncated, for every kernel and table, 0 for biases, 1 for
    LayerNorm's scales (code: models/pair_bert.py:455-466). A pure function of a jax.random key: jit it with
    out_shardings to make them where they belong."""
    one = jnp.ones((1, 1), jnp.int32)
    names = ("input_ids", "masked_positions", "span_left", "span_right", "span_offset")
    return model.init(key, {"lengths": one[0], **{name: one * 0 for name in names}}, None, True, method="score")[
        "params"
    ]


def apply(
    model: PretrainingModel,
    params: dict[str, Any],
    batch: Batch,
    dropout_key: jax.Array | None = None,
    rows: jax.Array | None = None,
    with_sbo: bool = True,
) -> Logits:
    """Scores for the masked positions of a pre-training batch, of MLM and, `with_sbo`, of SBO.

    batch: input_ids int32 [batch, length]; lengths int32 [batch]; masked_positions, span_left, span_right, span_offset
    int32 [batch, masked], positions in the row (the last three only with_sbo); token_type_ids int32 [batch, length], or
    none: all 0. Other entries are ignored. dropout_key, rows: as for `encode`.
    """
    state = dropout_state(dropout_key, rows, batch["input_ids"].shape[0])
    logits: Any = model.apply({"params": params}, batch, state, with_sbo, method="score")
    return logits


def losses(
    model: PretrainingModel,
    params: dict[str, Any],
    batch: Batch,
    dropout_key: jax.Array | None = None,
    rows: jax.Array | None = None,
    with_sbo: bool = True,
) -> Losses:
    """The cross-entropy of `apply`'s scores with masked_ids int32 [batch, masked], which `batch` has too; of the arrays
    of the scores' size it keeps one."""
    state = dropout_state(dropout_key, rows, batch["input_ids"].shape[0])
    lost: Any = model.apply({"params": params}, batch, state, with_sbo, method="lose")
    return lost
