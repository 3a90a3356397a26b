"""Texts with gaps: which characters are to be filled in, with how many pieces, and which pieces may begin there.

Invariant: a gap begins and ends where words do, so the pieces of the text around a gap do not depend on the filling.
Offsets are characters (code points) of the text as given.

    [MASK]          one piece that begins a word; [MASK] [MASK] is a gap of two pieces, of one or two words
    ___             whole words of a number that is not known: three underscores or more
    spans           the characters [start, end) of a text without marks are replaced by whole words
"""

import bisect
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from spanbert_jax.errors import UserError, quoted
from spanbert_jax.tasks.example_files import without_surrogates
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.text.wordpiece import is_own_word

MARK, BLANK = "[MASK]", "___"
MOST_WORDS = 10  # in a gap; the longest spans that pre-training masks have as many
# The classes of the pieces that may fill a gap: the piece begins a word after a space; it begins a word without one, as
# punctuation does; it goes on with the word before it. WordPiece has no second class: it marks no spaces.
SPACED, JOINED, CONTINUES = range(3)
CLASSES = 3
ANY = frozenset(range(CLASSES))

_MARKS = re.compile(rf"_{{3,}}|{re.escape(MARK)}(?:[ \t]*{re.escape(MARK)})*")
_NO_TEXT = re.compile(r"<0x[0-9A-F]{2}>|\[unused\d+\]|</?s>")  # bytes, and pieces that are reserved or mark ends
_STAND_INS = "a1A中"  # one of these stands for a gap while the text around the gap is read
_MOST_PIECES = 2  # for each word, of the lengths that are tried; but at least:
_PIECES_OF_A_WORD = 3

Span = tuple[int, int]
Words = int | tuple[int, int]


class Gap(NamedTuple):
    """A place to fill."""

    start: int  # the characters [start, end) of the text are replaced
    end: int
    lengths: tuple[int, ...]  # the numbers of pieces that are tried, ascending
    words: tuple[int, int]  # fewest and most words
    first: frozenset[int]  # classes of the pieces that may come first


