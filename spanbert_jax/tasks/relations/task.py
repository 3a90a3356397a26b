"""Relation extraction: which relation, if any, holds between two entities of a sentence.

Invariant: the special pieces of entities are chosen once, from the training data, and the checkpoint keeps them. In the
authors' code, SpanBERT's run_tacred.py, they depend on the order of the data and are not saved.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.metrics import relations as metrics
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.finetuning import NOTHING, Learnt, Prediction
from spanbert_jax.tasks.relations import files
from spanbert_jax.tasks.relations.files import RelationSentence
from spanbert_jax.tasks.relations.rows import RelationRowMaker, assign_special, special_names
from spanbert_jax.tasks.rows import Featurise, Rows
from spanbert_jax.tasks.sequences import SequenceTask
from spanbert_jax.text.tokenizer import Tokenizer

_NONE = ("no_relation", "Other")  # the label "no relation" of TACRED and of SemEval


class RelationExtraction(SequenceTask[RelationSentence]):
    """The task of configs/relation.py: classifies a sentence in which two entities are masked or marked."""

    task = "relation_extraction"
    settings: ClassVar[tuple[str, ...]] = ("data.block_length", "relation")
    reads_words: ClassVar[bool] = True
    texts: ClassVar[tuple[str, ...]] = ("words",)

    def __init__(self, config: Config, tokenizer: Tokenizer, learnt: Learnt):
        super().__init__(config, tokenizer, learnt)
        self.best = "f1" if config.relation.format == "tacred" else "macro_f1"

    @classmethod
    def read(
        cls, config: Config, source: Source, role: Role, learnt: Learnt = NOTHING
    ) -> tuple[list[RelationSentence], list[str]]:
        """`files.read` with the configuration's format."""
        return files.read(source, role, config.relation.format)

    def parse(self, record: Record, place: str, name: str) -> RelationSentence:
        return files.parse(record, place, name)

    @classmethod
    def learn(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[RelationSentence]) -> Learnt:
        """The labels, with "no relation" first and the others sorted; and the ids of the special pieces of entities."""
        names = {str(example.label) for example in examples}
        labels = tuple(sorted(names, key=lambda name: (name not in _NONE, name)))
        return Learnt(labels, assign_special(special_names(examples, config.relation.entities), tokenizer))

    def check(self, examples: Sequence[RelationSentence], source: str) -> None:
        """Raises UserError where dev data have a relation that training data lack."""
        self.refuse_new_labels([(example.id, str(example.label)) for example in examples], source, "relation")

    @classmethod
    def row_maker(
        cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role
    ) -> Featurise[RelationSentence]:
        length, entities = settings.data.block_length, settings.relation.entities
        return RelationRowMaker(tokenizer, length, learnt.labels, learnt.special, entities)

    def decode(
        self,
        examples: Sequence[RelationSentence],
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
            predictions.append({"id": example.id, "relation": self.learnt.labels[chosen], "score": score, **named})
        return predictions

    def target_of(self, prediction: Prediction) -> str:
        """The relation."""
        return str(prediction["relation"])

    def metrics(self, examples: Sequence[RelationSentence], predictions: Sequence[Prediction]) -> dict[str, float]:
        """TACRED's micro scores without no_relation, or SemEval's official macro-F1."""
        golds = [str(example.label) for example in examples]
        found = [prediction["relation"] for prediction in predictions]
        return (metrics.tacred if self.config.relation.format == "tacred" else metrics.semeval2010_task8)(golds, found)

    def baseline(self, train: Sequence[RelationSentence], examples: Sequence[RelationSentence]) -> list[Prediction]:
        """Always the commonest relation in training, "no relation" apart."""
        counts = collections.Counter(one.label for one in train if one.label not in _NONE)
        return [
            {"id": e.id, "relation": next(iter(dict(counts.most_common(1))), self.learnt.labels[0])} for e in examples
        ]

    def write(self, examples: Sequence[RelationSentence], predictions: Sequence[Prediction], directory: Path) -> Path:
        """Writes the official scorer's input: lines "id TAB relation" for SemEval, or one relation on each line for
        TACRED."""
        path = directory / "predictions.txt"
        semeval = self.config.relation.format == "semeval"
        lines = [f"{p['id']}\t{p['relation']}" if semeval else p["relation"] for p in predictions]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def task_class(config: Config) -> type[RelationExtraction]:
    """The class of the task."""
    return RelationExtraction
