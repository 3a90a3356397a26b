"""The pre-training heads, a row of `HEADS` each, and the model that has all of them.

Invariant: a head is one row of `HEADS`. The objective, the FLOPs, the mesh axes, the metrics and the reports iterate
over that table and name no head of their own. All heads that predict pieces score with one matrix, the word embeddings,
in one product (decoder.py), each with a bias of its own. All heads that predict a class of a row share BERT's pooler.
Facts: Joshi et al. 2020, section 3.2; the authors' models/pair_bert.py:324-402, 605-640.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.batch import Batch, empty_batch
from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.model import decoder, span_decoder
from spanbert_jax.model.axes import ParameterAxes
from spanbert_jax.model.dropout import Dropout
from spanbert_jax.model.encoder import Encoder, Inputs, dropout_state, resolved, table_rows
from spanbert_jax.model.gelu import gelu
from spanbert_jax.model.layer_norm import LayerNorm
from spanbert_jax.model.linear import Dense, initializer


class HeadLoss(NamedTuple):
    """The cross-entropy of each prediction, and 1 where the right answer scores highest: float32 [batch, slots] each,
    or [batch] of a head that predicts a class of each row. `further` has a head's other losses, of the same shape, by
    the names in `Head.further`."""

    loss: jax.Array
    right: jax.Array
    further: Mapping[str, jax.Array]


class HeadModule(nn.Module):
    """A head that predicts pieces, up to the decoder. A subclass's `setup` makes `bias`, float32 [vocab], which is
    added to the scores."""

    config: Config
    vocab: int  # rows of the word embeddings
    dtype: jnp.dtype

    def __call__(self, batch: Batch, *hidden: jax.Array) -> jax.Array:
        """Returns [batch, slots, embed], which the decoder multiplies with the word embeddings.

        hidden: for each field that the head's row of `HEADS` reads, in that order, the hidden states [batch, slots,
        embed] at the positions in that field.
        """
        raise NotImplementedError


class MaskedLanguageModelHead(HeadModule):
    """Predicts the piece at a masked position from the hidden state there."""

    def setup(self) -> None:
        model = self.config.model
        self.dense = Dense((model.embed,), initializer(model), self.dtype, bias=model.head_bias)
        self.norm = LayerNorm(model.layer_norm_eps, model.norm_bias)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab,))

    def __call__(self, batch: Batch, *hidden: jax.Array) -> jax.Array:
        """hidden: the states at the masked positions."""
        (masked,) = hidden
        return self.norm(gelu(self.dense(masked)))


class SpanBoundaryHead(HeadModule):
    """Predicts the piece at an offset in a span from the hidden states at the span's boundaries (paper, equation 1)."""

    def setup(self) -> None:
        model, offsets = self.config.model, self.config.masking.max_span_offset
        self.offset = self.param("offset", initializer(model), (offsets, model.span_offset_embed))
        self.dense_1 = Dense((model.embed,), initializer(model), self.dtype, bias=model.head_bias)
        self.norm_1 = LayerNorm(model.layer_norm_eps, model.norm_bias)
        self.dense_2 = Dense((model.embed,), initializer(model), self.dtype, bias=model.head_bias)
        self.norm_2 = LayerNorm(model.layer_norm_eps, model.norm_bias)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab,))

    def __call__(self, batch: Batch, *hidden: jax.Array) -> jax.Array:
        """hidden: the states at the left and the right boundaries. An offset beyond the table takes the last row."""
        left, right = hidden
        offsets = self.config.masking.max_span_offset
        one_hot = jax.nn.one_hot(jnp.clip(batch["span_offset"], 0, offsets - 1), offsets)
        offset = (one_hot.astype(self.dtype)) @ self.offset.astype(self.dtype)
        x = jnp.concatenate([left, right, offset], axis=-1)  # [batch, slots, 2 * embed + span_offset_embed]
        x = self.norm_1(gelu(self.dense_1(x)))
        return self.norm_2(gelu(self.dense_2(x)))


