"""Shared parts of the tasks whose model gives one label or one number to a whole row.

Invariant: rows have a column "label": the index of the label in `Learnt.labels` or, in a regression, the number itself.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spanbert_jax.batch import Batch
from spanbert_jax.errors import UserError, listed, quoted, shortened
from spanbert_jax.model import linear_heads
from spanbert_jax.model.linear_heads import TaskModel
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, cross_entropy_sum, mean_loss, row_logits
from spanbert_jax.tasks.rows import Row
from spanbert_jax.training.step import Objective, Sums


class SequenceTask(FineTuning[ExampleT, TaskModel]):
    """A task whose model is BERT's pooler with a linear map to labels, or to one number."""

    regression = False  # whether the model gives a number

    def model(self, platform: str) -> TaskModel:
        labels, vocab_size = len(self.learnt.labels), self.tokenizer.vocab_size
        return linear_heads.task_model("sequence_classification", self.config, vocab_size, labels, platform)

    def init_params(self, model: TaskModel, key: jax.Array) -> dict[str, Any]:
        return linear_heads.init_params(model, key)

    def objective(self, model: TaskModel) -> Objective:
        return sequence_objective(model, self.regression)

    def outputs(self, model: TaskModel, params: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """ "scores": float32 [batch, labels], the labels' probabilities; in a regression float32 [batch, 1], the
        number."""
        logits = self.logits(model, params, batch)
        return {"scores": logits if self.regression else jax.nn.softmax(logits)}

    def logits(self, model: TaskModel, params: dict[str, Any], batch: Batch) -> jax.Array:
        """Float32 [batch, labels]."""
        return row_logits(model, params, batch)

    def cells(self, example: ExampleT, rows: Sequence[Row], target: Any) -> dict[int, list[int]]:
        """The logit of the label that `target` names."""
        labels = self.learnt.labels
        if target not in labels:
            raise UserError(
                f"target is {quoted(target)}; it must be one of the labels {listed([*map(repr, labels)], 50)}"
            )
        return {0: [labels.index(target)]}

    def refuse_new_labels(self, labels: Sequence[tuple[str, str]], source: str, name: str) -> None:
        """Raises UserError where a label is not among those of the training data.

        labels: (id of an example, its label) of each example. name: the word for a label in the message.
        """
        unseen = [(id, label) for id, label in labels if label not in self.learnt.labels]
        if unseen:
            id, label = unseen[0]
            raise UserError(
                f"{source}: {len(unseen):,} of {len(labels):,} examples have a {name} that config.data.train lacks, "
                f"the first is {shortened(id)} with {quoted(label)}; config.data.train has "
                f"{listed(self.learnt.labels, 50)}; train on examples of every {name}, or take these examples out"
            )


def sequence_objective(model: TaskModel, regression: bool) -> Objective:
    """The mean cross-entropy or, in a regression, the mean squared error over the rows that are not empty."""

    def totals(batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def loss(
        params: dict[str, Any], batch: Batch, count: jax.Array, key: jax.Array | None, row_numbers: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        logits = row_logits(model, params, batch, key, row_numbers)
        weights = batch["weights"]
        if regression:
            summed = jnp.sum(jnp.square(logits[:, 0] - batch["label"]) * weights)
        else:
            summed = cross_entropy_sum(logits, batch["label"], weights)
        return mean_loss(summed, weights, count, batch)

    return Objective(totals, loss)
