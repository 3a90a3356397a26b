"""Span masking one block and one piece at a time, as SpanBERT's paper (3.1) and code (corpus/masking.py) define it.

This is plain Python with random numbers of its own, written from the definition without the implementation under test.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from spanbert_jax.batch import MASK

PMF = (0.2241, 0.1792, 0.1434, 0.1147, 0.0918, 0.0734, 0.0587, 0.0470, 0.0376, 0.0301)  # of 1 to 10 words, p = 0.2


@dataclasses.dataclass
class Masked:
    """A masked block. Positions count the block's pieces from 0."""

    mask: list[bool]
    words: list[int]  # of each accepted draw, before any cut
    runs: list[tuple[int, int]]  # first and last position of every merged span


def choose(starts: Sequence[bool], rate: float, draw: Callable[[], tuple[int, int]]) -> Masked:
    """Masks spans of a block whose words begin where `starts` is True. Each call of `draw` gives (words, anchor)."""
    length = len(starts)
    budget = math.ceil(rate * length)
    masked: set[int] = set()
    accepted = []
    while len(masked) < budget:
        words, anchor = draw()
        if anchor in masked:
            continue
        accepted.append(words)
        position = anchor
        while position > 0 and not starts[position]:
            position -= 1
        for _ in range(words):
            if position >= length or len(masked) >= budget:
                break
            while len(masked) < budget:
                masked.add(position)
                position += 1
                if position >= length or starts[position]:
                    break
    mask = [position in masked for position in range(length)]
    return Masked(mask, accepted, merged_runs(mask))


def choose_units(
    starts: Sequence[bool],
    rate: float,
    units: Sequence[tuple[int, int]],
    draw: Callable[[], tuple[int, int]],
    draw_unit: Callable[[], tuple[bool, int]],
) -> list[bool]:
    """Masks units of a block, and words: `ner_span` of the code's masking.py.

    Each turn takes one value of `draw_unit`, (whether a unit is drawn, which of `units`), and one of `draw`, (words,
    anchor), and uses one of the two. A unit is its first position and the place after its last one. A unit is taken
    whether or not it is masked already; where there is none, the turn does nothing.
    """
    length = len(starts)
    budget = math.ceil(rate * length)
    masked: set[int] = set()
    while len(masked) < budget:
        (is_unit, number), (words, anchor) = draw_unit(), draw()
        if is_unit:
            for position in range(*units[number]) if units else ():
                if len(masked) < budget:
                    masked.add(position)
        elif anchor not in masked:
            position = anchor
            while position > 0 and not starts[position]:
                position -= 1
            for _ in range(words):
                while position < length and len(masked) < budget:
                    masked.add(position)
                    position += 1
                    if position >= length or starts[position]:
                        break
    return [position in masked for position in range(length)]


def units_of(tags: Sequence[int], kinds: Sequence[int]) -> list[tuple[int, int]]:
    """The spans of these kinds: first position, and the place after the last one."""
    units: list[tuple[int, int]] = []
    for position, tag in enumerate(tags):
        if tag // 2 in kinds and tag % 2:
            units.append((position, position + 1))
        elif tag // 2 in kinds and tag:
            units[-1] = (units[-1][0], position + 1)
    return units


def merged_runs(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last position of every maximal run of masked positions."""
    runs: list[tuple[int, int]] = []
    for position, masked in enumerate(mask):
        if masked and runs and runs[-1][1] == position - 1:
            runs[-1] = (runs[-1][0], position)
        elif masked:
            runs.append((position, position))
    return runs


def geometric_draws(
    length: int, rng: np.random.Generator, p: float = 0.2, limit: int = 10
) -> Callable[[], tuple[int, int]]:
    """A `draw` by the paper's law: geometric, renormalised on 1 .. limit words; anchors uniform over the pieces."""
    weights = [p * (1 - p) ** (words - 1) for words in range(1, limit + 1)]
    cumulative = [share / sum(weights) for share in itertools.accumulate(weights)]
    cumulative[-1] = 1.0
    uniform = itertools.chain.from_iterable(iter(lambda: rng.random((32, 2)).tolist(), None))  # 32 draws a call

    def draw() -> tuple[int, int]:
        u, v = next(uniform)
        return bisect.bisect_right(cumulative, u) + 1, int(v * length)

    return draw


def span_rows(
    runs: Sequence[tuple[int, int]], length: int, limit: int, external: bool
) -> dict[int, tuple[int, int, int]]:
    """{masked position: (left boundary, right boundary, offset)} for every piece that SBO predicts."""
    rows = {}
    for first, last in runs:
        left, right = (first - 1, last + 1) if external else (first, last)
        if left < 0 or right >= length:
            continue
        for offset, position in enumerate(range(first, last + 1)):
            if offset < limit:
                rows[position] = (left, right, offset)
    return rows


def collapsed_row(row: dict[str, np.ndarray], mask_id: int, pad_id: int, limit: int) -> dict[str, np.ndarray]:
    """A masked row with one [MASK] for every merged span, made by a walk over its positions."""
    ids, length = row["input_ids"], int(row["lengths"])
    used = int(row["masked_weights"].sum())
    hidden = dict(zip(row["masked_positions"][:used].tolist(), row["masked_ids"][:used].tolist(), strict=True))
    kept: list[int] = []  # positions
    slots: list[tuple[int, int, int]] = []  # (the new position of the span, the place in the span, the piece)
    offset = 0
    for position in range(length):
        offset = offset + 1 if position in hidden and position - 1 in hidden else 0
        if offset == 0:
            kept.append(position)
        if position in hidden:
            slots.append((len(kept) - 1, offset, hidden[position]))
    out = {name: np.zeros_like(value) for name, value in row.items()}
    for name in ("next_labels", "next_weights"):
        if name in row:
            out[name] = row[name]
    out["lengths"] = np.array(len(kept), np.int32)
    out["input_ids"] = np.full_like(ids, pad_id)
    out["input_ids"][: len(kept)] = [mask_id if position in hidden else ids[position] for position in kept]
    for name in ("token_type_ids", "span_tags"):
        if name in row:
            out[name][: len(kept)] = [row[name][position] for position in kept]
    for slot, (place, offset, piece) in enumerate(slots):
        out["masked_positions"][slot], out["masked_ids"][slot] = place, piece
        out["masked_weights"][slot], out["replacement"][slot] = 1, MASK
        if offset < limit:
            out["span_left"][slot], out["span_right"][slot] = place - 1, place + 1
            out["span_offset"][slot], out["span_weights"][slot] = offset, 1
    return out