@dataclasses.dataclass(frozen=True)
class Head:
    """All that the rest of the program knows of a pre-training head."""

    name: str  # of the head's group of parameters; the head's metrics are <name>_loss, <name>_accuracy, ...
    title: str  # for progress displays and reports
    description: str  # "the ... head"
    # A `HeadModule`, made of (the configuration, rows of the word embeddings, the dtype). Of a head with `classes`: the
    # map from the pooled states [batch, embed] to the scores [batch, classes].
    module: Callable[[Config, int, jnp.dtype], nn.Module]
    reads: tuple[str, ...]  # the fields of the batch with the positions whose hidden states the module takes
    weights: str  # the field of the batch that is 1 where the head predicts, and 0 elsewhere
    normaliser: Callable[[jax.Array], jax.Array]  # the sum of `weights` -> the divisor of the sum of the losses
    loss_weight: Callable[[Config], float]  # of the head's mean loss in the objective; 0: the head is not computed
    # The multiply-adds of the matrix products of `module` for one slot, without the decoder's; of a head with
    # `classes`, those of the pooler and of `module` for one row.
    multiply_adds: Callable[[ModelConfig], int]
    axes: ParameterAxes  # of the head's parameters; the patterns match paths below `name`
    # A pattern of paths below `name`: kernels that map hidden states to hidden states, which Muon orthogonalises.
    hidden_matrices: str = ""
    targets: str = "masked_ids"  # the field of the batch with the right answers
    classes: int = 0  # 0: the head predicts the piece of each slot; otherwise one of so many classes for each row
    # Whether the head is a `span_decoder.SpanDecoder`, which builds on SBO and reads the whole row. The last of the
    # fields in `reads` has the positions of the [MASK]s; the others are SBO's.
    decodes: bool = False
    further: tuple[str, ...] = ()  # names of losses beside that of the piece, which the objective adds to it
    # The multiply-adds of one row that are not counted slot by slot: (model, positions, slots) -> number.
    row_multiply_adds: Callable[[ModelConfig, int, int], int] = lambda model, length, slots: 0
    optional: bool = False  # whether a model that does not train the head lacks the head's parameters


MLM = Head(
    name="mlm",
    title="MLM",
    description="masked language model",
    module=MaskedLanguageModelHead,
    reads=("masked_positions",),
    weights="masked_weights",
    normaliser=lambda count: jnp.maximum(count, 1.0),
    loss_weight=lambda config: 0.0 if config.masking.collapse_spans else 1.0,
    multiply_adds=lambda model: model.embed**2,
    axes=(
        ("bias", ("vocab",)),
        ("dense/kernel", ("embed", None)),
        ("dense/bias", (None,)),
        ("norm/(scale|bias)", (None,)),
    ),
    hidden_matrices="dense/kernel",
)
SBO = Head(
    name="sbo",
    title="SBO",
    description="span boundary",
    module=SpanBoundaryHead,
    reads=("span_left", "span_right"),
    weights="span_weights",
    normaliser=lambda count: count + 1.0,  # code: criterions/spanbert_loss.py
    loss_weight=lambda config: 0.0 if config.masking.collapse_spans else config.train.sbo_weight,
    multiply_adds=lambda model: (2 * model.embed + model.span_offset_embed) * model.embed + model.embed**2,
    axes=(
        ("bias", ("vocab",)),
        ("offset", (None, None)),
        ("dense_[12]/kernel", (None, "embed")),
        ("dense_[12]/bias", (None,)),
        ("norm_[12]/(scale|bias)", (None,)),
    ),
    hidden_matrices="dense_[12]/kernel",
)
NSP = Head(
    name="nsp",
    title="NSP",
    description="next-sentence",
    module=lambda config, vocab, dtype: Dense((2,), initializer(config.model), dtype),
    reads=(),
    weights="next_weights",
    normaliser=lambda count: jnp.maximum(count, 1.0),  # code: criterions/mlm_nsp_sbo_loss.py:76
    loss_weight=lambda config: config.train.nsp_weight,
    multiply_adds=lambda model: model.embed**2 + 2 * model.embed,
    axes=(("kernel", (None, None)), ("bias", (None,))),
    targets="next_labels",
    classes=2,
    optional=True,
)
DECODER = Head(
    name="decoder",
    title="DECODER",
    description="span decoder",
    module=span_decoder.SpanDecoder,
    reads=(*SBO.reads, "masked_positions"),
    weights="span_weights",
    normaliser=lambda count: jnp.maximum(count, 1.0),
    loss_weight=lambda config: float(config.masking.collapse_spans),
    multiply_adds=lambda model: SBO.multiply_adds(model) + span_decoder.multiply_adds(model),
    axes=span_decoder.AXES,
    hidden_matrices=span_decoder.HIDDEN_MATRICES,
    optional=True,
    decodes=True,
    further=("end",),
    row_multiply_adds=span_decoder.row_multiply_adds,
)
# A model has the parameters of every row, except of an `optional` one that it does not train. Other modules read
# `pretraining_heads.HEADS` when they are called and do not import the name, so that a test can add a row.
HEADS: tuple[Head, ...] = (MLM, SBO, NSP, DECODER)


