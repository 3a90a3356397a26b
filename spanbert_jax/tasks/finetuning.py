"""The interface of a fine-tuning task: its reader, rows, batches, head, loss, decoding and metrics.

Invariant: the runner, the predictor and the evaluator use a task through this class alone, and never ask which task it
is. Rows are a function of the examples, the vocabulary, `Learnt`, the role and the declared settings alone.
"""

import abc
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape, plan_batches, shape_table
from spanbert_jax.config import Config, reads_spans
from spanbert_jax.errors import UserError, quoted, shortened
from spanbert_jax.model import linear_heads
from spanbert_jax.tasks.entities.words import NO_STYLE, WordStyle
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.row_spans import RowsWithSpans
from spanbert_jax.tasks.rows import Featurise, Row, RowBatches, Rows
from spanbert_jax.tasks.settings import declared
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training import flops
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.step import BatchSize, Objective, Sums

Prediction = dict[str, Any]  # the answer for one example, as JSON: "id", offsets, text, score, ...


class Identified(Protocol):
    """An example of any task."""

    @property
    def id(self) -> str:
        """The example's name in predictions and messages."""


class TrainBatches(Protocol):
    """The training batches of one run."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in which every row comes once."""

    def batch(self, step: int) -> NumpyBatch:
        """The batch of a step, which is a pure function of the step. One thread calls this, in any order of steps.

        Devices and microbatches divide the first axis of every array.
        """

    def rows(self, step: int) -> np.ndarray:
        """The numbers, int64 and from 0, of the training rows in the batch of a step; -1: an empty row."""


@dataclasses.dataclass(frozen=True)
class Learnt:
    """Facts that a task takes from its training examples before training, and that a checkpoint keeps."""

    labels: tuple[str, ...] = ()  # in the classifier's order; () for a task without labels
    special: Mapping[str, int] = dataclasses.field(default_factory=dict)  # relations: name -> id of its special piece
    nested: bool = False  # span head: whether entities lie within entities, so that predicted ones may
    words: WordStyle = NO_STYLE  # entities: how plain text is cut into words

    @classmethod
    def from_metadata(cls, saved: Metadata) -> "Learnt":
        """The facts that a checkpoint kept. Raises UserError where they are not as they were written."""
        try:
            return cls(saved.labels, saved.special, saved.nested, WordStyle.from_json(saved.words))
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"the checkpoint's metadata has {quoted(saved.words)} as words, and not what it was written with "
                f"({shortened(error)}); restore it, or name another one"
            ) from error


NOTHING = Learnt()

ExampleT = TypeVar("ExampleT", bound=Identified)
ModelT = TypeVar("ModelT")


