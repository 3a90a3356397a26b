"""Fills the masked positions of rows, in an order, by scores that are computed anew as words are filled in.

Invariant: a row's filling depends on the row alone, whatever rows are filled beside it. The score of a filling is the
sum of the log-probabilities that its pieces had when they were filled in.

    parallel        all scores come from the row with every position masked
    confidence      the surest word first; the others are then scored again
    left_to_right   the leftmost word first; the score is the log-probability of the chain
    beam            left to right, with the best few fillings so far kept at each position

A word is filled in from left to right, and no piece of a word sees the others. The model was trained on masked words,
so a word that is half visible is unlike all that it has seen: the first masked piece behind visible ones begins a word.
With "word" for the row in which the word is masked, and "row" for the row in which all filled pieces are visible, a
piece v behind a filled piece has the probability

    p(v | word)                                       where v goes on with the word
    p(a new word | word) p(v | row, a new word)       where v begins a new word

which add up to 1. Where the vocabulary does not mark words, every piece counts as a word.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from spanbert_jax.serving.gaps import ANY, CONTINUES, JOINED, SPACED

ORDERS = ("parallel", "confidence", "left_to_right", "beam")


class Query(NamedTuple):
    """A row whose masked positions are to be scored."""

    ids: Sequence[int]  # [CLS] text [SEP], with [MASK] at `masked`
    masked: tuple[int, ...]  # every masked position, ascending: neighbours among them are one span
    wanted: tuple[int, ...]  # those that are scored


class Scores(NamedTuple):
    """The best pieces of each class at each wanted position of a query, best first. K is fixed."""

    pieces: np.ndarray  # int32 [wanted, CLASSES, K]
    log_probs: np.ndarray  # float32 [wanted, CLASSES, K]; -inf where the class has fewer pieces
    by_head: np.ndarray  # float32 [wanted, CLASSES, K, heads]; NaN where the head does not predict the position
    masses: np.ndarray  # float32 [wanted, CLASSES]: log of the probability of all pieces of the class; -inf for none


Score = Callable[[Sequence[Query]], list[Scores]]


class Candidate(NamedTuple):
    """A piece that may stand at a position."""

    piece: int
    log_prob: float
    by_head: tuple[float, ...]  # log-probabilities; NaN where the head does not predict the position
    kind: int  # its class
    ends: bool  # whether the next piece begins a word in any case


class Choice(NamedTuple):
    """A piece that was filled in."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]  # the best that were allowed, best first
    step: int  # from 0: when it was filled in


@dataclasses.dataclass(frozen=True)
class Target:
    """The positions of a gap that are to be filled."""

    positions: tuple[int, ...]
    first: frozenset[int] = ANY  # classes of the first piece
    words: tuple[int, int] | None = None  # fewest and most words, of which the first piece begins one; None: any number


@dataclasses.dataclass(frozen=True)
class Task:
    """A row to fill. Positions that are masked and in no target stay masked."""

    ids: tuple[int, ...]
    masked: tuple[int, ...]
    targets: tuple[Target, ...]


@dataclasses.dataclass(frozen=True)
class Filling:
    """A row with some or all targets filled: position -> choice."""

    choices: Mapping[int, Choice] = dataclasses.field(default_factory=dict)
    log_prob: float = 0.0
    last: int = -1  # the position that was filled last
    word: "Scored | None" = dataclasses.field(default=None, compare=False)  # of the row in which that word was masked

    def extended(self, position: int, choice: Choice, word: "Scored | None") -> "Filling":
        choices = {**self.choices, position: choice}
        return Filling(choices, self.log_prob + choice.chosen.log_prob, position, word)


class Scored(NamedTuple):
    """Positions with their scores."""

    positions: tuple[int, ...]
    scores: Scores


def fill(tasks: Sequence[Task], order: str, beam: int, score: Score, ends_word: np.ndarray) -> list[list[Filling]]:
    """The fillings of each task, best first: one, or with order "beam" up to `beam`.

    order: one of ORDERS. beam: at most K. score: gives the scores of each query. ends_word: bool [vocab], as of the
    tokenizer.
    """
    keep = beam if order == "beam" else 1
    fillings: list[list[Filling]] = [[Filling()] for _ in tasks]

    def scored(live: Sequence[tuple[int, Filling]]) -> list[Scored]:
        queries = [_query(tasks[number], filling) for number, filling in live]
        return [Scored(query.wanted, scores) for query, scores in zip(queries, score(queries), strict=True)]

    known = scored([(number, Filling()) for number in range(len(tasks))]) if order == "parallel" else []
    for step in range(max((len(_open(task, Filling())) for task in tasks), default=0)):
        live = [
            (number, filling)
            for number, task in enumerate(tasks)
            for filling in fillings[number]
            if _open(task, filling)
        ]
        now = [known[number] for number, _ in live] if order == "parallel" else scored(live)
        grown: dict[int, list[Filling]] = {}
        for (number, filling), row in zip(live, now, strict=True):
            ways = _Ways(tasks[number], filling, row, ends_word)
            position, candidates = ways.next(order)
            at = 0 if order == "parallel" else step
            for one in candidates[:keep]:
                choice = Choice(one, candidates, at)
                grown.setdefault(number, []).append(filling.extended(position, choice, ways.word_of(position, one)))
        for number, found in grown.items():
            fillings[number] = sorted(found, key=lambda filling: -filling.log_prob)[:keep]
    return fillings