class GappedText(NamedTuple):
    """A text with its gaps, in the order of the text."""

    text: str
    gaps: tuple[Gap, ...]
    around: tuple[list[int], ...]  # the ids before the first gap, between gaps, and after the last one

    def row(self, tokenizer: Tokenizer, lengths: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        """(the ids of [CLS] text [SEP] with `lengths[i]` [MASK]s in gap i, the positions of each gap's [MASK]s)."""
        ids, places = [tokenizer.cls_id, *self.around[0]], []
        for length, behind in zip(lengths, self.around[1:], strict=True):
            places.append(list(range(len(ids), len(ids) + length)))
            ids += [*[tokenizer.mask_id] * length, *behind]
        return [*ids, tokenizer.sep_id], places


def piece_classes(tokenizer: Tokenizer) -> np.ndarray:
    """bool [CLASSES, vocab_size]: the pieces of each class. Special pieces, lone white space and bytes of characters
    are in none, since they are no text. Every piece is in CONTINUES where the vocabulary does not mark words."""
    known = range(tokenizer.vocab_size)
    text = np.array([bool(tokenizer.surface(id)) and not _NO_TEXT.fullmatch(tokenizer.piece(id)) for id in known])
    text &= ~tokenizer.joins_next
    text[tokenizer.special_ids] = False
    if not tokenizer.marks_words:
        return np.stack([text & False, text & False, text])
    spaced = np.array([tokenizer.written(id).startswith(" ") for id in known])
    starts = tokenizer.starts_word
    return np.stack([text & starts & spaced, text & starts & ~spaced, text & ~starts])


def words_of(words: Words) -> tuple[int, int]:
    """(fewest, most) words; raises UserError where they are no numbers from 1 to 10 in order."""
    given = words if isinstance(words, tuple | list) else (words, words)
    if len(given) != 2 or not all(isinstance(n, int) for n in given) or not 1 <= given[0] <= given[1] <= MOST_WORDS:
        raise UserError(f"words is {quoted(words)}; expected a number from 1 to {MOST_WORDS}, or two of them in order")
    fewest, most = given
    return fewest, most


def read_gaps(
    text: str, spans: Sequence[Span] | None, words: Words, tokenizer: Tokenizer, classes: np.ndarray
) -> GappedText:
    """The gaps of a text: its marks, or with `spans` those characters, and every mark is then text like other text.

    words: of each gap but those of [MASK]s. classes: `piece_classes` of the tokenizer. Raises UserError where there is
    no gap, two gaps touch, a gap lies outside of the text or ends inside a word, or the vocabulary does not mark words
    and the number of pieces is open.
    """
    text = read_text(text)
    found = _marked(text) if spans is None else [(start, end, 0) for start, end in _checked(text, spans)]
    fewest, most = words_of(words)
    _check_apart(text, found)
    gaps = []
    for start, end, pieces in found:
        if not pieces and not tokenizer.marks_words:
            raise UserError(
                f"the pieces of this vocabulary do not show where words begin, so the gap at character {start} needs a "
                f"number of pieces; write {MARK} for each piece"
            )
        _check_edges(text, start, end)
        longest = max(_MOST_PIECES * most, _PIECES_OF_A_WORD)
        lengths = (pieces,) if pieces else tuple(range(fewest, longest + 1))
        first = _first_classes(text, start, tokenizer, classes)
        gaps.append(Gap(start, end, lengths, (1, pieces) if pieces else (fewest, most), first))
    return GappedText(text, tuple(gaps), _around(tokenizer, text, gaps))


def check_pairs(spans: Sequence[Span]) -> None:
    """Raises UserError where one of the spans is no (start, end)."""
    for span in spans:
        if not isinstance(span, tuple | list) or [type(number) for number in span] != [int, int]:
            raise UserError(f"{quoted(span)} is no span; give (start, end), two numbers of characters")


def read_text(text: str) -> str:
    """The text `without_surrogates`; raises UserError where it is no text."""
    if not isinstance(text, str):
        raise UserError(f"expected a text, found {type(text).__name__} ({str(text)[:40]!r}); give one text")
    return without_surrogates(text)


def _marked(text: str) -> list[tuple[int, int, int]]:
    """(start, end, number of pieces or 0) of each mark in a text."""
    found = [(*match.span(), match[0].count(MARK)) for match in _MARKS.finditer(text)]
    if not found:
        raise UserError(
            f"{text[:40]!r} has nothing to fill in; write {MARK} for one piece or {BLANK} for some words, or name the "
            "characters to replace"
        )
    return found


def _checked(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans in the order of the text, without the white space at their ends."""
    if not spans:
        raise UserError("spans is empty; give at least one (start, end), the characters to replace")
    check_pairs(spans)
    stripped = []
    for start, end in sorted(spans):
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise UserError(
                f"the span ({start}, {end}) has no characters to replace: the text has {len(text)} characters; give "
                "spans (start, end) in it"
            )
        inside = text[start:end]
        stripped.append((start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())))
    return stripped


def _check_apart(text: str, found: Sequence[tuple[int, int, int]]) -> None:
    for (_, end, _), (start, _, _) in pairwise(found):
        if not text[end:start].strip():
            raise UserError(
                f"the gaps that end at character {end} and begin at {start} touch; make one gap of them, and say with "
                "words how many words it has"
            )


def _check_edges(text: str, start: int, end: int) -> None:
    """Raises UserError where a gap ends inside a word."""
    before, behind = text[start - 1 : start], text[end : end + 1]
    for char in (before, behind):
        if char and not char.isspace() and not is_own_word(char):
            raise UserError(
                f"the gap from character {start} to {end} ends inside a word, beside {char!r}; a gap is filled with "
                "whole words: let it end at white space or punctuation"
            )


def _first_classes(text: str, start: int, tokenizer: Tokenizer, classes: np.ndarray) -> frozenset[int]:
    """The classes of the pieces that may come first in a gap that begins at a character of the text."""
    if not tokenizer.marks_words:
        return ANY
    if not classes[JOINED].any():  # WordPiece
        return frozenset({SPACED})
    after_space = text[start - 1].isspace() if start else tokenizer.written(tokenizer.tokenize("a")[0]).startswith(" ")
    return frozenset({SPACED}) if after_space else frozenset({JOINED, CONTINUES})


def _around(tokenizer: Tokenizer, text: str, gaps: Sequence[Gap]) -> tuple[list[int], ...]:
    """The ids before, between and after the gaps: those of the text in which a word stands in each gap."""
    for stand_in in _STAND_INS:
        parts, places, at = "", [], 0
        for gap in gaps:
            parts += text[at : gap.start]
            places.append(len(parts))
            parts, at = parts + stand_in, gap.end
        around: list[list[int]] = [[] for _ in range(len(gaps) + 1)]
        clean = True
        for id, (begin, end) in zip(*tokenizer.tokenize_with_offsets(parts + text[at:]), strict=True):
            passed = bisect.bisect_left(places, begin)  # stand-ins that begin before the piece
            inside = places[passed : bisect.bisect_left(places, end)]
            clean &= not any(begin < place or place < end - 1 for place in inside)
            if places[passed : passed + 1] != [begin]:
                around[passed].append(id)
        if clean:
            return tuple(around)
    raise UserError(
        f"{text[:40]!r}: the vocabulary has no boundary of pieces beside a gap; put white space on both sides of it"
    )