class FineTuning(abc.ABC, Generic[ExampleT, ModelT]):
    """A fine-tuning task with its configuration, its vocabulary, and the facts learnt from its training examples.

    The default methods are for batches of [rows, length]. A task whose batches have other axes overrides
    `train_batches`, `shapes`, `fields`, `batch_of` and `batch_size` together.
    """

    task: ClassVar[str]  # the task's name in config.task and in checkpoints
    # The config fields ("data.block_length") and sections on which `read` and `row_maker` depend. The key of the rows'
    # cache is made from them.
    settings: ClassVar[tuple[str, ...]]
    best: str  # the metric whose highest value decides which checkpoint is kept
    padding: ClassVar[Mapping[str, int]] = {}  # ragged column -> padding that is not 0
    reads_words: ClassVar[bool] = False  # whether `row_maker` encodes each word of an example by itself
    # The fields of an example with its texts, or its words where `reads_words`; () where the task's predictions cannot
    # be explained (serving/explaining.py). A task with texts overrides `logits`, `cells` and `target_of`.
    texts: ClassVar[tuple[str, ...]] = ()
    # The fields of a batch that `outputs` reads, all int32: name -> number of axes, 1 for [batch], 2 for [batch,
    # length].
    inputs: Mapping[str, int] = {"input_ids": 2, "lengths": 1, "token_type_ids": 2}

    def __init__(self, config: Config, tokenizer: Tokenizer, learnt: Learnt):
        self.config, self.tokenizer, self.learnt = config, tokenizer, learnt
        if reads_spans(config.model):
            self.inputs = {**self.inputs, "span_tags": 2}

    @classmethod
    @abc.abstractmethod
    def read(
        cls, config: Config, source: Source, role: Role, learnt: Learnt = NOTHING
    ) -> tuple[list[ExampleT], list[str]]:
        """(examples, warnings) of a file, of a file's contents, or of a TFDS name.

        Every role reads a source in the same way, but "predict" reads no labels, and so leaves no example out for its
        label. config: only its declared `settings` may be read. learnt: the facts that a trained task keeps, for
        reading examples to predict for. Raises UserError, naming the place, where the data cannot be read.
        """

    @abc.abstractmethod
    def parse(self, record: Record, place: str, name: str) -> ExampleT:
        """The example of one record to predict for: an object with the task's fields or, where the task reads texts, a
        text.

        place: the record's name in errors, such as "standard input, line 3". name: the example's id where the record
        has none. Raises UserError, naming `place`, where the task cannot read the record.
        """

    @classmethod
    def learn(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[ExampleT]) -> Learnt:
        """The facts that the task takes from the training examples; raises UserError where they do not suffice."""
        return Learnt()

    def check(self, examples: Sequence[ExampleT], source: str) -> None:
        """Raises UserError, naming `source`, where dev examples do not fit the facts learnt from the training examples,
        such as labels that training lacks."""

    @classmethod
    @abc.abstractmethod
    def row_maker(cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role) -> Featurise[ExampleT]:
        """A function from examples to rows, which worker processes call without JAX or TensorFlow. settings: a view of
        the configuration in which only the declared settings can be read."""

    @final
    def featuriser(self, role: Role) -> Featurise[ExampleT]:
        """`row_maker` for this task's configuration, with span tags where the encoder reads them."""
        maker = self.row_maker(declared(self.config, self.settings), self.tokenizer, self.learnt, role)
        if not reads_spans(self.config.model):
            return maker
        corpus = self.config.corpus
        return RowsWithSpans(maker, self.tokenizer, self.finder, corpus.language, corpus.sentences)

    @functools.cached_property
    def finder(self) -> SpanFinder:
        """The rules of an encoder that reads spans. Making them reads their files, so requests share them."""
        return SpanFinder(self.config.corpus.spans)

    def train_batches(self, rows: Rows, config: Config) -> TrainBatches:
        """The training batches of a run. config: the task's configuration with the seed of the trial."""
        return RowBatches(rows, config, self.padding)

    def shapes(self, multiple: int) -> Sequence[Shape]:
        """Every shape of batch outside of training, for any rows: the number of rows, a multiple of `multiple`, and the
        most pieces that a row may have."""
        return shape_table(self.config.data.block_length, self.config.data.lengths, multiple)

    def fields(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a batch of the shape, which `outputs` takes."""
        return {name: jax.ShapeDtypeStruct(shape[:axes], np.int32) for name, axes in self.inputs.items()}

    def batch_of(self, rows: Sequence[Mapping[str, Any]], shape: Shape) -> NumpyBatch:
        """The batch of at most shape.rows rows, for `outputs`. Its last rows may be empty."""
        batch = {
            name: np.full(of.shape, self.padding.get(name, 0), of.dtype) for name, of in self.fields(shape).items()
        }
        for place, row in enumerate(rows):
            for name, axes in self.inputs.items():
                if name == "lengths":
                    batch[name][place] = len(row["input_ids"])
                elif axes == 1:
                    batch[name][place] = row[name]
                else:
                    batch[name][place, : len(row[name])] = row[name]
        return batch

    @final
    def eval_batches(self, rows: Rows, multiple: int) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
        """Batches in which every row comes once: (int64 [batch] row numbers, -1 for an empty row; the batch).
        multiple: as for `shapes`."""
        for indices, shape in plan_batches(rows.lengths, self.shapes(multiple)):
            yield indices, self.batch_of([rows.row(number) for number in indices if number >= 0], shape)

    def batch_size(self, batch: Batch) -> BatchSize:
        """The size of a training batch, which depends on the batch's shapes alone."""
        rows, length = batch["input_ids"].shape
        return BatchSize(rows, rows * flops.encoder_flops(self.config, length), f"rows of {length} pieces")

    @abc.abstractmethod
    def model(self, platform: str) -> ModelT:
        """The model for a platform, a `jax.Device.platform`."""

    @abc.abstractmethod
    def init_params(self, model: ModelT, key: jax.Array) -> dict[str, Any]:
        """Fresh parameters."""

    @abc.abstractmethod
    def objective(self, model: ModelT) -> Objective:
        """The training objective, whose sums have the keys "loss", "count" and "pieces"."""

    @abc.abstractmethod
    def outputs(self, model: ModelT, params: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """The arrays [batch, ...] that `decode` needs, computed without dropout."""

    def logits(self, model: ModelT, params: dict[str, Any], batch: Batch) -> jax.Array:
        """The head's scores before any softmax, float32 [batch, ...], computed without dropout."""
        raise NotImplementedError

    def cells(self, example: ExampleT, rows: Sequence[Row], target: Any) -> dict[int, list[int]]:
        """The numbers in the rows' logits whose sum the target stands for: the number of a row -> places in the
        flattened logits of this row, whose first axis may be padded. Several rows stand for one target where the
        lowest of their sums counts.

        rows: all rows of the example. target: in the form that `target_of` returns. Raises UserError where the model
        has no such target.
        """
        raise NotImplementedError

    def target_of(self, prediction: Prediction) -> Any:
        """The target that a prediction chose, as JSON; raises UserError where it chose none."""
        raise NotImplementedError

    @abc.abstractmethod
    def decode(
        self,
        examples: Sequence[ExampleT],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """One prediction for each example. outputs: of each row. tuned: the metrics of the evaluation for which the
        checkpoint was kept, such as a threshold; {} while there is none."""

    @abc.abstractmethod
    def metrics(self, examples: Sequence[ExampleT], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The task's usual metrics by name, `best` among them."""

    @abc.abstractmethod
    def baseline(self, train: Sequence[ExampleT], examples: Sequence[ExampleT]) -> list[Prediction]:
        """Predictions without a model, from the training examples alone, for comparison with a model's metrics."""

    @abc.abstractmethod
    def write(self, examples: Sequence[ExampleT], predictions: Sequence[Prediction], directory: Path) -> Path:
        """Writes the predictions in the official scorer's format; returns the file's path."""


def row_logits(
    model: linear_heads.TaskModel,
    params: dict[str, Any],
    batch: Batch,
    key: jax.Array | None = None,
    row_numbers: jax.Array | None = None,
) -> jax.Array:
    """The logits of a linear head for a batch of rows, by `linear_heads.apply`."""
    inputs = (batch["input_ids"], batch["lengths"], batch["token_type_ids"])
    optional = (batch.get("span_tags"), batch.get("word_vectors"))
    return linear_heads.apply(model, params, *inputs, key, row_numbers, *optional)


def checked_span(target: Any, text: str, form: str) -> tuple[Any, ...]:
    """The target as a tuple that begins with characters (start, end) of the text; raises UserError where it is none.

    form: how a target is written, for the message, such as "(start, end)".
    """
    if isinstance(target, list | tuple) and len(target) == form.count(",") + 1:
        start, end = target[:2]
        if type(start) is int and type(end) is int and 0 <= start < end <= len(text):
            return tuple(target)
    raise UserError(f"target is {quoted(target)}; expected {form}, characters of a text that has {len(text)}")


def cross_entropy_sum(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum of the cross-entropy. logits: float32 [..., classes]; labels: int32 [...]; weights: float32
    [...]."""
    # The label's logit is found by a comparison, which XLA fuses. The gradient of a lookup would be a scatter.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    chosen = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - chosen) * weights)


def mean_loss(summed: jax.Array, weights: jax.Array, count: jax.Array, batch: Batch) -> tuple[jax.Array, Sums]:
    """The return value of an objective's `loss`: (the loss, the sums).

    summed: the loss summed over the weighted items of this microbatch. count: the weights' sum over the whole batch, by
    which `summed` is divided.
    """
    pieces = jnp.sum(batch["lengths"]).astype(jnp.float32)
    return summed / jnp.maximum(count, 1.0), {"loss": summed, "count": jnp.sum(weights), "pieces": pieces}
