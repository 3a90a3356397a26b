"""Searches the fillings of texts with gaps: which numbers of pieces are tried, and which one a gap takes.

Invariant: each number of pieces is a row of its own, of exactly its length, and all rows of all texts are filled
together. A gap of given length has one row. A filling with too few or too many words is taken only where no other is
found.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spanbert_jax.serving.decoding import Choice, Filling, Score, Target, Task, fill
from spanbert_jax.serving.gaps import Gap, GappedText
from spanbert_jax.serving.mixture import Mixture
from spanbert_jax.text.tokenizer import Tokenizer, word_starts


class Found(NamedTuple):
    """A filling of one gap."""

    ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    log_prob: float
    score: float  # as `Mixture.rank`
    fits: bool  # whether it has as many words as the gap should


class Solution(NamedTuple):
    """The filling of each gap of a text, and for each gap the others that were found, best first."""

    gaps: tuple[Found, ...]
    others: tuple[tuple[Found, ...], ...]


class _Row(NamedTuple):
    """A row to fill."""

    text: int  # the number of its text
    lengths: tuple[int, ...]  # of each gap
    filled: tuple[int, ...]  # the gaps that are filled; the others stay masked


def search(
    texts: Sequence[GappedText], tokenizer: Tokenizer, mixture: Mixture, order: str, beam: int, score: Score
) -> list[Solution]:
    """The solution of each text. order, beam, score: as for `decoding.fill`."""

    def filled(rows: Sequence[_Row]) -> list[list[tuple[Found, ...]]]:
        """For each row its fillings, best first: each with one `Found` for each gap that the row fills."""
        made = [_task(texts[row.text], row, tokenizer) for row in rows]
        fillings = fill([task for task, _ in made], order, beam, score, tokenizer.ends_word)
        return [
            [_found(texts[row.text], row, places, one, tokenizer, mixture) for one in of]
            for row, (_, places), of in zip(rows, made, fillings, strict=True)
        ]

    first = [row for number, text in enumerate(texts) for row in _first_rows(number, text, mixture)]
    by_gap: list[list[list[Found]]] = [[[] for _ in text.gaps] for text in texts]
    whole: dict[int, list[tuple[Found, ...]]] = {}
    for row, of in zip(first, filled(first), strict=True):
        if len(row.filled) == len(texts[row.text].gaps) > 1:
            whole[row.text] = of
        for one in of:
            for gap, found in zip(row.filled, one, strict=True):
                by_gap[row.text][gap].append(found)
    ranked = [[sorted(found, key=_order) for found in of] for of in by_gap]
    last = [
        _Row(number, _chosen(text, ranked[number]), tuple(range(len(text.gaps))))
        for number, text in enumerate(texts)
        if len(text.gaps) > 1 and number not in whole
    ]
    whole |= {row.text: of for row, of in zip(last, filled(last), strict=True)}
    return [_solution(ranked[number], whole.get(number)) for number in range(len(texts))]


def _first_rows(number: int, text: GappedText, mixture: Mixture) -> list[_Row]:
    """A row for each length of each gap of open length, in which that gap alone is filled and the other ones have their
    likeliest length; of a text without a gap of open length, one row with all gaps."""
    usual = tuple(
        max(gap.lengths, key=mixture.log_length) if len(gap.lengths) > 1 else gap.lengths[0] for gap in text.gaps
    )
    of_gaps = [
        _Row(number, (*usual[:place], length, *usual[place + 1 :]), (place,))
        for place, gap in enumerate(text.gaps)
        for length in gap.lengths
        if len(gap.lengths) > 1
    ]
    return of_gaps or [_Row(number, usual, tuple(range(len(text.gaps))))]


def _chosen(text: GappedText, ranked: Sequence[Sequence[Found]]) -> tuple[int, ...]:
    """The lengths of the gaps' best fillings; given ones as they are."""
    return tuple(len(of[0].ids) if of else gap.lengths[0] for gap, of in zip(text.gaps, ranked, strict=True))


def _solution(ranked: list[list[Found]], whole: list[tuple[Found, ...]] | None) -> Solution:
    """ranked: fillings of each gap, best first. whole: fillings of all gaps together, of a text with several."""
    if whole is None:
        ((best, *rest),) = ranked
        return Solution((best,), (tuple(rest),))
    taken, *left = sorted(whole, key=lambda one: sum(not found.fits for found in one))  # stable: else best first
    others = [tuple(sorted([*(one[gap] for one in left), *found], key=_order)) for gap, found in enumerate(ranked)]
    return Solution(taken, tuple(others))


def _order(found: Found) -> tuple[bool, float]:
    return not found.fits, -found.score


def _task(text: GappedText, row: _Row, tokenizer: Tokenizer) -> tuple[Task, list[list[int]]]:
    """(the task of a row, the positions of each gap's pieces)."""
    ids, places = text.row(tokenizer, row.lengths)
    targets = []
    for place in row.filled:
        gap = text.gaps[place]
        targets.append(Target(tuple(places[place]), gap.first, gap.words if tokenizer.marks_words else None))
    masked = tuple(position for of in places for position in of)
    return Task(tuple(ids), masked, tuple(targets)), places


def _found(
    text: GappedText, row: _Row, places: list[list[int]], filling: Filling, tokenizer: Tokenizer, mixture: Mixture
) -> tuple[Found, ...]:
    return tuple(
        _of_gap(text.gaps[gap], tuple(filling.choices[position] for position in places[gap]), tokenizer, mixture)
        for gap in row.filled
    )


def _of_gap(gap: Gap, choices: tuple[Choice, ...], tokenizer: Tokenizer, mixture: Mixture) -> Found:
    ids = tuple(choice.chosen.piece for choice in choices)
    log_prob = sum(choice.chosen.log_prob for choice in choices)
    words = int(np.sum(word_starts(tokenizer, ids)))
    fits = gap.words[0] <= words <= gap.words[1] or not tokenizer.marks_words
    return Found(ids, choices, log_prob, mixture.rank(log_prob, len(ids), len(gap.lengths) > 1), fits)
