"""Named-entity recognition, shared by both heads: reading, metrics, a guess without a model, files of predictions.

Invariant: entities are spans of words, and tags are IOB2, whatever the file's scheme. An entity's text is the slice of
the sentence's text at the entity's offsets.
"""

import abc
import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError, quoted
from spanbert_jax.metrics import entities
from spanbert_jax.tasks.entities import files
from spanbert_jax.tasks.entities.columns import Layout
from spanbert_jax.tasks.entities.rows import Span, WordExample
from spanbert_jax.tasks.entities.words import Place, joined
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.finetuning import NOTHING, FineTuning, Learnt, ModelT, Prediction, checked_span

_BLANK = re.compile(r"\s")

Found = tuple[float, Span]  # an entity with its score


class Tagging(FineTuning[WordExample, ModelT]):
    """Finds entities in sentences. A subclass for each head says how labels stand for entities."""

    task = "token_classification"
    settings: ClassVar[tuple[str, ...]] = ("data.block_length", "tagging")
    reads_words: ClassVar[bool] = True
    texts: ClassVar[tuple[str, ...]] = ("words",)
    best = "f1"
    padding: ClassVar[Mapping[str, int]] = {"label": -1, "word": -1, "first": -1, "last": -1}

    @classmethod
    def read(
        cls, config: Config, source: Source, role: Role, learnt: Learnt = NOTHING
    ) -> tuple[list[WordExample], list[str]]:
        """`files.read` with the configuration's columns. Warnings count the entities that the head cannot find."""
        tagging = config.tagging
        layout = Layout(tagging.delimiter, tagging.word_column, tagging.tag_column)
        room = config.data.block_length if tagging.document_context else 0
        examples, warnings = files.read(
            source, role, layout=layout, scheme=tagging.scheme, context=room, style=learnt.words
        )
        return examples, warnings + files.check_entities(examples, str(source), cls.widest(config))

    def parse(self, record: Record, place: str, name: str) -> WordExample:
        return files.parse(record, place, name, style=self.learnt.words)

    def words_of(self, example: WordExample, target: Any) -> tuple[int, int, str]:
        """The first word, the word after the last, and the type of a target (start, end, type) in characters; raises
        UserError where it covers no word."""
        text, places = text_of(example)
        start, end, kind = checked_span(target, text, "(start, end, type)")
        words = [number for number, (first, last) in enumerate(places) if first < end and start < last]
        if not words:
            raise UserError(f"target is {quoted(target)}, which has no word; give characters (start, end) of words")
        return words[0], words[-1] + 1, str(kind)

    def target_of(self, prediction: Prediction) -> list[Any]:
        """[start, end, type] of the entity with the highest score, in characters of the prediction's text."""
        found = prediction["entities"]
        if not found:
            raise UserError("the model finds no entity in the text; give a target, (start, end, type)")
        best = max(found, key=lambda one: one["score"])
        return [best["start"], best["end"], best["type"]]

    @classmethod
    @abc.abstractmethod
    def widest(cls, config: Config) -> int:
        """The most words in an entity that the head finds; 0 for a head that finds any, but none that overlap."""

    @abc.abstractmethod
    def types(self) -> set[str]:
        """The types of entities that the labels stand for."""

    def check(self, examples: Sequence[WordExample], source: str) -> None:
        """Raises UserError where dev data have types of entities that training data lack."""
        known = self.types()
        unseen = [(example.id, kind) for example in examples for _, _, kind in example.spans if kind not in known]
        if unseen:
            types = ", ".join(sorted({kind for _, kind in unseen}))
            raise UserError(
                f"{source}: {len(unseen):,} entities are of types that config.data.train lacks ({types}), the first "
                f"is in sentence {unseen[0][0]}; config.data.train has {', '.join(sorted(known))}; train on examples "
                "of them too, or take these entities out"
            )

    def metrics(self, examples: Sequence[WordExample], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Metrics in percent: precision, recall and F1 over all entities, by the definition of seqeval's default mode
        and conlleval; F1 in seqeval's strict mode ("strict_f1"); F1 of each type that the examples have ("f1/TYPE"), so
        that all predictions for the same examples have the same metrics."""
        golds = [example.spans for example in examples]
        found = [_spans_of(prediction) for prediction in predictions]
        scores = entities.evaluate(golds, found)
        strict = [
            entities.strict_spans(prediction["tags"], "IOB2") if "tags" in prediction else one
            for prediction, one in zip(predictions, found, strict=True)
        ]
        values = {name: scores[name] for name in ("precision", "recall", "f1")}
        values["strict_f1"] = entities.evaluate(golds, strict)["f1"]
        values |= {f"f1/{kind}": scores[f"{kind}/f1"] for kind in sorted({kind for of in golds for _, _, kind in of})}
        return {name: 100 * value for name, value in values.items()}

    def baseline(self, train: Sequence[WordExample], examples: Sequence[WordExample]) -> list[Prediction]:
        """Word sequences that are entities in training, with their most frequent type; the longest first, from the
        left."""
        types: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for one in train:
            for start, end, kind in one.spans:
                types[one.words[start:end]][kind] += 1
        widest = max(map(len, types))
        return [
            {"id": e.id, **located(e, [(1.0, span) for span in _looked_up(e.words, types, widest)])} for e in examples
        ]

    def write(self, examples: Sequence[WordExample], predictions: Sequence[Prediction], directory: Path) -> Path:
        """Writes conlleval's input, lines of "word gold predicted" with tags in IOB2. Of nested entities the outermost
        is written, and for a blank in a word or a type "_"."""
        path = directory / "predictions.conll"
        with path.open("w", encoding="utf-8") as file:
            for example, prediction in zip(examples, predictions, strict=True):
                tags = [_flat_tags(found, len(example.words)) for found in (example.spans, _spans_of(prediction))]
                for columns in zip(example.words, *tags, strict=True):
                    file.write(" ".join(_BLANK.sub("_", column) for column in columns) + "\n")
                file.write("\n")
        return path


def types_in(config: Config, examples: Sequence[WordExample]) -> list[str]:
    """The types of the training examples' entities, sorted; raises UserError where there is no entity."""
    types = sorted({kind for example in examples for _, _, kind in example.spans})
    if not types:
        raise UserError(
            f"config.data.train {config.data.train} has no entities, since all tags are O; give a file with entities"
        )
    return types


def outer_first(span: Span) -> tuple[int, int, str]:
    """A key that sorts spans by where they begin, the longest first."""
    return span[0], -span[1], span[2]


def _flat_tags(found: Iterable[Span], length: int) -> list[str]:
    kept: list[Span] = []
    for span in sorted(found, key=outer_first):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return entities.tags_from_spans(kept, length, "IOB2")


def _looked_up(words: Sequence[str], types: Mapping[Any, collections.Counter[str]], widest: int) -> Iterator[Span]:
    place = 0
    while place < len(words):
        ends = range(min(place + widest, len(words)), place, -1)
        end = next((end for end in ends if tuple(words[place:end]) in types), None)
        if end:
            yield place, end, types[tuple(words[place:end])].most_common(1)[0][0]
        place = end or place + 1


def _spans_of(prediction: Prediction) -> list[Span]:
    return [(entity["start_word"], entity["end_word"], entity["type"]) for entity in prediction["entities"]]


def text_of(example: WordExample) -> tuple[str, tuple[Place, ...]]:
    """The sentence's text, by default its words with spaces between them, and the characters [start, end) of each
    word."""
    return (example.text, example.places) if example.places else joined(example.words)


def located(example: WordExample, found: Iterable[Found]) -> dict[str, Any]:
    """A prediction's "text" and "entities". Each entity has its characters [start, end), words, type, text and
    score."""
    text, places = text_of(example)
    located = []
    for score, (first, end_word, kind) in found:
        start, end = places[first][0], places[end_word - 1][1]
        place = {"start": start, "end": end, "start_word": first, "end_word": end_word}
        located.append({"type": kind, **place, "text": text[start:end], "score": score})
    return {"text": text, "entities": located}
