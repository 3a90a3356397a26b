"""Relation extraction: which relation, if any, holds between two entities of a sentence.

Invariant: the special pieces that stand for entities are chosen once, from the training data, and kept with the
checkpoint; in the authors' code they depend on the order of the data and are lost. Facts: SpanBERT's run_tacred.py.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.metrics import relations as metrics
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.finetuning import Prediction
from spanbert_jax.tasks.relations import files
from spanbert_jax.tasks.relations.rows import RelationRows, assign_special, special_names
from spanbert_jax.tasks.rows import Featurise, Rows
from spanbert_jax.tasks.text_classification.task import SequenceClassification
from spanbert_jax.text.tokenizer import Tokenizer

_NONE = ("no_relation", "Other")  # what TACRED and SemEval call it


class RelationExtraction(SequenceClassification):
    """The task of configs/relation.py: classification of a sentence in which two entities are marked."""

    task = "relation_extraction"

    def __init__(self, config: Config, *arguments: Any):
        super().__init__(config, *arguments)
        self.regression = False
        self.best = "f1" if config.relation.format == "tacred" else "macro_f1"

    @classmethod
    def read(cls, config: Config, source: Source, role: Role) -> tuple[list[Any], list[str]]:
        """`files.read`; labels are in the configuration's format."""
        return files.read(source, role, config.relation.format)

    @classmethod
    def parse(cls, config: Config, record: Record, place: str, name: str, role: Role = "predict") -> Any:
        return files.parse(record, place, name, role)

    @classmethod
    def labels_of(cls, config: Config, examples: Sequence[Any]) -> tuple[str, ...]:
        """No relation first, the others sorted."""
        names = {example.label for example in examples}
        return tuple(sorted(names, key=lambda name: (name not in _NONE, name)))

    @classmethod
    def special_of(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[Any]) -> dict[str, int]:
        """The ids that stand for, or around, entities."""
        return assign_special(special_names(examples, config.relation.entities), tokenizer)

    def check(self, examples: Sequence[Any], source: str) -> None:
        """Raises UserError where dev has a relation that train has not."""
        for example in examples:
            if example.label not in self.labels:
                raise UserError(
                    f"{source}: {example.id} has relation {example.label!r}, which config.data.train has not; it has "
                    f"{', '.join(self.labels)}"
                )

    def featuriser(self, role: Role) -> Featurise:
        length, entities = self.config.data.block_length, self.config.relation.entities
        return RelationRows(self.tokenizer, length, self.labels, self.special, entities)

    def decode(
        self,
        examples: Sequence[Any],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """{"id", "relation", "score", "subject", "object"}: the most probable relation, and the entities' words."""
        predictions = []
        for example, output in zip(examples, outputs, strict=True):
            chosen = int(np.argmax(output["scores"]))
            texts = (" ".join(example.words[start:end]) for start, end, _ in (example.subject, example.object))
            named = dict(zip(("subject", "object"), texts, strict=True))
            score = float(output["scores"][chosen])
            predictions.append({"id": example.id, "relation": self.labels[chosen], "score": score, **named})
        return predictions

    def metrics(self, examples: Sequence[Any], predictions: Sequence[Prediction]) -> dict[str, float]:
        """TACRED's micro scores without no_relation, or SemEval's official macro-F1."""
        golds = [example.label for example in examples]
        found = [prediction["relation"] for prediction in predictions]
        return (metrics.tacred if self.config.relation.format == "tacred" else metrics.semeval2010_task8)(golds, found)

    def baseline(self, train: Sequence[Any], examples: Sequence[Any]) -> list[Prediction]:
        """Always the commonest relation that is one."""
        counts = collections.Counter(one.label for one in train if one.label not in _NONE)
        return [{"id": e.id, "relation": next(iter(dict(counts.most_common(1))), self.labels[0])} for e in examples]

    def write(self, examples: Sequence[Any], predictions: Sequence[Prediction], directory: Path) -> Path:
        """What the official scorers read: SemEval's "id TAB relation"; for TACRED one relation a line."""
        path = directory / "predictions.txt"
        semeval = self.config.relation.format == "semeval"
        lines = [f"{p['id']}\t{p['relation']}" if semeval else p["relation"] for p in predictions]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path
