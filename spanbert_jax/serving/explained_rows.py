"""The rows of a record whose prediction is explained, with the place of each piece in the record's texts.

Invariant: a place is a field and characters [start, end) of the text in that field. Pieces that stand for no text
([CLS], [SEP], the special pieces of entities) and pieces that are to be predicted have none.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from spanbert_jax.errors import UserError, quoted
from spanbert_jax.serving.scheduler import TooLarge
from spanbert_jax.tasks.entities.words import find_words, joined
from spanbert_jax.tasks.example_files import Record, field
from spanbert_jax.tasks.finetuning import Prediction, checked_span
from spanbert_jax.tasks.registry import AnyTask
from spanbert_jax.tasks.rows import Row
from spanbert_jax.tasks.settings import declared
from spanbert_jax.text.tokenizer import Tokenizer


class Place(NamedTuple):
    """Characters [start, end) of the text in a field of a record."""

    field: str
    start: int
    end: int

    def overlaps(self, other: "Place") -> bool:
        """Whether the two have a character in common."""
        return self.field == other.field and max(self.start, other.start) < min(self.end, other.end)


Places = list[Place | None]  # of each piece of a row


class Case(NamedTuple):
    """A target, and the rows of a record that have it. Of several rows the one whose score is lowest is explained."""

    target: Any
    texts: dict[str, str]  # field -> the text that places refer to
    words: list[Place]
    # Rows of the head's task, with the column "cells": places in the row's flattened scores, whose sum is the target's
    # score, and -1 for the other pieces.
    rows: list[Row]
    places: list[Places]  # of each row


def task_case(
    task: AnyTask,
    record: Record,
    target: Any,
    predict: Callable[[Record], Prediction],
    most_rows: int | None = None,
) -> Case:
    """The case of a fine-tuned task. target: as for `FineTuning.cells`; None: the target that `predict` chooses.

    The texts of a record with words are the words with a space between them. Raises UserError where the task cannot
    read the record, has no such target, or has no explanations; and `TooLarge` where the record has more than
    `most_rows` rows.
    """
    if not task.texts:
        raise UserError(f"predictions of the task {task.task!r} have no explanations")
    example = task.parse(record, "the record", "0")
    rows = task.featuriser("predict")([example])[0]
    if most_rows is not None and len(rows) > most_rows:
        raise TooLarge(f"the record is cut into {len(rows):,} rows; {most_rows} are the most that are explained")
    target = task.target_of(predict(record)) if target is None else target
    cells = task.cells(example, rows, target)
    texts, words, sources = _read(task, record, example)
    tracer = _Tracer(task.tokenizer, sources)
    make = task.row_maker(declared(task.config, task.settings), cast(Tokenizer, tracer), task.learnt, "predict")
    names: dict[str, Any] = {"words": tuple(sources)} if task.reads_words else {name: name for name in sources}
    traced = make([dataclasses.replace(example, **names)])[0]
    chosen = [{**rows[number], "cells": _column(of, rows[number])} for number, of in cells.items()]
    return Case(target, texts, words, chosen, [tracer.places_of(traced[number]["input_ids"]) for number in cells])


def masked_case(tokenizer: Tokenizer, longest: int, record: Record, target: Any) -> Case:
    """The case of a masked language model, whose target is the text at characters (start, end): the pieces there are
    masked, and the score is the sum of their log-probabilities.

    longest: pieces in a row, [CLS] and [SEP] included; the end of a longer text is cut. The scores are those of
    `masked_positions` [slots, vocab_size]. Raises UserError where the target has no piece in the row.
    """
    text = record if isinstance(record, str) else field(record, "text", str, "the record")
    start, end = checked_span(target, text, "(start, end)")
    ids, offsets = tokenizer.tokenize_with_offsets(text)
    places = [Place("text", *offset) for offset in offsets[: longest - 2]]
    hidden = [number for number, place in enumerate(places) if place.overlaps(Place("text", start, end))]
    if not hidden:
        raise UserError(
            f"target is {quoted(target)}, which has no piece among the {len(places)} of the row; give other text"
        )
    pieces = [tokenizer.cls_id, *ids[: longest - 2], tokenizer.sep_id]
    for number in hidden:
        pieces[number + 1] = tokenizer.mask_id
    # A power of two, so that few programs serve all targets. Unused slots read [CLS], and no cell is theirs.
    positions = np.zeros(1 << (len(hidden) - 1).bit_length(), np.int32)
    positions[: len(hidden)] = np.array(hidden) + 1
    row: Row = {"input_ids": pieces, "token_type_ids": [0] * len(pieces), "masked_positions": positions}
    row["cut"] = int(len(ids) > len(places))
    row["cells"] = _column([slot * tokenizer.vocab_size + ids[number] for slot, number in enumerate(hidden)], row)
    seen: Places = [None if number in hidden else place for number, place in enumerate(places)]
    words = [Place("text", *word) for word in find_words(text)]
    return Case([start, end], {"text": text}, words, [row], [[None, *seen, None]])


def given_spans(case: Case, spans: Sequence[Sequence[Any]]) -> list[Place]:
    """Spans as places: (start, end) in the only text, or (field, start, end); raises UserError on any other."""
    found = []
    for span in spans:
        named: tuple[Any, ...] = tuple(span) if isinstance(span, list | tuple) else (span,)
        if len(named) == 2 and len(case.texts) == 1:
            named = (*case.texts, *named)
        text = case.texts.get(named[0]) if len(named) == 3 and isinstance(named[0], str) else None
        if text is None or any(type(end) is not int for end in named[1:]) or not 0 <= named[1] < named[2] <= len(text):
            fields = ", ".join(f"{name} with {len(text)} characters" for name, text in case.texts.items())
            form = "(start, end)" if len(case.texts) == 1 else "(field, start, end)"
            raise UserError(f"a span is {quoted(span)}; expected {form} in {fields}")
        found.append(Place(*named))
    return found


def occluded(row: Row, positions: Sequence[int], mask_id: int) -> Row:
    """The row with [MASK] at the positions. As in pre-training, a span with a masked piece has no span tags."""
    ids = np.array(row["input_ids"])
    ids[list(positions)] = mask_id
    changed = {**row, "input_ids": ids.tolist()}
    if "span_tags" in row:
        tags = np.array(row["span_tags"])
        span = np.where(tags > 0, np.cumsum(tags & 1), 0)  # the number of the span at each position; 0: none
        changed["span_tags"] = np.where(np.isin(span, span[list(positions)]), 0, tags).tolist()
    return changed


class _Source(NamedTuple):
    """A text that a row maker tokenises."""

    field: str
    at: int  # its first character in the field's text
    text: str


def _read(task: AnyTask, record: Record, example: Any) -> tuple[dict[str, str], list[Place], dict[str, _Source]]:
    """(the texts by field, their words, the sources by name) of an example. A name is the text's field or, where the
    task reads words, the number of the word."""
    if task.reads_words:
        text, places = (example.text, example.places) if getattr(example, "places", ()) else joined(example.words)
        words = [Place("text", *place) for place in places]
        pairs = enumerate(zip(words, example.words, strict=True))
        return {"text": text}, words, {str(number): _Source("text", at.start, word) for number, (at, word) in pairs}
    found = {name: getattr(example, name) for name in task.texts if getattr(example, name) is not None}
    texts = {name: record if isinstance(record, str) else text for name, text in found.items()}
    # A text that is a record of its own is read without the white space around it.
    sources = {name: _Source(name, texts[name].index(text), text) for name, text in found.items()}
    words = [
        Place(name, source.at + start, source.at + end)
        for name, source in sources.items()
        for start, end in find_words(source.text)
    ]
    return texts, words, sources


class _Tracer:
    """Stands in for a tokenizer in a task's row maker, and finds out which piece of which text stands where in a row.

    The row maker gets the name of a source in the place of each text. Each piece of the source has a number beyond the
    vocabulary in the place of its id, so the rows hold numbers, and `places_of` knows the places of the pieces.
    """

    def __init__(self, tokenizer: Tokenizer, sources: Mapping[str, _Source]):
        self.cls_id, self.sep_id, self.unk_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id
        self._tokenizer, self._sources = tokenizer, sources
        self._places: list[Place] = []

    def tokenize_with_offsets(self, name: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The numbers of the source's pieces, and their offsets in the source. "" is an empty text, not a source."""
        source = self._sources[name] if name else _Source("", 0, "")
        _, offsets = self._tokenizer.tokenize_with_offsets(source.text)
        first = self._tokenizer.vocab_size + len(self._places)
        self._places += [Place(source.field, source.at + start, source.at + end) for start, end in offsets]
        return list(range(first, first + len(offsets))), offsets

    def tokenize_batch(self, names: Sequence[str]) -> list[list[int]]:
        """The numbers of the pieces of every source."""
        return [self.tokenize_with_offsets(name)[0] for name in names]

    def places_of(self, numbers: Sequence[int]) -> Places:
        """The place of each piece of a row that has numbers."""
        first = self._tokenizer.vocab_size
        return [self._places[number - first] if number >= first else None for number in numbers]


def _column(cells: Sequence[int], row: Row) -> list[int]:
    """The cells as a column of the row, which has a value for each piece."""
    return [*cells, *[-1] * (len(row["input_ids"]) - len(cells))]
