"""What a fine-tuning task supplies: its reader, rows, head, loss, decoding and metrics.

Invariant: the runner, the predictor and the evaluator know a task by this class alone; none asks which it is.
"""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.model import linear_heads
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.rows import Featurise, Rows
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.step import Objective, Sums

Prediction = dict[str, Any]  # what one example's answer is, JSON: "id", offsets, text, score, ...


class FineTuning(abc.ABC):
    """What one task supplies; an instance is a task with its configuration, vocabulary and labels."""

    task: ClassVar[str]  # config.task, and the checkpoint's
    best: str  # the metric of which the highest value is kept
    padding: ClassVar[Mapping[str, int]] = {}  # of ragged columns, where it is not 0

    def __init__(self, config: Config, tokenizer: Tokenizer, labels: tuple[str, ...], special: Mapping[str, int]):
        """labels: in the classifier's order. special: ids of the vocabulary that stand for something of the task's."""
        self.config, self.tokenizer, self.labels, self.special = config, tokenizer, labels, dict(special)

    @classmethod
    @abc.abstractmethod
    def read(cls, config: Config, source: Source, role: Role) -> tuple[list[Any], list[str]]:
        """(examples, warnings) of a file, of its contents, or of a TFDS name.

        The same source gives the same examples in every role; "predict" reads no labels, and needs none.
        """

    @classmethod
    @abc.abstractmethod
    def parse(cls, config: Config, record: Record, place: str, name: str, role: Role = "predict") -> Any:
        """The example of one record: an object with the task's fields, or a text where the task reads such.

        place: what errors name, such as "standard input, line 3". name: the example's id where the record has none.
        """

    @classmethod
    def labels_of(cls, config: Config, examples: Sequence[Any]) -> tuple[str, ...]:
        """The labels of the training examples, in the classifier's order; none where a task has no such."""
        return ()

    @classmethod
    def special_of(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[Any]) -> dict[str, int]:
        """What `special` is for these training examples."""
        return {}

    def check(self, examples: Sequence[Any], source: str) -> None:  # noqa: B027  # most tasks have nothing to check
        """Raises UserError, naming `source`, where dev's examples do not fit what was learnt from train's."""

    @abc.abstractmethod
    def featuriser(self, role: Role) -> Featurise:
        """Makes rows of examples, in worker processes: without JAX or TensorFlow."""

    @abc.abstractmethod
    def model(self, platform: str) -> Any:
        """The model, for `jax.Device.platform`."""

    def init_params(self, model: Any, key: jax.Array) -> Any:
        """Fresh parameters."""
        return linear_heads.init_params(model, key)

    @abc.abstractmethod
    def objective(self, model: Any) -> Objective:
        """The loss, whose sums have "loss", "count" and "pieces"."""

    @abc.abstractmethod
    def outputs(self, model: Any, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """What decoding needs: arrays [batch, ...], without dropout."""

    @abc.abstractmethod
    def decode(
        self,
        examples: Sequence[Any],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """One prediction an example. outputs: of each row. tuned: the kept evaluation's metrics; empty in the first."""

    @abc.abstractmethod
    def metrics(self, examples: Sequence[Any], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The community's metrics, by name, `best` among them."""

    @abc.abstractmethod
    def baseline(self, train: Sequence[Any], examples: Sequence[Any]) -> list[Prediction]:
        """A guess without a model, from the training examples: what the metrics are to be compared with."""

    @abc.abstractmethod
    def write(self, examples: Sequence[Any], predictions: Sequence[Prediction], directory: Path) -> Path:
        """Writes the community's own file of predictions; returns its path."""


def row_logits(
    model: Any, params: Any, batch: Batch, key: jax.Array | None = None, rows: jax.Array | None = None
) -> jax.Array:
    """`linear_heads.apply` to a batch of rows."""
    return linear_heads.apply(model, params, batch["input_ids"], batch["lengths"], batch["token_type_ids"], key, rows)


def cross_entropy_sum(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum of the cross-entropy; float32 [..., classes], int32 [...], float32 [...]."""
    # A comparison, not a lookup: it fuses, where a lookup's gradient is a scatter over all of the logits.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    chosen = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - chosen) * weights)


def mean_loss(summed: jax.Array, weights: jax.Array, count: jax.Array, batch: Batch) -> tuple[jax.Array, Sums]:
    """What an objective's `loss` returns: summed over `weights`, divided by the whole batch's `count`; and the sums."""
    pieces = jnp.sum(batch["lengths"]).astype(jnp.float32)
    return summed / jnp.maximum(count, 1.0), {"loss": summed, "count": jnp.sum(weights), "pieces": pieces}
