"""The linear fine-tuning heads: scores for an answer's ends, for each token, or for the whole sequence.

Invariant: with equal weights and no dropout, the logits equal those of transformers' BertForQuestionAnswering,
BertForTokenClassification and BertForSequenceClassification. Facts: SpanBERT's fine-tuning code, modeling.py, which has
the same heads and no dropout before the answer's scores.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import Config
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.axes import ParameterAxes
from spanbert_jax.model.dropout import Dropout, dropout
from spanbert_jax.model.encoder import Encoder, dropout_state, resolved
from spanbert_jax.model.linear import Dense

AXES: ParameterAxes = (
    (r"pooler/kernel", ("embed", None)),
    (r"(qa_outputs|classifier)/kernel", (None, None)),
    (r"(pooler|qa_outputs|classifier)/bias", (None,)),
)


class QuestionAnsweringModel(Encoder):
    """The encoder with scores for each position to be an answer's first and its last piece."""

    def setup(self) -> None:
        super().setup()
        self.qa_outputs = Dense((2,), self.model.init_std, self.dtype)

    def score(
        self, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array | None, state: Dropout | None
    ) -> jax.Array:
        """Scores [batch, length, 2] of each position as the first and as the last of the answer, in `dtype`."""
        return self.qa_outputs(self.encode(input_ids, lengths, token_type_ids, state))


class TokenClassificationModel(Encoder):
    """The encoder with scores of every label for each position."""

    labels: int

    def setup(self) -> None:
        super().setup()
        self.classifier = Dense((self.labels,), self.model.init_std, self.dtype)

    def score(
        self, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array | None, state: Dropout | None
    ) -> jax.Array:
        """Scores [batch, length, labels], in `dtype`."""
        hidden = self.encode(input_ids, lengths, token_type_ids, state)
        return self.classifier(dropout(hidden, self.model.dropout, state, 0, sites.HEAD))


class SequenceClassificationModel(Encoder):
    """The encoder with BERT's pooler of [CLS] and scores of every label for the row."""

    labels: int

    def setup(self) -> None:
        super().setup()
        self.pooler = Dense((self.model.embed,), self.model.init_std, self.dtype)
        self.classifier = Dense((self.labels,), self.model.init_std, self.dtype)

    def score(
        self, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array | None, state: Dropout | None
    ) -> jax.Array:
        """Scores [batch, labels], in `dtype`."""
        first = self.encode(input_ids, lengths, token_type_ids, state)[:, 0]
        pooled = nn.tanh(self.pooler(first))
        return self.classifier(dropout(pooled, self.model.dropout, state, 0, sites.HEAD))


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
    return model.init(key, one, one[0], None, None, method="score")["params"]


def apply(
    model: TaskModel,
    params: dict[str, Any],
    input_ids: jax.Array,
    lengths: jax.Array,
    token_type_ids: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    row_numbers: jax.Array | None = None,
) -> jax.Array:
    """The head's scores, float32, of the shape in the docstring of its `score`; arguments as for `encoder.encode`."""
    state = dropout_state(dropout_key, row_numbers, input_ids.shape[0])
    logits: Any = model.apply({"params": params}, input_ids, lengths, token_type_ids, state, method="score")
    return logits.astype(jnp.float32)