def trained_heads(config: Config) -> tuple[Head, ...]:
    """The rows of HEADS that `config` gives a weight in the loss."""
    return tuple(head for head in HEADS if head.loss_weight(config) > 0)


def parameter_axes() -> ParameterAxes:
    """The rows for the parameters of every head, with patterns of whole paths."""
    return tuple((f"{head.name}/{pattern}", axes) for head in HEADS for pattern, axes in head.axes)


class DecoderInputs(NamedTuple):
    """What heads that predict pieces hand to decoder.py."""

    states: jax.Array  # [batch, heads, slots, embed]
    bias: jax.Array  # float32 [heads, vocab]
    further: dict[str, dict[str, jax.Array]]  # a head's name -> `HeadLoss.further`


class PretrainingModel(Encoder):
    """The encoder with `heads`, and with the pooler where one of them predicts classes."""

    config: Config
    heads: tuple[Head, ...]

    def setup(self) -> None:
        super().setup()
        vocab = table_rows(self.model, self.vocab_size)
        for head in self.heads:
            setattr(self, head.name, head.module(self.config, vocab, self.dtype))
        if any(head.classes for head in self.heads):
            self.pooler = Dense((self.model.embed,), initializer(self.model), self.dtype)

    def states(self, batch: Batch, state: Dropout | None) -> jax.Array:
        """The hidden states of the batch's rows: [batch, length, embed]."""
        return self.encode(Inputs.of(batch), state)

    def decoder_inputs(self, batch: Batch, hidden: jax.Array, heads: Sequence[Head]) -> DecoderInputs:
        """The decoder's inputs for heads that predict pieces."""
        fields = list(dict.fromkeys(field for head in heads for field in head.reads))
        read = dict(zip(fields, _at(hidden, *(batch[field] for field in fields)), strict=True))
        states, biases, further = [], [], {}
        for head in heads:
            module, at = getattr(self, head.name), [read[field] for field in head.reads]
            bias = module.bias
            if head.decodes:
                row = span_decoder.Row(hidden, batch["lengths"])
                boundary = self.sbo(batch, *at[:-1])
                at_slots, end = module(batch, boundary, at[-1], row, self.embeddings.word)
                bias, further[head.name] = self.sbo.bias + bias, {"end": end}
            else:
                at_slots = module(batch, *at)
            states.append(at_slots)
            biases.append(bias)
        return DecoderInputs(jnp.stack(states, axis=1), jnp.stack(biases), further)

    def score(self, batch: Batch, state: Dropout | None, heads: Sequence[Head]) -> dict[str, jax.Array]:
        """The scores that `apply` returns."""
        hidden, (of_pieces, of_rows) = self.states(batch, state), _by_kind(heads)
        found = {head.name: self.class_scores(hidden, head) for head in of_rows}
        if of_pieces:
            states, bias, _ = self.decoder_inputs(batch, hidden, of_pieces)
            scores = decoder.scores(states, self.embeddings.word, bias, self.vocab_size)
            found |= {head.name: scores[:, place] for place, head in enumerate(of_pieces)}
        return found

    def lose(self, batch: Batch, state: Dropout | None, heads: Sequence[Head]) -> dict[str, HeadLoss]:
        """What the function `losses` returns."""
        hidden, (of_pieces, of_rows) = self.states(batch, state), _by_kind(heads)
        found = {head.name: _class_loss(self.class_scores(hidden, head), batch[head.targets]) for head in of_rows}
        if of_pieces:
            states, bias, further = self.decoder_inputs(batch, hidden, of_pieces)
            word, targets = self.embeddings.word, batch["masked_ids"]
            lost, right = decoder.cross_entropy(states, word, bias, targets, self.vocab_size)
            for place, head in enumerate(of_pieces):
                found[head.name] = HeadLoss(lost[:, place], right[:, place], further.get(head.name, {}))
        return found

    def class_scores(self, hidden: jax.Array, head: Head) -> jax.Array:
        """A head's scores of the classes of each row, float32 [batch, classes], from the pooled state of [CLS]."""
        pooled = nn.tanh(self.pooler(hidden[:, 0]))
        scores: jax.Array = getattr(self, head.name)(pooled)
        return scores.astype(jnp.float32)


