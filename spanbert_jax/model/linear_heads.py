"""The linear fine-tuning heads: scores for an answer's ends, for each token, or for the whole sequence.

Invariant: with equal weights and no dropout, the logits equal those of transformers' BertForQuestionAnswering,
BertForTokenClassification and BertForSequenceClassification. In a family that `transforms`, they equal those of
ModernBert's three classes. Facts: SpanBERT's fine-tuning code, modeling.py, which has BERT's heads and no dropout
before the answer's scores; transformers 5.23, modeling_modernbert.py:558-844.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.axes import ParameterAxes
from spanbert_jax.model.dropout import Dropout, dropout
from spanbert_jax.model.encoder import Encoder, Inputs, dropout_state, resolved
from spanbert_jax.model.families import family_of
from spanbert_jax.model.gelu import gelu
from spanbert_jax.model.layer_norm import LayerNorm
from spanbert_jax.model.linear import Dense, initializer
from spanbert_jax.model.row_pooling import pool_rows

AXES: ParameterAxes = (
    (r"pooler/kernel", ("embed", None)),
    (r"(qa_outputs|classifier)/kernel", (None, None)),
    (r"(pooler|qa_outputs|classifier)/bias", (None,)),
    (r"transform/dense/kernel", ("embed", None)),
    (r"transform/dense/bias", (None,)),
    (r"transform/norm/(scale|bias)", (None,)),
)


class Transform(nn.Module):
    """The layer between the encoder and a head in a family that `transforms`: a linear map, GELU and LayerNorm, the
    same as in the masked language model's head."""

    model: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        model = self.model
        self.dense = Dense((model.embed,), initializer(model), self.dtype, bias=model.head_bias)
        self.norm = LayerNorm(model.layer_norm_eps, model.norm_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(gelu(self.dense(x)))


class TransformedEncoder(Encoder):
    """The encoder with the `Transform` of its family, where the family has one."""

    def setup(self) -> None:
        super().setup()
        self.is_transformed = family_of(self.model).transforms
        if self.is_transformed:
            self.transform = Transform(self.model, self.dtype)

    def read(self, states: jax.Array, state: Dropout | None) -> jax.Array:
        """The states that a head's last layer takes: [..., embed] -> [..., embed], with dropout."""
        states = self.transform(states) if self.is_transformed else states
        return dropout(states, self.model.dropout, state, 0, sites.HEAD)


class QuestionAnsweringModel(TransformedEncoder):
    """The encoder with scores for each position to be an answer's first and its last piece."""

    def setup(self) -> None:
        super().setup()
        self.qa_outputs = Dense((2,), initializer(self.model), self.dtype)

    def score(self, inputs: Inputs, state: Dropout | None) -> jax.Array:
        """Scores [batch, length, 2] of each position as the first and as the last of the answer, in `dtype`."""
        hidden = self.encode(inputs, state)
        return self.qa_outputs(self.read(hidden, state) if self.is_transformed else hidden)


class TokenClassificationModel(TransformedEncoder):
    """The encoder with scores of every label for each position."""

    labels: int

    def setup(self) -> None:
        super().setup()
        self.classifier = Dense((self.labels,), initializer(self.model), self.dtype)

    def score(self, inputs: Inputs, state: Dropout | None) -> jax.Array:
        """Scores [batch, length, labels], in `dtype`."""
        hidden = self.encode(inputs, state)
        return self.classifier(self.read(hidden, state))


class SequenceClassificationModel(TransformedEncoder):
    """The encoder with scores of every label for the row, from the state of [CLS] or, by `model.pooling`, the mean of
    the states. In a family without a `Transform`, BERT's pooler reads the state first."""

    labels: int

    def setup(self) -> None:
        super().setup()
        if not self.is_transformed:
            self.pooler = Dense((self.model.embed,), initializer(self.model), self.dtype)
        self.classifier = Dense((self.labels,), initializer(self.model), self.dtype)

    def score(self, inputs: Inputs, state: Dropout | None) -> jax.Array:
        """Scores [batch, labels], in `dtype`."""
        hidden = self.encode(inputs, state)
        pooled = pool_rows(hidden, inputs.lengths, self.model.pooling)
        return self.classifier(self.read(pooled if self.is_transformed else nn.tanh(self.pooler(pooled)), state))


TaskModel = QuestionAnsweringModel | TokenClassificationModel | SequenceClassificationModel


def task_model(task: str, config: Config, vocab_size: int, labels: int, platform: str) -> TaskModel:
    """The model of `task` on `platform` (`jax.Device.platform`).

    task: "question_answering", "token_classification" or "sequence_classification". labels: their number, which
    question answering does not read. Raises ValueError on another task.
    """
    compute = resolved(config.compute, config.model, platform)
    dtype = jnp.dtype(compute.dtype)
    if task == "question_answering":
        return QuestionAnsweringModel(config.model, compute, vocab_size, dtype)
    if task == "token_classification":
        return TokenClassificationModel(config.model, compute, vocab_size, dtype, labels)
    if task == "sequence_classification":
        return SequenceClassificationModel(config.model, compute, vocab_size, dtype, labels)
    raise ValueError(f"no head for task {task!r}")


def init_params(model: TaskModel, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters of the encoder and the head, from the distributions of pre-training."""
    one = jnp.ones((1, 1), jnp.int32)
    return model.init(key, Inputs(one, one[0]), None, method="score")["params"]


def apply(
    model: TaskModel,
    params: dict[str, Any],
    input_ids: jax.Array,
    lengths: jax.Array,
    token_type_ids: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    row_numbers: jax.Array | None = None,
    span_tags: jax.Array | None = None,
    word_vectors: jax.Array | None = None,
) -> jax.Array:
    """The head's scores, float32, of the shape in the docstring of its `score`; word_vectors as in `encoder.Inputs`,
    the other arguments as for `encoder.encode`."""
    state = dropout_state(dropout_key, row_numbers, input_ids.shape[0])
    inputs = Inputs(input_ids, lengths, token_type_ids, span_tags, word_vectors)
    logits: Any = model.apply({"params": params}, inputs, state, method="score")
    return logits.astype(jnp.float32)
