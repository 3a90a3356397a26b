"""Predicts with a task's model while it trains.

Invariant: the parameters are those of the call, and predictions are those that `serving/answers.py` makes with them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Generic

from jax.sharding import NamedSharding

from spanbert_jax.serving.predictor import Params, Predictor
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, ModelT, Prediction
from spanbert_jax.tasks.rows import Rows
from spanbert_jax.training.progress import Show, Stage, quiet


class TaskPredictor(Generic[ExampleT, ModelT]):
    """Predicts for examples whose rows are there already."""

    def __init__(self, task: FineTuning[ExampleT, ModelT], layout: NamedSharding):
        """layout: divides the rows of a batch among the devices."""
        self._task = task
        model = task.model(layout.mesh.devices.flat[0].platform)
        self._predictor = Predictor(functools.partial(task.outputs, model), layout)
        self.place = self._predictor.place

    def predictions(
        self,
        params: Params,
        examples: Sequence[ExampleT],
        rows: Rows,
        tuned: Mapping[str, float],
        show: Show = quiet,
    ) -> list[Prediction]:
        """One prediction for each example. rows: the examples' rows. tuned: as for `FineTuning.decode`."""
        batches = self._task.eval_batches(rows, self._predictor.multiple)
        return self._task.decode(examples, rows, self._predictor.outputs(params, batches, len(rows), show), tuned)

    def shown(
        self, params: Params, examples: Sequence[ExampleT], rows: Rows, tuned: Mapping[str, float], enabled: bool
    ) -> list[Prediction]:
        """`predictions`, with a progress display where `enabled`."""
        with Stage("Predicting", enabled=enabled) as stage:
            return self.predictions(
                params, examples, rows, tuned, lambda done: stage.update(done, f"{done * len(rows):,.0f} rows")
            )
