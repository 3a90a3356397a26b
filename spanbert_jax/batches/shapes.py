"""The few shapes of batch in which a trained model computes, and the cheapest way to fit rows into them.

Invariant: the table of shapes depends on the longest possible row, the number of lengths and the number of devices
alone, never on the rows. So every program can be compiled before the first row is known, and no row needs another one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Rows are padded to one of these lengths. The steps of 1.33 and 1.5 pad the windows of SQuAD by 18%, paragraphs and
# sentences of Wikipedia by 21%; powers of two alone pad them by 29% to 45%.
_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
ALL_LENGTHS = len(_LENGTHS) + 1  # for rows of any length: these, and the longest row's
# Rows in a batch, beside the largest number that _POSITIONS allows. In requests of 1 to 64 texts, the powers of four
# pad 2% to 8% more than the powers of two would, with half of the programs.
_ROWS = (1, 4, 16, 64)
_POSITIONS = 8192  # rows x length of the largest batch: 16 rows of 512
BATCH_COST = 256  # the cost of a further batch, in positions that the same time would compute


class Shape(NamedTuple):
    """A batch of `rows` rows, each padded to `length` pieces."""

    rows: int
    length: int


def shape_table(longest: int, lengths: int, multiple: int) -> tuple[Shape, ...]:
    """The shapes for rows of up to `longest` pieces: at most `lengths` lengths, with at most five numbers of rows each.

    Every number of rows is a multiple of `multiple`, the number of devices. All lengths up to 512 pieces make 47 shapes
    on one device, those up to 128 make 33.
    """
    ladder = [*(length for length in _LENGTHS if length < longest), longest]
    # Evenly spread over the ladder, from its end: `longest` is always chosen.
    chosen = np.linspace(len(ladder) - 1, 0, min(lengths, len(ladder))).round().astype(int)[::-1]
    return tuple(Shape(rows, ladder[i]) for i in chosen for rows in _numbers_of_rows(ladder[i], multiple))


def _numbers_of_rows(length: int, multiple: int) -> list[int]:
    largest = multiple
    while 2 * largest * length <= _POSITIONS:
        largest *= 2
    return [*(rows * multiple for rows in _ROWS if rows * multiple < largest), largest]


def plan_batches(row_lengths: np.ndarray, table: Sequence[Shape]) -> list[tuple[np.ndarray, Shape]]:
    """Every row once, shortest first: (int64 [shape.rows] row numbers, -1 for an empty row; the batch's shape).

    The sum of rows x length + BATCH_COST over the batches is the least that is possible with shapes of the table.
    row_lengths: int [rows]. Raises ValueError where a row is longer than all shapes.
    """
    lengths = sorted({shape.length for shape in table})
    if len(row_lengths) and row_lengths.max() > lengths[-1]:
        raise ValueError(f"a row has {row_lengths.max()} pieces; expected at most {lengths[-1]}")
    shapes = [[shape for shape in table if shape.length == length] for length in lengths]
    order = np.argsort(row_lengths, kind="stable")
    # A batch of neighbours in this order is as long as its last row. Dynamic programming over the last rows is exact:
    # a batch that is not full may as well take the rows just before it, so only the first batch need have empty rows.
    cost, chosen = [0], [table[0]]
    for last, place in enumerate(np.searchsorted(lengths, row_lengths[order]).tolist(), start=1):
        costs = [cost[max(last - shape.rows, 0)] + shape.rows * shape.length + BATCH_COST for shape in shapes[place]]
        cost.append(min(costs))
        chosen.append(shapes[place][costs.index(cost[-1])])
    batches = []
    last = len(order)
    while last > 0:
        shape = chosen[last]
        rows = order[max(last - shape.rows, 0) : last]
        batches.append((np.concatenate([rows, np.full(shape.rows - len(rows), -1, np.int64)]), shape))
        last -= shape.rows
    return batches[::-1]
