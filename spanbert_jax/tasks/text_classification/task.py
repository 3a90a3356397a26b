"""Text classification: one or two texts to a label, or to a number (STS-B).

Invariant: labels are numbered as `labels_of` orders them, and the checkpoint keeps that order. Facts: SpanBERT's
run_glue.py; GLUE's metrics.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.metrics import classification
from spanbert_jax.model import linear_heads
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.finetuning import FineTuning, Prediction, cross_entropy_sum, mean_loss, row_logits
from spanbert_jax.tasks.rows import Featurise, Rows
from spanbert_jax.tasks.text_classification import files
from spanbert_jax.tasks.text_classification.rows import TextRows
from spanbert_jax.training.step import Objective, Sums


class SequenceClassification(FineTuning):
    """The task of configs/glue.py and configs/classify.py."""

    task = "sequence_classification"

    def __init__(self, config: Config, *arguments: Any):
        super().__init__(config, *arguments)
        self.regression = config.classification.name == "stsb"
        self.best = "accuracy" if config.classification.name == "custom" else "score"

    @classmethod
    def read(cls, config: Config, source: Source, role: Role) -> tuple[list[Any], list[str]]:
        """`files.read` with the configuration's columns."""
        wanted = config.classification
        columns = {"text": wanted.text, "second": wanted.second, "label": wanted.label}
        return files.read(source, role, task=wanted.name, **columns)

    @classmethod
    def parse(cls, config: Config, record: Record, place: str, name: str, role: Role = "predict") -> Any:
        wanted = config.classification
        columns = files.columns_of(wanted.name, wanted.text, wanted.second, wanted.label)
        return files.parse(record, place, name, columns, role)

    @classmethod
    def labels_of(cls, config: Config, examples: Sequence[Any]) -> tuple[str, ...]:
        """Sorted; one nameless score for a regression."""
        if config.classification.name == "stsb":
            return ("score",)
        return tuple(sorted({example.label for example in examples}))

    def check(self, examples: Sequence[Any], source: str) -> None:
        """Raises UserError where dev has a label that train has not."""
        if self.regression:
            return
        for example in examples:
            if example.label not in self.labels:
                raise UserError(
                    f"{source}: {example.id} has label {example.label!r}, which config.data.train has not; its labels "
                    f"are {', '.join(self.labels)}"
                )

    def featuriser(self, role: Role) -> Featurise:
        return TextRows(self.tokenizer, self.config.data.block_length, self.labels, self.regression)

    def model(self, platform: str) -> Any:
        return linear_heads.task_model(
            "sequence_classification", self.config, self.tokenizer.vocab_size, len(self.labels), platform
        )

    def objective(self, model: Any) -> Objective:
        return sequence_objective(model, self.regression)

    def outputs(self, model: Any, params: Any, batch: Batch) -> dict[str, jax.Array]:
        logits = row_logits(model, params, batch)
        return {"scores": logits if self.regression else jax.nn.softmax(logits)}

    def decode(
        self,
        examples: Sequence[Any],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """{"id", "label", "score"}: the most probable label with its probability, or the number alone."""
        predictions = []
        for example, output in zip(examples, outputs, strict=True):
            scores = output["scores"]
            if self.regression:
                predictions.append({"id": example.id, "score": float(scores[0])})
                continue
            chosen = int(np.argmax(scores))
            predictions.append({"id": example.id, "label": self.labels[chosen], "score": float(scores[chosen])})
        return predictions

    def metrics(self, examples: Sequence[Any], predictions: Sequence[Prediction]) -> dict[str, float]:
        """GLUE's metrics of the configuration's task, times 100."""
        return {name: 100 * value for name, value in self._metrics(examples, predictions).items()}

    def _metrics(self, examples: Sequence[Any], predictions: Sequence[Prediction]) -> dict[str, float]:
        if self.regression:
            numbers = [example.label for example in examples]
            return classification.glue("stsb", numbers, [prediction["score"] for prediction in predictions])
        number = {label: i for i, label in enumerate(self.labels)}
        golds = [number[example.label] for example in examples]
        found = [number[prediction["label"]] for prediction in predictions]
        if self.config.classification.name == "custom":
            return {
                "accuracy": classification.accuracy(golds, found),
                "macro_f1": classification.macro_f1(golds, found),
            }
        return classification.glue(self.config.classification.name, golds, found)

    def baseline(self, train: Sequence[Any], examples: Sequence[Any]) -> list[Prediction]:
        """Always the commonest label; of scores their mean."""
        if self.regression:
            return [{"id": e.id, "score": float(np.mean([one.label for one in train]))} for e in examples]
        commonest, count = collections.Counter(one.label for one in train).most_common(1)[0]
        return [{"id": e.id, "label": commonest, "score": count / len(train)} for e in examples]

    def write(self, examples: Sequence[Any], predictions: Sequence[Prediction], directory: Path) -> Path:
        """GLUE's submission format: index, TAB, prediction."""
        path = directory / "predictions.tsv"
        lines = [f"{i}\t{prediction.get('label', prediction['score'])}" for i, prediction in enumerate(predictions)]
        path.write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")
        return path


def sequence_objective(model: Any, regression: bool) -> Objective:
    """Mean cross-entropy, or mean squared error, over the rows that are not empty."""

    def totals(batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def loss(
        params: Any, batch: Batch, count: jax.Array, key: jax.Array | None, rows: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        logits = row_logits(model, params, batch, key, rows)
        weights = batch["weights"]
        if regression:
            summed = jnp.sum(jnp.square(logits[:, 0] - batch["label"]) * weights)
        else:
            summed = cross_entropy_sum(logits, batch["label"], weights)
        return mean_loss(summed, weights, count, batch)

    return Objective(totals, loss)