class _Ways:
    """The ways to go on with a filling."""

    def __init__(self, task: Task, filling: Filling, row: Scored, ends_word: np.ndarray):
        """row: the scores of the row in which all filled pieces are visible; of order "parallel", none of them."""
        self._task, self._filling, self._row, self._ends_word = task, filling, row, ends_word
        self._target = {position: target for target in task.targets for position in target.positions}
        marks_words = ends_word.any() or np.isfinite(_begin_mass(row.scores, 0))
        before = filling.choices.get(filling.last)
        after = filling.last + 1
        here = self._target.get(filling.last)
        is_whole = before is None or before.chosen.ends or not marks_words
        # The position at which the last word may go on.
        self._goes_on = None if is_whole or here is not self._target.get(after) or after in filling.choices else after
        self._marks_words = marks_words

    def next(self, order: str) -> tuple[int, tuple[Candidate, ...]]:
        """(the position that is filled next, its candidates: K or fewer, best first)."""
        positions = _open(self._task, self._filling)
        if order == "parallel":
            found = {position: self._in_row(position, ANY) for position in positions}
            return _surest(found)
        if order != "confidence":
            position = positions[0]
            return position, self._here(position)
        if self._goes_on is not None:
            candidates = self._here(self._goes_on)
            if candidates[0].kind == CONTINUES:
                return self._goes_on, candidates
        found = {position: self._here(position) for position in positions}
        return _surest({position: of for position, of in found.items() if self._begins(position, of[0])})

    def word_of(self, position: int, chosen: Candidate) -> Scored | None:
        """The scores of the row in which the word of a chosen piece was masked."""
        return self._filling.word if position == self._goes_on and chosen.kind == CONTINUES else self._row

    def _begins(self, position: int, best: Candidate) -> bool:
        is_behind = position - 1 not in self._target or position - 1 in self._filling.choices
        return is_behind or best.kind != CONTINUES or not self._marks_words

    def _here(self, position: int) -> tuple[Candidate, ...]:
        if position == self._goes_on and self._filling.word is not None:
            return self._at_a_words_end(position, self._filling.word)
        is_behind = self._marks_words and position - 1 in self._filling.choices
        ended = is_behind and self._filling.choices[position - 1].chosen.ends
        return self._in_row(position, ANY - {CONTINUES} if is_behind and not ended else ANY)

    def _in_row(self, position: int, kinds: frozenset[int]) -> tuple[Candidate, ...]:
        return self._best(position, _candidates(self._row, position, kinds, 0.0, self._ends_word))

    def _at_a_words_end(self, position: int, word: Scored) -> tuple[Candidate, ...]:
        """The pieces that go on with the last word, and those that begin a new one."""
        new, of_row = (_begin_mass(of.scores, of.positions.index(position)) for of in (word, self._row))
        same = _candidates(word, position, frozenset({CONTINUES}), 0.0, self._ends_word)
        other = _candidates(self._row, position, ANY - {CONTINUES}, new - of_row, self._ends_word)
        return self._best(position, same + other)

    def _best(self, position: int, every: list[Candidate]) -> tuple[Candidate, ...]:
        """The candidates that may stand at a position, best first: K, or fewer where fewer are allowed."""
        target = self._target[position]

        @functools.cache
        def allowed(kind: int, ends: bool) -> bool:
            if position == target.positions[0] and kind not in target.first:
                return False
            return target.words is None or _can_have(target, self._filling, position, kind, ends)

        found = [one for one in every if allowed(one.kind, one.ends)] or every
        count = self._row.scores.pieces.shape[-1]
        return tuple(sorted(found, key=lambda candidate: -candidate.log_prob)[:count])


def _surest(found: Mapping[int, tuple[Candidate, ...]]) -> tuple[int, tuple[Candidate, ...]]:
    return max(found.items(), key=lambda item: item[1][0].log_prob)  # of equal ones the leftmost


def _begin_mass(scores: Scores, place: int) -> float:
    """The log-probability that the piece at a wanted position begins a word."""
    return float(np.logaddexp(scores.masses[place, SPACED], scores.masses[place, JOINED]))


def _candidates(
    scored: Scored, position: int, kinds: frozenset[int], shift: float, ends_word: np.ndarray
) -> list[Candidate]:
    """The best pieces of some classes at a position. shift: is added to their log-probabilities."""
    place, scores = scored.positions.index(position), scored.scores
    fields = (scores.pieces, scores.log_probs, scores.by_head)
    return [
        Candidate(int(piece), float(log_prob) + shift, tuple(map(float, by_head)), kind, bool(ends_word[piece]))
        for kind in sorted(kinds)
        for piece, log_prob, by_head in zip(*(field[place, kind] for field in fields), strict=True)
        if log_prob > -np.inf
    ]


def _can_have(target: Target, filling: Filling, position: int, kind: int, ends: bool) -> bool:
    """Whether the target can still have as many words as it should, with such a piece at a position.

    A piece begins a word by itself, or because the piece before it ends one; the first piece always does. The most
    words count what pieces that are still open can do by themselves, which some piece of every vocabulary does.
    """
    assert target.words is not None
    known = {p: (choice.chosen.kind, choice.chosen.ends) for p, choice in filling.choices.items()}
    known[position] = kind, ends
    fewest = most = 1
    for before, here in pairwise(target.positions):
        begun = (here in known and known[here][0] != CONTINUES) or (before in known and known[before][1])
        fewest += begun
        most += begun or here not in known
    return fewest <= target.words[1] and most >= target.words[0]


def _open(task: Task, filling: Filling) -> tuple[int, ...]:
    """The positions of the targets that are not filled, ascending."""
    return tuple(p for target in task.targets for p in target.positions if p not in filling.choices)


def _query(task: Task, filling: Filling) -> Query:
    """The row with the filled pieces visible; every open position is wanted."""
    ids = list(task.ids)
    for position, choice in filling.choices.items():
        ids[position] = choice.chosen.piece
    masked = tuple(position for position in task.masked if position not in filling.choices)
    return Query(ids, masked, _open(task, filling))
