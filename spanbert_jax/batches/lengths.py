"""Rows of different lengths in batches of a handful of shapes.

Invariant: a batch is a pure function of (seed, step), each row comes exactly once an epoch, and all batches of one
length have the same number of rows. Where rows are too few for the last batch, its other rows are empty: -1.
"""

import functools

import numpy as np

_MULTIPLE = 8  # divides every length, as matrix units like it


def choose_lengths(row_lengths: np.ndarray, count: int, longest: int) -> tuple[int, ...]:
    """At most `count` lengths, multiples of 8 (the last may be `longest`), that pad these rows least.

    row_lengths: int [rows]. The choice is exact, by dynamic programming over the candidates. Raises ValueError where a
    row is longer than `longest`.
    """
    if row_lengths.max() > longest:
        raise ValueError(f"a row has {row_lengths.max()} pieces; expected at most {longest}")
    candidates = np.minimum(np.unique(-(-row_lengths // _MULTIPLE) * _MULTIPLE), longest)
    rows = np.searchsorted(np.sort(row_lengths), candidates, side="right")  # rows that fit each candidate
    rows = np.concatenate([[0], rows])
    # cost[j]: the fewest positions of the rows that fit candidate j - 1, with as many lengths as were chosen so far
    cost = np.where(rows == 0, 0.0, np.inf)
    choices: list[np.ndarray] = []
    for _ in range(min(count, len(candidates))):
        through = cost[:, None] + (rows[None, 1:] - rows[:, None]) * candidates[None, :]  # [from, to]
        through = np.where(np.arange(len(rows))[:, None] <= np.arange(len(candidates))[None, :], through, np.inf)
        choices.append(np.argmin(through, axis=0))
        cost = np.concatenate([[np.inf], np.min(through, axis=0)])
    chosen, place = [], len(candidates)
    for choice in reversed(choices):
        if place:
            chosen.append(int(candidates[place - 1]))
            place = int(choice[place - 1])
    return tuple(reversed(chosen))


def equal_sizes(lengths: tuple[int, ...], batch_size: int, longest: int) -> tuple[int, ...]:
    """For each length, the number of rows that have about as many positions as `batch_size` rows of `longest`.

    The numbers are multiples of the largest power of two that divides `batch_size` and is at most an eighth of it, so
    that microbatches and devices divide them evenly too.
    """
    unit = 1
    while batch_size % (2 * unit) == 0 and 16 * unit <= batch_size:
        unit *= 2
    return tuple(batch_size * longest // length // unit * unit for length in lengths)


class BucketedOrder:
    """Which rows each training step takes."""

    def __init__(self, row_lengths: np.ndarray, lengths: tuple[int, ...], sizes: tuple[int, ...], seed: int):
        """row_lengths: int [rows], none over the last of `lengths`. lengths: ascending. sizes: of a batch of each."""
        self._lengths, self._sizes, self._seed = lengths, sizes, seed
        bucket = np.searchsorted(lengths, row_lengths)
        self._rows = [np.flatnonzero(bucket == i) for i in range(len(lengths))]
        batches, left = 0, 0
        for rows, size in zip(self._rows, sizes, strict=True):
            whole, left = divmod(left + len(rows), size)
            batches += whole
        self.steps_per_epoch = batches + (left > 0)
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """(row numbers, -1 for an empty row; the length that the rows are padded to) of a step. Row numbers are int64
        [rows], as many as the size of the length."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place]

    def _make_epoch(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        """Shuffles each bucket's rows and cuts them into batches; rows left over go on into the next longer bucket."""
        random = np.random.default_rng([self._seed, epoch])
        batches: list[tuple[np.ndarray, int]] = []
        left = np.zeros(0, np.int64)
        for rows, length, size in zip(self._rows, self._lengths, self._sizes, strict=True):
            rows = random.permutation(np.concatenate([left, rows]))
            whole = len(rows) // size * size
            batches += [(part, length) for part in rows[:whole].reshape(-1, size)]
            left = rows[whole:]
        if len(left):
            empty = np.full(self._sizes[-1] - len(left), -1, np.int64)
            batches.append((np.concatenate([left, empty]), self._lengths[-1]))
        return [batches[place] for place in random.permutation(len(batches))]


def sorted_batches(
    row_lengths: np.ndarray, lengths: tuple[int, ...], positions: int, multiple: int
) -> list[tuple[np.ndarray, int]]:
    """Every row once, shortest first, in batches of at most about `positions` positions: (int64 row numbers, -1 for an
    empty row; the length that the rows are padded to).

    row_lengths: int [rows]. All batches of one length have the same number of rows, a multiple of `multiple`.
    """
    batches = []
    order = np.argsort(row_lengths, kind="stable")
    bucket = np.searchsorted(lengths, row_lengths[order])
    for place, length in enumerate(lengths):
        rows = order[bucket == place]
        count = -(-len(rows) // (max(positions // length // multiple, 1) * multiple))  # of batches
        # Rows are spread evenly over the batches, so that few of them are empty.
        size = -(-len(rows) // (max(count, 1) * multiple)) * multiple
        if not count:
            continue
        rows = np.concatenate([rows, np.full(-len(rows) % size, -1, np.int64)])
        batches += [(part, length) for part in rows.reshape(-1, size)]
    return batches
