"""Filling masked positions: each order against a plain loop over whole vocabularies, and beams against enumeration."""

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
        pieces, values = np.zeros(shape, np.int32), np.full(shape, -np.inf)
        for place, position in enumerate(query.wanted):
            of_all = log_probs(query, position)
            for kind in range(3):
                order = sorted(np.flatnonzero(kind == KINDS), key=lambda piece: -of_all[piece])
                pieces[place, kind, : len(order)], values[place, kind, : len(order)] = order, of_all[order]
        found.append(Scores(pieces, values, np.stack([values, 2 * values], axis=-1)))
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


def by_a_plain_loop(task: Task, order: str) -> tuple[list[int], float]:
    """The filling of a task without constraints, piece by piece."""
    ids, masked = list(task.ids), list(task.masked)
    left = [position for target in task.targets for position in target.positions]
    places, total = list(left), 0.0
    first = {position: log_probs(Query(task.ids, task.masked, ()), position) for position in left}
    while left:
        now = {p: log_probs(Query(ids, tuple(masked), ()), p) for p in left} if order != "parallel" else first
        position = left[0] if order == "left_to_right" else max(left, key=lambda p: now[p].max())
        piece = int(np.argmax(now[position]))
        total += now[position][piece]
        ids[position] = piece
        masked.remove(position)
        left.remove(position)
    return [ids[position] for position in places], total


@pytest.mark.parametrize("order", ["parallel", "confidence", "left_to_right"])
def test_an_order_fills_as_a_plain_loop_does(order: str) -> None:
    for one, fillings in zip(TASKS, fill(TASKS, order, 4, score, ENDS), strict=True):
        pieces, total = by_a_plain_loop(one, order)
        assert len(fillings) == 1 and filled(one, fillings[0]) == pieces
        assert fillings[0].log_prob == pytest.approx(total)


def chain(task: Task, pieces: Sequence[int]) -> float:
    """The log-probability of the pieces of the first target, left to right."""
    ids, masked, total = list(task.ids), list(task.masked), 0.0
    for position, piece in zip(task.targets[0].positions, pieces, strict=True):
        total += log_probs(Query(ids, tuple(masked), ()), position)[piece]
        ids[position] = piece
        masked.remove(position)
    return total


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
        assert choice.chosen.by_head == (choice.chosen.log_prob, 2 * choice.chosen.log_prob)
