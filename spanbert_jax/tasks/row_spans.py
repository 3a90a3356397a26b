"""Span tags of a task's rows, for encoders that read spans.

Invariant: the tags are those that the rules of config.corpus.spans give for the text of a row's pieces, each run of
pieces between special ones by itself; special pieces lie in no span. The text is put together from the pieces, so every
task has tags, whatever its rows are made from. Blocks have the tags of the text itself; the two differ where a
vocabulary changes the text, such as to lower case (`without_effect`). Worker processes run this module.
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from spanbert_jax.tasks.rows import Featurise, Row
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.span_syntax import parse_rules
from spanbert_jax.text.span_tags import piece_tags
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.tokenizer import Tokenizer

_ExampleT = TypeVar("_ExampleT")

_CLOSING, _OPENING = (
    tuple(".,;:!?)]}%'"),
    tuple("([{$'"),
)  # punctuation without a space before it, and without one after


@dataclasses.dataclass(frozen=True)
class RowsWithSpans(Generic[_ExampleT]):
    """Makes the rows of `make`, with the column "span_tags" (model/span_tags.py)."""

    make: Featurise[_ExampleT]
    tokenizer: Tokenizer
    finder: SpanFinder
    language: str  # for the sentence splitter
    splitter: str  # "sentencex" or "none"

    def __call__(self, examples: Sequence[_ExampleT]) -> list[list[Row]]:
        """The rows of each example."""
        made = self.make(examples)
        return [[{**row, "span_tags": self.tags(row["input_ids"])} for row in rows] for rows in made]

    def tags(self, input_ids: Sequence[int]) -> list[int]:
        """The span tag of each piece of a row."""
        tokenizer, ids = self.tokenizer, np.asarray(input_ids)
        special = np.isin(ids, (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id))
        tags = np.zeros(len(ids), np.uint8)
        edges = np.flatnonzero(np.diff(special, prepend=True, append=True))
        for begin, end in edges.reshape(-1, 2):
            tags[begin:end] = self._tags_of_text(ids[begin:end])
        return tags.tolist()

    def _tags_of_text(self, ids: np.ndarray) -> np.ndarray:
        """The tags of pieces without special ones, uint8 [pieces]."""
        text, begins, ends = "", [], []
        for id in ids.tolist():
            piece = self.tokenizer.written(id)
            if self.tokenizer.kind == "wordpiece" and (piece[1:] in _CLOSING or text[-1:] in _OPENING):
                piece = piece.strip()
            begins.append(len(text))
            text += piece
            ends.append(len(text))
        sentences = split_sentences(text, self.language, self.splitter)
        if not sentences:
            return np.zeros(len(ids), np.uint8)
        offsets, at, first = [], 0, 0
        for number, sentence in enumerate(sentences):
            at = text.index(sentence, at)
            is_last = number == len(sentences) - 1
            stop = len(ids) if is_last else bisect_right(begins, at + len(sentence) - 1)
            of_sentence = slice(first, stop)
            edges = zip(begins[of_sentence], ends[of_sentence], strict=True)
            offsets.append([(begin - at, end - at) for begin, end in edges])
            at, first = at + len(sentence), stop
        found = self.finder.find(text, sentences)
        return piece_tags(found.sentences, found.spans, offsets)


def without_effect(rules: str, tokenizer: Tokenizer) -> list[str]:
    """The rules of config.corpus.spans that are of no use for rows: files of spans, which know whole documents alone,
    and `capitals` where the tokenizer lowercases text."""
    lowercases = tokenizer.decode(tokenizer.tokenize("A")).strip() == "a"  # for a tokenizer.json, nothing else says so
    lost = {"file", "capitals"} if lowercases else {"file"}
    return [rule.written for rule in parse_rules(rules) if rule.name in lost]
