"""Text classification: a label, or a number (STS-B), for a text or a pair of texts, as SpanBERT's run_glue.py does.

Invariant: labels are numbered in the order of `learn`, and the checkpoint keeps this order.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.metrics import classification
from spanbert_jax.tasks.example_files import Record, Role, Source, warn_of_one_type
from spanbert_jax.tasks.finetuning import NOTHING, Learnt, Prediction
from spanbert_jax.tasks.rows import Featurise, Rows
from spanbert_jax.tasks.sequences import SequenceTask
from spanbert_jax.tasks.text_classification import files
from spanbert_jax.tasks.text_classification.files import LabelledText
from spanbert_jax.tasks.text_classification.rows import TextRowMaker
from spanbert_jax.text.tokenizer import Tokenizer


class SequenceClassification(SequenceTask[LabelledText]):
    """The task of configs/glue.py and configs/classify.py."""

    task = "sequence_classification"
    settings: ClassVar[tuple[str, ...]] = ("data.block_length", "model.token_types", "classification")
    texts: ClassVar[tuple[str, ...]] = ("text", "second")

    def __init__(self, config: Config, tokenizer: Tokenizer, learnt: Learnt):
        super().__init__(config, tokenizer, learnt)
        self.regression = config.classification.name == "stsb"
        self.best = "accuracy" if config.classification.name == "custom" else "score"

    @classmethod
    def read(
        cls, config: Config, source: Source, role: Role, learnt: Learnt = NOTHING
    ) -> tuple[list[LabelledText], list[str]]:
        """`files.read` with the configuration's columns."""
        wanted = config.classification
        columns = {"text": wanted.text, "second": wanted.second, "label": wanted.label}
        examples, warnings = files.read(source, role, task=wanted.name, **columns)
        pairs = sum(one.second is not None for one in examples)
        return examples, warnings + warn_of_one_type(config.model.token_types, pairs, str(source))

    def parse(self, record: Record, place: str, name: str) -> LabelledText:
        wanted = self.config.classification
        columns = files.columns_of(wanted.name, wanted.text, wanted.second, wanted.label)
        return files.parse(record, place, name, columns)

    @classmethod
    def learn(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[LabelledText]) -> Learnt:
        """The sorted labels; for a regression the one label "score"."""
        if config.classification.name == "stsb":
            return Learnt(("score",))
        return Learnt(tuple(sorted({str(example.label) for example in examples})))

    def check(self, examples: Sequence[LabelledText], source: str) -> None:
        """Raises UserError where dev data have a label that training data lack."""
        if not self.regression:
            self.refuse_new_labels([(example.id, str(example.label)) for example in examples], source, "label")

    @classmethod
    def row_maker(cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role) -> Featurise[LabelledText]:
        regression = settings.classification.name == "stsb"
        types = settings.model.token_types
        return TextRowMaker(tokenizer, settings.data.block_length, learnt.labels, regression, types)

    def decode(
        self,
        examples: Sequence[LabelledText],
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
            predictions.append({"id": example.id, "label": self.learnt.labels[chosen], "score": float(scores[chosen])})
        return predictions

    def target_of(self, prediction: Prediction) -> str:
        """The label; of a regression its only label, "score"."""
        return self.learnt.labels[0] if self.regression else str(prediction["label"])

    def metrics(self, examples: Sequence[LabelledText], predictions: Sequence[Prediction]) -> dict[str, float]:
        """GLUE's metrics of the configuration's task, or accuracy and macro-F1 for "custom", times 100."""
        return {name: 100 * value for name, value in self._metrics(examples, predictions).items()}

    def _metrics(self, examples: Sequence[LabelledText], predictions: Sequence[Prediction]) -> dict[str, float]:
        if self.regression:
            numbers = [float(example.label) for example in examples if example.label is not None]
            return classification.glue("stsb", numbers, [prediction["score"] for prediction in predictions])
        number = {label: i for i, label in enumerate(self.learnt.labels)}
        golds = [number[str(example.label)] for example in examples]
        found = [number[prediction["label"]] for prediction in predictions]
        if self.config.classification.name == "custom":
            return {
                "accuracy": classification.accuracy(golds, found),
                "macro_f1": classification.macro_f1(golds, found),
            }
        return classification.glue(self.config.classification.name, golds, found)

    def baseline(self, train: Sequence[LabelledText], examples: Sequence[LabelledText]) -> list[Prediction]:
        """Always the commonest label in training; for a regression the mean of its numbers."""
        if self.regression:
            return [{"id": e.id, "score": float(np.mean([one.label for one in train]))} for e in examples]
        commonest, count = collections.Counter(one.label for one in train).most_common(1)[0]
        return [{"id": e.id, "label": commonest, "score": count / len(train)} for e in examples]

    def write(self, examples: Sequence[LabelledText], predictions: Sequence[Prediction], directory: Path) -> Path:
        """Writes GLUE's submission format: a header, then lines "index TAB prediction"."""
        path = directory / "predictions.tsv"
        lines = [f"{i}\t{prediction.get('label', prediction['score'])}" for i, prediction in enumerate(predictions)]
        path.write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")
        return path


def task_class(config: Config) -> type[SequenceClassification]:
    """The class of the task."""
    return SequenceClassification
