"""Fills the masked positions of rows, in an order, by scores that are computed anew as pieces are filled in.

Invariant: a row's filling depends on the row alone, whatever rows are filled beside it. The score of a filling is the
sum of the log-probabilities that its pieces had when they were filled in.

    parallel        all scores come from the row with every position masked
    confidence      the surest piece first; the others are then scored again
    left_to_right   the leftmost position first; the score is the log-probability of the chain
    beam            left to right, with the best few fillings so far kept at each position
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from spanbert_jax.serving.gaps import ANY, CLASSES, CONTINUES

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

    def extended(self, position: int, choice: Choice) -> "Filling":
        return Filling({**self.choices, position: choice}, self.log_prob + choice.chosen.log_prob)


def fill(tasks: Sequence[Task], order: str, beam: int, score: Score, ends_word: np.ndarray) -> list[list[Filling]]:
    """The fillings of each task, best first: one, or with order "beam" up to `beam`.

    order: one of ORDERS. beam: at most K. score: gives the scores of each query. ends_word: bool [vocab], as of the
    tokenizer.
    """
    keep = beam if order == "beam" else 1
    fillings: list[list[Filling]] = [[Filling()] for _ in tasks]
    known: list[tuple[tuple[int, ...], Scores]] = []
    if order == "parallel":
        queries = [_query(task, Filling(), _open(task, Filling())) for task in tasks]
        known = [(query.wanted, scores) for query, scores in zip(queries, score(queries), strict=True)]
    for step in range(max((len(_open(task, Filling())) for task in tasks), default=0)):
        live = [
            (number, filling)
            for number, task in enumerate(tasks)
            for filling in fillings[number]
            if _open(task, filling)
        ]
        if order == "parallel":
            scored = [known[number] for number, _ in live]
        else:
            wanted = [_open(tasks[number], filling) for number, filling in live]
            wanted = wanted if order == "confidence" else [positions[:1] for positions in wanted]
            queries = [_query(tasks[n], filling, of) for (n, filling), of in zip(live, wanted, strict=True)]
            scored = list(zip(wanted, score(queries), strict=True))
        grown: dict[int, list[Filling]] = {}
        for (number, filling), (positions, scores) in zip(live, scored, strict=True):
            at = 0 if order == "parallel" else step
            followers = _followers(tasks[number], filling, positions, scores, ends_word, at, keep)
            grown.setdefault(number, []).extend(followers)
        for number, found in grown.items():
            best = sorted(found, key=lambda filling: -filling.log_prob)
            fillings[number] = best[:keep]
    return fillings


def _followers(
    task: Task,
    filling: Filling,
    positions: tuple[int, ...],
    scores: Scores,
    ends_word: np.ndarray,
    step: int,
    count: int,
) -> Iterator[Filling]:
    """The filling with one piece more, in up to `count` ways: at the open position whose best piece is the surest."""
    found = {
        position: _candidates(scores, place, task, filling, position, ends_word)
        for place, position in enumerate(positions)
        if position not in filling.choices
    }
    position = max(found, key=lambda position: found[position][0].log_prob)  # of equal ones the leftmost
    for candidate in found[position][:count]:
        yield filling.extended(position, Choice(candidate, found[position], step))


def _candidates(
    scores: Scores, place: int, task: Task, filling: Filling, position: int, ends_word: np.ndarray
) -> tuple[Candidate, ...]:
    """The best pieces that may stand at a wanted position, best first: K, or fewer where fewer are allowed."""
    target = next(target for target in task.targets if position in target.positions)

    @functools.cache
    def allowed(kind: int, ends: bool) -> bool:
        if position == target.positions[0] and kind not in target.first:
            return False
        return target.words is None or _can_have(target, filling, position, kind, ends)

    every = [
        Candidate(int(piece), float(log_prob), tuple(map(float, by_head)), kind, bool(ends_word[piece]))
        for kind in range(CLASSES)
        for piece, log_prob, by_head in zip(*(field[place, kind] for field in scores), strict=True)
        if log_prob > -np.inf
    ]
    found = [one for one in every if allowed(one.kind, one.ends)] or every
    return tuple(sorted(found, key=lambda candidate: -candidate.log_prob)[: scores.pieces.shape[-1]])


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


def _query(task: Task, filling: Filling, wanted: tuple[int, ...]) -> Query:
    ids = list(task.ids)
    for position, choice in filling.choices.items():
        ids[position] = choice.chosen.piece
    masked = tuple(position for position in task.masked if position not in filling.choices)
    return Query(ids, masked, wanted)
