"""Filling masked positions: each order against a plain loop over whole vocabularies, and beams against enumeration."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from spanbert_jax.serving.decoding import Filling, Query, Scores, Target, Task, fill
from spanbert_jax.serving.gaps import ANY, CONTINUES, JOINED, SPACED

KINDS = np.array([SPACED, SPACED, JOINED, CONTINUES, CONTINUES])  # of the pieces 0 to 4
ENDS = np.array([False, False, True, False, False])  # whether the piece ends a word
VOCAB, BEST, MASK = len(KINDS), 10, 77


def log_probs(query: Query, position: int) -> np.ndarray:
    """A distribution over the pieces that depends on all that a model sees: the row and which positions are masked."""
    seed = [1 + piece for piece in query.ids] + [100 + place for place in query.masked] + [position]
    logits = np.random.default_rng(seed).normal(0, 2, VOCAB)
    return logits - np.log(np.exp(logits).sum())


def score(queries: Sequence[Query]) -> list[Scores]:
    """The scores of a device, from `log_probs`: the second head's are twice the first's."""
    found = []
    for query in queries:
        assert all(query.ids[position] == MASK for position in query.masked)
        shape = (len(query.wanted), 3, BEST)
        pieces, values, masses = np.zeros(shape, np.int32), np.full(shape, -np.inf), np.zeros(shape[:2])
        for place, position in enumerate(query.wanted):
            of_all = log_probs(query, position)
            for kind in range(3):
                order = sorted(np.flatnonzero(kind == KINDS), key=lambda piece: -of_all[piece])
                pieces[place, kind, : len(order)], values[place, kind, : len(order)] = order, of_all[order]
                masses[place, kind] = np.log(np.exp(of_all[order]).sum())
        found.append(Scores(pieces, values, np.stack([values, 2 * values], axis=-1), masses))
    return found


def task(positions: tuple[int, ...], **target: object) -> Task:
    """A row of 12 pieces with [MASK] at 2, and at the positions to fill."""
    masked = tuple(sorted({2, *positions}))
    ids = tuple(MASK if place in masked else 10 + place for place in range(12))
    return Task(ids, masked, (Target(positions, **target),))  # type: ignore[arg-type]


TASKS = [
    task((4, 5, 6)),
    task((7,)),
    task((3, 4)),
    Task((9, 77, 8, 77, 77, 5), (1, 3, 4), (Target((1,)), Target((3, 4)))),
]


def filled(task: Task, filling: Filling) -> list[int]:
    return [filling.choices[p].chosen.piece for target in task.targets for p in target.positions]


@dataclasses.dataclass
class Row:
    """A row that is filled piece by piece."""

    ids: list[int]
    masked: tuple[int, ...]
    last: int = -1  # the position that was filled last
    word: Query | None = None  # the row in which its word was masked

    @classmethod
    def of(cls, task: Task) -> "Row":
        return cls(list(task.ids), task.masked)

    @property
    def query(self) -> Query:
        return Query(list(self.ids), self.masked, ())

    def chances(self, position: int) -> np.ndarray:
        """The log-probabilities of all pieces right behind the piece that was filled last."""
        row = log_probs(self.query, position)
        if position != self.last + 1 or self.word is None or ENDS[self.ids[self.last]]:
            return row
        word, begins = log_probs(self.word, position), KINDS != CONTINUES
        given_new = row - np.log(np.exp(row[begins]).sum())
        return np.where(begins, given_new + np.log(np.exp(word[begins]).sum()), word)

    def fill(self, position: int, piece: int) -> None:
        behind = position == self.last + 1 and not ENDS[self.ids[self.last]]
        if self.word is None or not behind or KINDS[piece] != CONTINUES:
            self.word = self.query
        self.ids[position], self.last = piece, position
        self.masked = tuple(place for place in self.masked if place != position)


def by_a_plain_loop(task: Task, order: str) -> tuple[list[int], float]:
    """The filling of a task without constraints, piece by piece."""
    row, total = Row.of(task), 0.0
    targets = [target.positions for target in task.targets]
    while open_ := [p for positions in targets for p in positions if p in row.masked]:
        firsts = {positions[0] for positions in targets}
        here = {p: row.chances(p) if p not in firsts else log_probs(row.query, p) for p in open_}
        if order == "parallel":
            here = {p: log_probs(Query(task.ids, task.masked, ()), p) for p in open_}
            position = max(here, key=lambda p: here[p].max())
        elif order == "left_to_right":
            position = open_[0]
        else:
            position = _surest_word(row, here, firsts)
        piece = int(np.argmax(here[position]))
        total += here[position][piece]
        row.fill(position, piece)
    return [row.ids[p] for positions in targets for p in positions], total


def _surest_word(row: Row, here: dict[int, np.ndarray], firsts: set[int]) -> int:
    """The position at which the last word goes on; where it does not, the surest of those at which a word begins."""
    goes_on = row.last + 1
    behind = [p for p in here if p not in firsts and p - 1 not in row.masked]
    if goes_on in behind and not ENDS[row.ids[row.last]] and KINDS[np.argmax(here[goes_on])] == CONTINUES:
        return goes_on
    for p in behind:  # a word begins there, whatever the row says
        if not ENDS[row.ids[p - 1]] and p != goes_on:
            here[p] = np.where(KINDS == CONTINUES, -np.inf, here[p])
    starts = [p for p in here if p in firsts or p in behind or KINDS[np.argmax(here[p])] != CONTINUES]
    return max(starts, key=lambda p: here[p].max())


@pytest.mark.parametrize("order", ["parallel", "confidence", "left_to_right"])
def test_an_order_fills_as_a_plain_loop_does(order: str) -> None:
    for one, fillings in zip(TASKS, fill(TASKS, order, 4, score, ENDS), strict=True):
        pieces, total = by_a_plain_loop(one, order)
        assert len(fillings) == 1 and filled(one, fillings[0]) == pieces
        assert fillings[0].log_prob == pytest.approx(total)


def chain(task: Task, pieces: Sequence[int]) -> float:
    """The log-probability of the pieces of the first target, left to right."""
    row, total = Row.of(task), 0.0
    for place, (position, piece) in enumerate(zip(task.targets[0].positions, pieces, strict=True)):
        total += (row.chances(position) if place else log_probs(row.query, position))[piece]
        row.fill(position, piece)
    return total


def test_the_chances_of_all_pieces_behind_a_filled_one_add_up_to_1() -> None:
    row = Row.of(TASKS[0])
    for position, piece in ((4, 0), (5, 3)):  # a word of two pieces
        row.fill(position, piece)
    assert np.exp(row.chances(6)).sum() == pytest.approx(1)
    assert not np.allclose(row.chances(6), log_probs(row.query, 6))


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_of_all_strings() -> None:
    one = task((4, 5))
    every = sorted(itertools.product(range(VOCAB), repeat=2), key=lambda pieces: -chain(one, pieces))
    fillings = fill([one], "beam", VOCAB, score, ENDS)[0]
    assert [tuple(filled(one, filling)) for filling in fillings] == every[:VOCAB]
    assert [filling.log_prob for filling in fillings] == pytest.approx([chain(one, pieces) for pieces in every[:VOCAB]])


def test_a_beam_keeps_the_best_prefixes() -> None:
    one = task((4, 5, 6))
    kept: list[tuple[int, ...]] = [()]
    for length in (1, 2, 3):
        part = task((4, 5, 6)[:length])
        part = Task(one.ids, one.masked, part.targets)
        grown = [(*prefix, piece) for prefix in kept for piece in range(VOCAB)]
        kept = sorted(grown, key=lambda pieces: -chain(part, pieces))[:3]
    assert [tuple(filled(one, filling)) for filling in fill([one], "beam", 3, score, ENDS)[0]] == kept


@pytest.mark.parametrize("words", [(1, 1), (2, 2), (1, 2), (3, 3)])
def test_words_are_counted(words: tuple[int, int]) -> None:
    """The best of all strings with so many words, of which the first piece begins one; in other orders at least as many
    words."""
    one = task((4, 5, 6), words=words, first=frozenset({SPACED}))

    def fits(pieces: Sequence[int]) -> bool:
        begun = 1 + sum(KINDS[piece] != CONTINUES or ENDS[before] for before, piece in itertools.pairwise(pieces))
        return KINDS[pieces[0]] == SPACED and words[0] <= begun <= words[1]

    every = [pieces for pieces in itertools.product(range(VOCAB), repeat=3) if fits(pieces)]
    fillings = fill([one], "beam", 10, score, ENDS)[0]  # two pieces may stand first, so no prefix is lost
    assert all(fits(filled(one, filling)) for filling in fillings)
    assert tuple(filled(one, fillings[0])) == max(every, key=lambda pieces: chain(one, pieces))
    for order in ("parallel", "confidence", "left_to_right"):
        assert fits(filled(one, fill([one], order, 1, score, ENDS)[0][0]))


def test_a_task_is_filled_as_if_it_were_alone() -> None:
    for order in ("parallel", "confidence", "left_to_right", "beam"):
        together = fill(TASKS, order, 2, score, ENDS)
        assert together == [fill([one], order, 2, score, ENDS)[0] for one in TASKS]


def test_positions_in_no_target_stay_masked_and_choices_say_when_they_were_made() -> None:
    seen: list[Query] = []

    def watched(queries: Sequence[Query]) -> list[Scores]:
        seen.extend(queries)
        return score(queries)

    filling = fill([task((4, 5, 6))], "confidence", 1, watched, ENDS)[0][0]
    assert seen[0].masked == (2, 4, 5, 6) and all(2 in query.masked for query in seen)
    assert sorted(choice.step for choice in filling.choices.values()) == [0, 1, 2]
    for choice in filling.choices.values():
        assert choice.chosen in choice.candidates and choice.chosen.kind in ANY
        assert [one.log_prob for one in choice.candidates] == sorted(one.log_prob for one in choice.candidates)[::-1]
        assert choice.chosen.by_head[1] == 2 * choice.chosen.by_head[0]