def _by_kind(heads: Sequence[Head]) -> tuple[list[Head], list[Head]]:
    """The heads that predict pieces, and those that predict a class of each row."""
    return [head for head in heads if not head.classes], [head for head in heads if head.classes]


def _class_loss(scores: jax.Array, labels: jax.Array) -> HeadLoss:
    """scores: float32 [batch, classes]; labels: int32 [batch]."""
    right = jax.nn.one_hot(labels, scores.shape[-1])
    lost = -jnp.sum(right * jax.nn.log_softmax(scores), axis=-1)
    return HeadLoss(lost, (jnp.argmax(scores, axis=-1) == labels).astype(jnp.float32), {})


def _at(hidden: jax.Array, *positions: jax.Array) -> list[jax.Array]:
    """`hidden` [batch, length, embed] at each of the int32 [batch, slots] `positions`: [batch, slots, embed] each.

    One product with a one-hot matrix reads all of them, and the gradient is a product too. The gradient of an indexed
    lookup would be a scatter, which is slow on accelerators, serial on a CPU, and badly divided over a mesh. The
    product is under 0.5% of a step's arithmetic.
    """
    one_hot = jax.nn.one_hot(jnp.concatenate(positions, axis=1), hidden.shape[1], dtype=hidden.dtype)
    return jnp.split(jnp.einsum("bsl,ble->bse", one_hot, hidden), len(positions), axis=1)


def pretraining_model(
    config: Config, vocab_size: int, platform: str, heads: Sequence[Head] | None = None
) -> PretrainingModel:
    """The model of `config` for a tokenizer of `vocab_size` pieces on `platform` (`jax.Device.platform`).

    heads: None: every head but the optional ones that `config` does not train.
    """
    if heads is None:
        heads = [head for head in HEADS if not head.optional or head.loss_weight(config) > 0]
    compute = resolved(config.compute, config.model, platform)
    return PretrainingModel(
        model=config.model,
        compute=compute,
        vocab_size=vocab_size,
        dtype=jnp.dtype(compute.dtype),
        config=config,
        heads=tuple(heads),
    )


def init_params(model: PretrainingModel, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters: `linear.initializer` for every kernel and table, by default N(0, init_std), not
    truncated; 0 for biases, 1 for LayerNorm's scales (code: models/pair_bert.py:455-466).

    key: of jax.random. The function is pure: jitted with out_shardings, it makes each parameter on the devices that
    hold the parameter.
    """
    batch = {name: jnp.asarray(value) for name, value in empty_batch(model.config, 1, 1, 1).items()}
    return model.init(key, batch, None, model.heads, method="score")["params"]


def apply(
    model: PretrainingModel,
    params: dict[str, Any],
    batch: Batch,
    dropout_key: jax.Array | None = None,
    row_numbers: jax.Array | None = None,
    heads: Sequence[Head] | None = None,
) -> dict[str, jax.Array]:
    """Scores, float32, by the head's name: of the whole (padded) vocabulary for the masked positions of a pre-training
    batch [batch, slots, vocab], and of a head's classes [batch, classes].

    batch: of `batch.fields`, input_ids, lengths and the fields that `heads` take are read; token_type_ids int32 [batch,
    length] may be there too (without them, all types are 0). dropout_key, row_numbers: as for `encoder.encode`.
    heads: those of the model's heads that are computed; None: all.
    """
    state = dropout_state(dropout_key, row_numbers, batch["input_ids"].shape[0])
    logits: Any = model.apply({"params": params}, batch, state, heads or model.heads, method="score")
    return logits


def losses(
    model: PretrainingModel,
    params: dict[str, Any],
    batch: Batch,
    dropout_key: jax.Array | None = None,
    row_numbers: jax.Array | None = None,
    heads: Sequence[Head] | None = None,
) -> dict[str, HeadLoss]:
    """The cross-entropy of `apply`'s scores with the heads' `targets`, by the head's name; arguments as for `apply`.

    The backward pass finds one array as large as the scores, which the forward pass keeps.
    """
    state = dropout_state(dropout_key, row_numbers, batch["input_ids"].shape[0])
    lost: Any = model.apply({"params": params}, batch, state, heads or model.heads, method="lose")
    return lost
