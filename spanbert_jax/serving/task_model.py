"""A fine-tuned task as a model of the engine.

Invariant: rows, outputs and predictions are the task's own, whoever asks: a file, a Python caller, or a request.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape
from spanbert_jax.serving.compiled_model import CompiledModel
from spanbert_jax.serving.predictor import AbstractBatch, Params
from spanbert_jax.serving.scheduler import Output, Row
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import Record, checked_record
from spanbert_jax.tasks.finetuning import Learnt, Prediction
from spanbert_jax.tasks.registry import AnyTask, finetuning_task
from spanbert_jax.tasks.rows import make_rows
from spanbert_jax.training.metadata import Metadata


class Predicted(NamedTuple):
    """The answer of a fine-tuned task."""

    prediction: Prediction  # as tools/predict.py writes it
    outputs: list[Output]  # of each row


class TaskModel(CompiledModel):
    """The predictions of a fine-tuned task for records."""

    def __init__(self, name: str, weights: Weights, params: Params, layout: NamedSharding, deterministic: bool = False):
        """Raises UserError where the weights were not fine-tuned."""
        self.task, self._tuned = trained_task(weights), kept_metrics(weights.metadata)
        task, model = self.task, self.task.model(layout.mesh.devices.flat[0].platform)
        self._featurise = task.featuriser("predict")

        def compute(params: Params, batch: Batch) -> dict[str, jax.Array]:
            return task.outputs(model, params, batch)

        super().__init__(name, compute, params, layout, task.shapes, deterministic)

    def fields(self, shape: Shape) -> AbstractBatch:
        """The arrays of a batch of the shape."""
        return self.task.fields(shape)

    def batch(self, rows: Sequence[Row], shape: Shape) -> NumpyBatch:
        """The batch of the rows."""
        return self.task.batch_of(rows, shape)

    def rows(self, items: Sequence[Record]) -> list[list[Row]]:
        """The rows of each record; raises UserError, naming inputs[i], where the task cannot read a record."""
        return [list(rows) for rows in self._featurise(self._examples(items))]

    def _examples(self, items: Sequence[Record]) -> list[Any]:
        named = ((f"inputs[{i}]", str(i), record) for i, record in enumerate(items))
        return [self.task.parse(checked_record(record, place), place, name) for place, name, record in named]

    def answer(self, items: Sequence[Record], rows: list[list[Row]], outputs: list[list[Output]]) -> list[Predicted]:
        """The predictions, with the outputs that they come from."""
        predictions = self.decode(self._examples(items), rows, outputs)
        return [Predicted(*of) for of in zip(predictions, outputs, strict=True)]

    def decode(
        self, examples: Sequence[Any], rows: Sequence[Sequence[Row]], outputs: Sequence[Sequence[Output]]
    ) -> list[Prediction]:
        """One prediction for each example, from the outputs of its rows."""
        flat = [output for of in outputs for output in of]
        return self.task.decode(examples, make_rows(rows), flat, self._tuned) if examples else []


def trained_task(weights: Weights) -> AnyTask:
    """The task that the weights were fine-tuned for; raises UserError where they were not fine-tuned."""
    saved = weights.metadata
    kind = finetuning_task(saved.task if saved else "of others' weights", weights.config)
    return kind(weights.config, weights.tokenizer, Learnt.from_metadata(saved) if saved else Learnt())


def kept_metrics(metadata: Metadata | None) -> dict[str, float]:
    """The held-out metrics, by name, for which a checkpoint was kept as the best one; {} for any other checkpoint."""
    saved = metadata.evaluation if metadata else {}
    return {name.removeprefix("held_out/"): value for name, value in saved.items()}
