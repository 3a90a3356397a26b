"""Named-entity recognition: a tag for each word, or a type for each span of words.

Invariant: inside are spans of words, and IOB2 where there must be tags, whatever the file's scheme; an entity's text is
exactly what its offsets cut out of the sentence, its words joined by a space.
"""

import collections
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.metrics import entities
from spanbert_jax.model import linear_heads, span_head
from spanbert_jax.tasks.entities import files
from spanbert_jax.tasks.entities.columns import Layout
from spanbert_jax.tasks.entities.rows import Span, WordExample, WordRows
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.finetuning import FineTuning, Prediction, cross_entropy_sum, mean_loss, row_logits
from spanbert_jax.tasks.rows import Featurise, Rows
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.step import Objective, Sums

_BLANK = re.compile(r"\s")

Found = tuple[float, Span]  # an entity with its score


class TokenClassification(FineTuning):
    """The task of configs/ner.py."""

    task = "token_classification"
    best = "f1"
    padding: ClassVar[Mapping[str, int]] = {"label": -1, "word": -1, "first": -1, "last": -1}

    @classmethod
    def read(cls, config: Config, source: Source, role: Role) -> tuple[list[Any], list[str]]:
        """`files.read` with the configuration's columns; entities that its head cannot have are counted, or refused."""
        tagging = config.tagging
        layout = Layout(tagging.delimiter, tagging.word_column, tagging.tag_column)
        room = config.data.block_length if tagging.document_context else 0
        examples, warnings = files.read(source, role, layout=layout, scheme=tagging.scheme, context=room)
        max_width = tagging.max_width if tagging.head == "span" else 0
        return examples, warnings + files.check_entities(examples, str(source), max_width)

    @classmethod
    def parse(cls, config: Config, record: Record, place: str, name: str, role: Role = "predict") -> Any:
        return files.parse(record, place, name, role)

    @classmethod
    def labels_of(cls, config: Config, examples: Sequence[Any]) -> tuple[str, ...]:
        """Token head: "O" and the tags of IOB2, sorted. Span head: "O", and the types, sorted."""
        types = sorted({kind for example in examples for _, _, kind in example.spans})
        if not types:
            raise UserError(f"config.data.train {config.data.train} has no entities in it: all tags are O")
        if config.tagging.head == "span":
            return ("O", *types)
        return tuple(sorted(["O", *(f"{letter}-{kind}" for letter in "BI" for kind in types)]))

    @classmethod
    def special_of(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[Any]) -> dict[str, int]:
        """{"nested": whether entities are in entities, so that predictions may be}."""
        nested = any(
            b[0] < a[1] for example in examples for a, b in itertools.pairwise(sorted(example.spans, key=_outer_first))
        )
        return {"nested": int(nested)}

    def check(self, examples: Sequence[Any], source: str) -> None:
        """Raises UserError where dev has types that train has not."""
        is_span = self.config.tagging.head == "span"
        known = set(self.labels[1:]) if is_span else {label[2:] for label in self.labels if label != "O"}
        found = {kind: example for example in reversed(examples) for _, _, kind in example.spans if kind not in known}
        if found:
            kind = min(found)
            raise UserError(
                f"{source}: entities of type {', '.join(sorted(found))} (the first {kind} in the sentence of line "
                f"{found[kind].id}), which config.data.train has not; its types are {', '.join(sorted(known))}"
            )

    def featuriser(self, role: Role) -> Featurise:
        tagging = self.config.tagging
        return WordRows(self.tokenizer, self.config.data.block_length, self.labels, tagging.head, tagging.max_width)

    def model(self, platform: str) -> Any:
        labels, vocab_size = len(self.labels), self.tokenizer.vocab_size
        if self.config.tagging.head == "span":
            return span_head.span_model(self.config, vocab_size, labels, platform)
        return linear_heads.task_model(self.task, self.config, vocab_size, labels, platform)

    def init_params(self, model: Any, key: jax.Array) -> Any:
        return (span_head if self.config.tagging.head == "span" else linear_heads).init_params(model, key)

    def objective(self, model: Any) -> Objective:
        return span_objective(model) if self.config.tagging.head == "span" else token_objective(model)

    def outputs(self, model: Any, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """The best label of each position [batch, length], or span [batch, words, max_width], and its probability."""
        if self.config.tagging.head == "span":
            logits = span_head.apply(model, params, batch)
            valid = span_head.valid_spans(batch["first"], batch["starts"], model.max_width)
        else:
            logits = row_logits(model, params, batch)
            valid = batch["word"] >= 0
        return {
            "label": jnp.where(valid, jnp.argmax(logits, axis=-1), 0),
            "score": jnp.max(jax.nn.softmax(logits), axis=-1),
        }

    def decode(
        self,
        examples: Sequence[Any],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """{"id", "text", "entities": [{"type", "start", "end", "start_word", "end_word", "text", "score"}, ...]}.

        Ends are exclusive, offsets count characters. The token head's have "tags" too, as they came from it, and an
        entity's score is the mean over its words.
        """
        found: list[list[Any]] = [[] for _ in examples]
        for row, output in enumerate(outputs):
            found[rows.example[row]] += self._of_row(rows, row, output)
        predictions = []
        for example, parts in zip(examples, found, strict=True):
            more = {}
            if self.config.tagging.head == "span":
                kept = resolve(parts, bool(self.special["nested"]))
            else:
                tags = [label for _, label, _ in sorted(parts)]
                scores = [score for _, _, score in sorted(parts)]
                kept = [(float(np.mean(scores[s[0] : s[1]])), s) for s in entities.spans(tags)]
                more = {"tags": tags}
            predictions.append({"id": example.id, **_located(example, kept), **more})
        return predictions

    def _of_row(self, rows: Rows, row: int, output: Mapping[str, np.ndarray]) -> list[Any]:
        """Token head: (word, tag, score) of each tagged word. Span head: `Found` of each span that is an entity."""
        labels, scores = output["label"], output["score"]
        if self.config.tagging.head == "span":
            offset = int(rows.plain["first_word"][row])
            return [
                (
                    float(scores[slot, width]),
                    (offset + slot, offset + slot + width + 1, self.labels[labels[slot, width]]),
                )
                for slot, width in np.argwhere(labels > 0).tolist()
            ]
        words = rows.column("word", row)
        places = np.flatnonzero(words >= 0).tolist()
        return [(int(words[place]), self.labels[labels[place]], float(scores[place])) for place in places]

    def metrics(self, examples: Sequence[Any], predictions: Sequence[Prediction]) -> dict[str, float]:
        """In percent: precision, recall and F1 over all entities, as seqeval's default mode and conlleval have them;
        F1 in seqeval's strict mode; F1 of each type."""
        golds = [example.spans for example in examples]
        found = [_spans_of(prediction) for prediction in predictions]
        scores = entities.evaluate(golds, found)
        strict = [
            entities.strict_spans(prediction["tags"], "IOB2") if "tags" in prediction else one
            for prediction, one in zip(predictions, found, strict=True)
        ]
        values = {name: scores[name] for name in ("precision", "recall", "f1")}
        values["strict_f1"] = entities.evaluate(golds, strict)["f1"]
        values |= {f"f1/{name.removesuffix('/f1')}": scores[name] for name in scores if name.endswith("/f1")}
        return {name: 100 * value for name, value in values.items()}

    def baseline(self, train: Sequence[Any], examples: Sequence[Any]) -> list[Prediction]:
        """What training has as an entity, with the type it has most often; longest first, from the left."""
        types: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for one in train:
            for start, end, kind in one.spans:
                types[one.words[start:end]][kind] += 1
        widest = max(map(len, types))
        return [
            {"id": e.id, **_located(e, [(1.0, span) for span in _looked_up(e.words, types, widest)])} for e in examples
        ]

    def write(self, examples: Sequence[Any], predictions: Sequence[Prediction], directory: Path) -> Path:
        """conlleval's input: "word gold predicted", tags in IOB2; of nested entities the outermost."""
        path = directory / "predictions.conll"
        with path.open("w", encoding="utf-8") as file:
            for example, prediction in zip(examples, predictions, strict=True):
                tags = [_flat_tags(found, len(example.words)) for found in (example.spans, _spans_of(prediction))]
                for word, gold, predicted in zip(example.words, *tags, strict=True):
                    file.write(f"{_BLANK.sub('_', word)} {gold} {predicted}\n")
                file.write("\n")
        return path


def token_objective(model: Any) -> Objective:
    """Mean cross-entropy over the first pieces of words."""

    def totals(batch: Batch) -> jax.Array:
        return jnp.sum(batch["label"] >= 0).astype(jnp.float32)

    def loss(
        params: Any, batch: Batch, count: jax.Array, key: jax.Array | None, rows: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        logits = row_logits(model, params, batch, key, rows)
        return _mean(logits, batch["label"], batch["label"] >= 0, count, batch)

    return Objective(totals, loss)


def span_objective(model: Any) -> Objective:
    """Mean cross-entropy over spans, most of which are no entity."""

    def totals(batch: Batch) -> jax.Array:
        return jnp.sum(span_head.valid_spans(batch["first"], batch["starts"], model.max_width)).astype(jnp.float32)

    def loss(
        params: Any, batch: Batch, count: jax.Array, key: jax.Array | None, rows: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        logits = span_head.apply(model, params, batch, key, rows)
        labels = jnp.stack([batch[f"span_{width}"] for width in range(1, model.max_width + 1)], axis=-1)
        valid = span_head.valid_spans(batch["first"], batch["starts"], model.max_width)
        return _mean(logits, labels, valid, count, batch)

    return Objective(totals, loss)


def _mean(
    logits: jax.Array, labels: jax.Array, valid: jax.Array, count: jax.Array, batch: Batch
) -> tuple[jax.Array, Sums]:
    weights = valid.astype(jnp.float32)
    summed = cross_entropy_sum(logits, labels, weights)
    return mean_loss(summed, weights, count, batch)


def resolve(found: Iterable[Found], may_nest: bool) -> list[Found]:
    """The entities, in order, that are left where the one with the highest score goes first and keeps out all that
    cross it, or, unless they may nest, overlap it."""
    kept: list[Found] = []
    for score, span in sorted(found, key=lambda one: (-one[0], one[1])):
        if not any(_in_conflict(span, other, may_nest) for _, other in kept):
            kept.append((score, span))
    return sorted(kept, key=lambda one: _outer_first(one[1]))


def _in_conflict(a: Span, b: Span, may_nest: bool) -> bool:
    if a[1] <= b[0] or b[1] <= a[0]:
        return False
    inside = (a[0] >= b[0] and a[1] <= b[1]) or (b[0] >= a[0] and b[1] <= a[1])
    return not (may_nest and inside)


def _outer_first(span: Span) -> tuple[int, int, str]:
    return span[0], -span[1], span[2]


def _flat_tags(found: Iterable[Span], length: int) -> list[str]:
    kept: list[Span] = []
    for span in sorted(found, key=_outer_first):
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


def _located(example: WordExample, found: Iterable[Found]) -> dict[str, Any]:
    """The sentence's text and its entities, with the characters they are at."""
    text, places = example.text, example.places
    if not places:
        text = " ".join(example.words)
        starts = itertools.accumulate((len(word) + 1 for word in example.words), initial=0)
        places = tuple((start, start + len(word)) for start, word in zip(starts, example.words, strict=False))
    located = []
    for score, (first, end_word, kind) in found:
        start, end = places[first][0], places[end_word - 1][1]
        place = {"start": start, "end": end, "start_word": first, "end_word": end_word}
        located.append({"type": kind, **place, "text": text[start:end], "score": score})
    return {"text": text, "entities": located}
