"""A fine-tuning task with a configuration section and batches of its own: documents of several segments.

A batch is [documents, segments, length], with a label for each document. `install` registers the task for the time of
a test.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax import config as config_module
from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape
from spanbert_jax.config import Config
from spanbert_jax.model import linear_heads
from spanbert_jax.model.linear_heads import TaskModel
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.finetuning import NOTHING, FineTuning, Learnt, Prediction, cross_entropy_sum, mean_loss
from spanbert_jax.tasks.rows import Featurise, Row, Rows
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.step import BatchSize, Objective, Sums


@dataclasses.dataclass(frozen=True)
class ToySection:
    segments: int = 3  # of a document; the rest is cut


@dataclasses.dataclass(frozen=True)
class ToyConfig(Config):
    toy: ToySection = ToySection()


def install(patch: pytest.MonkeyPatch) -> None:
    """Makes the two changes of an added task: a section of the configuration, and a row of the table of tasks."""
    patch.setattr(config_module, "Config", ToyConfig)
    patch.setitem(config_module.FINETUNING, "toy", "tests.support.toy_task")


@dataclasses.dataclass(frozen=True)
class Document:
    id: str
    segments: tuple[str, ...]
    label: str


@dataclasses.dataclass(frozen=True)
class DocumentRows:
    tokenizer: Tokenizer
    segments: int
    length: int
    labels: tuple[str, ...]

    def __call__(self, examples: Sequence[Document]) -> list[list[Row]]:
        return [[self._row(example)] for example in examples]

    def _row(self, example: Document) -> Row:
        cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
        encoded = self.tokenizer.tokenize_batch(list(example.segments[: self.segments]))
        segments = [[cls, *ids[: self.length - 2], sep] for ids in encoded]
        return {
            "input_ids": [piece for segment in segments for piece in segment],
            "segment_lengths": [len(segment) for segment in segments],
            "label": self.labels.index(example.label),
        }


class DocumentBatches:
    """Documents in the order of the file, which is repeated without end, cut into batches."""

    def __init__(self, task: "Toy", rows: Rows, size: int):
        self._task, self._rows, self._size = task, rows, size
        self.steps_per_epoch = -(-len(rows) // size)

    def batch(self, step: int) -> NumpyBatch:
        length = self._task.shapes(1)[0].length
        return self._task.batch_of([self._rows.row(number) for number in self.rows(step)], Shape(self._size, length))

    def rows(self, step: int) -> np.ndarray:
        return np.arange(step * self._size, (step + 1) * self._size) % len(self._rows)


class Toy(FineTuning[Document, TaskModel]):
    task = "toy"
    settings: ClassVar[tuple[str, ...]] = ("data.block_length", "toy")
    best = "accuracy"

    @classmethod
    def read(
        cls, config: Config, source: Source, role: Role, learnt: Learnt = NOTHING
    ) -> tuple[list[Document], list[str]]:
        lines = [line.split("\t") for line in Path(str(source)).read_text().splitlines()]
        return [Document(str(i), tuple(text.split(" | ")), label) for i, (label, text) in enumerate(lines)], []

    def parse(self, record: Record, place: str, name: str) -> Document:
        return Document(name, tuple(str(record).split(" | ")), self.learnt.labels[0])

    @classmethod
    def learn(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[Document]) -> Learnt:
        return Learnt(tuple(sorted({example.label for example in examples})))

    @classmethod
    def row_maker(cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role) -> Featurise[Document]:
        assert not hasattr(settings, "optimizer")  # nothing but what is declared
        return DocumentRows(tokenizer, settings.toy.segments, settings.data.block_length, learnt.labels)  # type: ignore[attr-defined]

    def shapes(self, multiple: int) -> list[Shape]:
        return [Shape(4 * multiple, self.config.toy.segments * self.config.data.block_length)]  # type: ignore[attr-defined]

    def fields(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(of.shape, of.dtype) for name, of in self.batch_of([], shape).items()}

    def batch_of(self, rows: Sequence[Mapping[str, Any]], shape: Shape) -> NumpyBatch:
        """{"input_ids": [documents, segments, length], "lengths": [documents, segments], "label": [documents], ...}"""
        length = self.config.data.block_length
        segments = shape.length // length
        batch = {
            "input_ids": np.zeros((shape.rows, segments, length), np.int32),
            "lengths": np.zeros((shape.rows, segments), np.int32),
            "label": np.zeros(shape.rows, np.int32),
            "weights": (np.arange(shape.rows) < len(rows)).astype(np.float32),
        }
        for place, row in enumerate(rows):
            batch["label"][place] = row["label"]
            lengths = row["segment_lengths"]
            batch["lengths"][place, : len(lengths)] = lengths
            for segment, ids in enumerate(np.split(row["input_ids"], np.cumsum(lengths)[:-1])):
                batch["input_ids"][place, segment, : len(ids)] = ids
        return batch

    def train_batches(self, rows: Rows, config: Config) -> DocumentBatches:
        return DocumentBatches(self, rows, config.train.batch_size)

    def batch_size(self, batch: Batch) -> BatchSize:
        documents, segments, length = batch["input_ids"].shape
        return BatchSize(documents, 1.0, f"documents of {segments} segments of {length} pieces")

    def model(self, platform: str) -> TaskModel:
        labels = len(self.learnt.labels)
        return linear_heads.task_model(
            "sequence_classification", self.config, self.tokenizer.vocab_size, labels, platform
        )

    def init_params(self, model: TaskModel, key: jax.Array) -> dict[str, Any]:
        return linear_heads.init_params(model, key)

    def logits(self, model: TaskModel, params: dict[str, Any], batch: Batch, key: Any, rows: Any) -> jax.Array:
        """[documents, labels]: the mean over the segments that are there."""
        documents, segments, length = batch["input_ids"].shape
        flat = batch["input_ids"].reshape(-1, length), batch["lengths"].reshape(-1)
        numbers = None  # of the segments among all of the batch: dropout is keyed by them
        if rows is not None:
            numbers = (rows[:, None] * segments + jnp.arange(segments, dtype=rows.dtype)).reshape(-1)
        each = linear_heads.apply(model, params, *flat, jnp.zeros_like(flat[0]), key, numbers)
        present = (batch["lengths"] > 0).astype(jnp.float32)[..., None]
        summed = jnp.sum(each.reshape(documents, segments, -1) * present, axis=1)
        return summed / jnp.maximum(jnp.sum(present, axis=1), 1.0)

    def objective(self, model: TaskModel) -> Objective:
        def loss(params: Any, batch: Batch, count: jax.Array, key: Any, rows: Any) -> tuple[jax.Array, Sums]:
            logits = self.logits(model, params, batch, key, rows)
            summed = cross_entropy_sum(logits, batch["label"], batch["weights"])
            return mean_loss(summed, batch["weights"], count, batch)

        return Objective(lambda batch: jnp.sum(batch["weights"]), loss)

    def outputs(self, model: TaskModel, params: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        return {"label": jnp.argmax(self.logits(model, params, batch, None, None), axis=-1)}

    def decode(
        self,
        examples: Sequence[Document],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        found = [self.learnt.labels[int(output["label"])] for output in outputs]
        return [{"id": example.id, "label": label} for example, label in zip(examples, found, strict=True)]

    def metrics(self, examples: Sequence[Document], predictions: Sequence[Prediction]) -> dict[str, float]:
        right = [e.label == p["label"] for e, p in zip(examples, predictions, strict=True)]
        return {"accuracy": 100 * float(np.mean(right))}

    def baseline(self, train: Sequence[Document], examples: Sequence[Document]) -> list[Prediction]:
        commonest = Counter(one.label for one in train).most_common(1)[0][0]
        return [{"id": example.id, "label": commonest} for example in examples]

    def write(self, examples: Sequence[Document], predictions: Sequence[Prediction], directory: Path) -> Path:
        (directory / "predictions.txt").write_text("".join(f"{p['label']}\n" for p in predictions))
        return directory / "predictions.txt"


def task_class(config: Config) -> type[Toy]:
    return Toy
