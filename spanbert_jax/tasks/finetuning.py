"""What a fine-tuning task supplies: its reader, rows, batches, head, loss, decoding and metrics.

Invariant: the runner, the predictor and the evaluator know a task by this class alone; none asks which task it is. Rows
are a function of the examples, the vocabulary, `Learnt`, the role and the declared settings, and of nothing else.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape, plan_batches, shape_table
from spanbert_jax.config import Config
from spanbert_jax.model import linear_heads
from spanbert_jax.tasks.entities.words import NO_STYLE, WordStyle
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.rows import Featurise, RowBatches, Rows
from spanbert_jax.tasks.settings import declared
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training import flops
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.step import BatchSize, Objective, Sums

Prediction = dict[str, Any]  # the answer for one example, as JSON: "id", offsets, text, score, ...


class Identified(Protocol):
    """An example of any task."""

    @property
    def id(self) -> str:
        """What predictions and messages name the example by."""


class TrainBatches(Protocol):
    """The training batches of one run."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every row comes once."""

    def batch(self, step: int) -> NumpyBatch:
        """The batch of a step, a pure function of the step; called by one thread, in any order of steps.

        The first axis of every array is the batch's: devices and microbatches divide that axis.
        """


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What a task takes from its training examples before training, and a checkpoint keeps."""

    labels: tuple[str, ...] = ()  # in the classifier's order; none where a task has no labels
    special: Mapping[str, int] = dataclasses.field(default_factory=dict)  # relations: name -> the piece that means it
    nested: bool = False  # span head: entities lie within entities, so predicted ones may
    words: WordStyle = NO_STYLE  # entities: how plain text is cut into words

    @classmethod
    def from_metadata(cls, saved: Metadata) -> "Learnt":
        """What a checkpoint kept."""
        return cls(saved.labels, saved.special, saved.nested, WordStyle.from_json(saved.words))


NOTHING = Learnt()

ExampleT = TypeVar("ExampleT", bound=Identified)
ModelT = TypeVar("ModelT")


class FineTuning(abc.ABC, Generic[ExampleT, ModelT]):
    """What one task supplies; an instance is a task with its configuration, vocabulary and what it has learnt.

    The defaults are those of a task whose batches are [rows, length]. A task whose batches have other axes overrides
    `train_batches`, `eval_batches`, `eval_shapes` and `batch_size` together.
    """

    task: ClassVar[str]  # config.task, and the checkpoint's
    # Config fields ("data.block_length") and sections on which `read` and `row_maker` depend: the rows' cache has a key
    # that is made from them.
    settings: ClassVar[tuple[str, ...]]
    best: str  # the metric of which the highest value is kept
    padding: ClassVar[Mapping[str, int]] = {}  # of ragged columns, where it is not 0
    # What `outputs` reads of a batch, int32 all: a field -> its number of axes, 1 of [batch], 2 of [batch, length].
    inputs: ClassVar[Mapping[str, int]] = {"input_ids": 2, "lengths": 1, "token_type_ids": 2}

    def __init__(self, config: Config, tokenizer: Tokenizer, learnt: Learnt):
        self.config, self.tokenizer, self.learnt = config, tokenizer, learnt

    @classmethod
    @abc.abstractmethod
    def read(
        cls, config: Config, source: Source, role: Role, learnt: Learnt = NOTHING
    ) -> tuple[list[ExampleT], list[str]]:
        """(examples, warnings) of a file, of its contents, or of a TFDS name.

        The same source gives the same examples in every role; "predict" reads no labels, and needs none. config: a run
        gives the declared `settings` of it alone. learnt: what a trained task knows, to read what it has to predict.
        """

    @abc.abstractmethod
    def parse(self, record: Record, place: str, name: str) -> ExampleT:
        """The example of one record to predict for: an object with the task's fields, or a text where it reads such.

        place: what errors name, such as "standard input, line 3". name: the example's id where the record has none.
        """

    @classmethod
    def learn(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[ExampleT]) -> Learnt:
        """What the task takes from the training examples; raises UserError where they lack something."""
        return Learnt()

    def check(self, examples: Sequence[ExampleT], source: str) -> None:
        """Raises UserError, naming `source`, where dev's examples do not fit what was learnt from train's."""

    @classmethod
    @abc.abstractmethod
    def row_maker(cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role) -> Featurise[ExampleT]:
        """Makes rows of examples, in worker processes: without JAX or TensorFlow. settings: the declared ones alone."""

    @final
    def featuriser(self, role: Role) -> Featurise[ExampleT]:
        """`row_maker` for this task's configuration."""
        return self.row_maker(declared(self.config, self.settings), self.tokenizer, self.learnt, role)

    def train_batches(self, rows: Rows, config: Config) -> TrainBatches:
        """The training batches of a run; config: the task's, with the seed of the trial."""
        return RowBatches(rows, config, self.padding)

    def eval_shapes(self, multiple: int) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """Every shape that a batch of `eval_batches` may have, whatever the rows are."""
        return [
            {name: jax.ShapeDtypeStruct(shape[:axes], np.int32) for name, axes in self.inputs.items()}
            for shape in self._shape_table(multiple)
        ]

    def eval_batches(self, rows: Rows, multiple: int) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
        """Every row once: (int64 row numbers, -1 for none; the batch of these rows, and nothing else, in this order).

        A batch has the `inputs` alone, and `multiple` divides the number of its rows.
        """
        for indices, shape in plan_batches(rows.lengths, self._shape_table(multiple)):
            batch = rows.collate(indices, shape.length, self.padding)
            yield indices, {name: batch[name] for name in self.inputs}

    def _shape_table(self, multiple: int) -> tuple[Shape, ...]:
        return shape_table(self.config.data.block_length, self.config.data.lengths, multiple)

    def batch_size(self, batch: Batch) -> BatchSize:
        """How large a training batch is; depends on its shapes alone."""
        rows, length = batch["input_ids"].shape
        return BatchSize(rows, rows * flops.encoder_flops(self.config.model, length), f"rows of {length} pieces")

    @abc.abstractmethod
    def model(self, platform: str) -> ModelT:
        """The model, for `jax.Device.platform`."""

    @abc.abstractmethod
    def init_params(self, model: ModelT, key: jax.Array) -> dict[str, Any]:
        """Fresh parameters."""

    @abc.abstractmethod
    def objective(self, model: ModelT) -> Objective:
        """The loss, whose sums have "loss", "count" and "pieces"."""

    @abc.abstractmethod
    def outputs(self, model: ModelT, params: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """What decoding needs: arrays [batch, ...], without dropout."""

    @abc.abstractmethod
    def decode(
        self,
        examples: Sequence[ExampleT],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """One prediction an example. outputs: of each row. tuned: the kept evaluation's metrics; empty in the first."""

    @abc.abstractmethod
    def metrics(self, examples: Sequence[ExampleT], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The community's metrics, by name, `best` among them."""

    @abc.abstractmethod
    def baseline(self, train: Sequence[ExampleT], examples: Sequence[ExampleT]) -> list[Prediction]:
        """A guess without a model, from the training examples: what the metrics are to be compared with."""

    @abc.abstractmethod
    def write(self, examples: Sequence[ExampleT], predictions: Sequence[Prediction], directory: Path) -> Path:
        """Writes the community's own file of predictions; returns its path."""


def row_logits(
    model: linear_heads.TaskModel,
    params: dict[str, Any],
    batch: Batch,
    key: jax.Array | None = None,
    rows: jax.Array | None = None,
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
