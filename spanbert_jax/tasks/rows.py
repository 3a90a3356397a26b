"""Rows of a fine-tuning task: lists of pieces with more columns, built in parallel and kept in a file.

Invariant: a file of rows is used again only for the data, the vocabulary and the settings that it was made from, and
only by the version of this module that wrote it.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spanbert_jax.batch import NumpyBatch
from spanbert_jax.batches.lengths import BucketedOrder, choose_lengths
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.files import written_aside
from spanbert_jax.text.worker_pool import Workers, call

# Lists with one value for each piece, such as "input_ids"; numbers, and arrays of one shape in all rows. "cut", which
# is optional, is not 0 where the row lacks some of its text.
Row = dict[str, Any]
_ExampleT = TypeVar("_ExampleT")
Featurise = Callable[[Sequence[_ExampleT]], list[list[Row]]]  # examples -> the rows of each; picklable

VERSION = 3  # of the files that `save_rows` writes; raise it when the same settings give other rows

_CHUNK = 64  # examples that a worker gets at once


class Rows:
    """Rows as columns. A plain column has a number (or an array) for each row, a ragged column a list."""

    def __init__(self, plain: Mapping[str, np.ndarray], ragged: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        """plain: name -> [rows, ...]. ragged: name -> (the lists joined, int64 [rows + 1] with the start of each list
        and the end of the last)."""
        self.plain, self.ragged = dict(plain), dict(ragged)
        self.lengths = np.diff(self.ragged["input_ids"][1])  # int64 [rows]
        self.example = self.plain["example"]  # int64 [rows], ascending: the example that each row belongs to

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def cut_examples(self) -> list[int]:
        """The examples that have a row which lacks some of its text."""
        return sorted(set(self.example[self.plain["cut"] > 0].tolist())) if "cut" in self.plain else []

    def column(self, name: str, row: int) -> np.ndarray:
        """The list of a row in a ragged column."""
        values, starts = self.ragged[name]
        return values[starts[row] : starts[row + 1]]

    def row(self, number: int) -> Row:
        """A row by itself, with arrays in the place of lists."""
        plain = {name: values[number] for name, values in self.plain.items()}
        return plain | {name: self.column(name, number) for name in self.ragged}

    def collate(self, indices: np.ndarray, length: int, padding: Mapping[str, int]) -> NumpyBatch:
        """A batch of the rows at `indices`, where -1 stands for an empty row with length 0 and weight 0.

        Ragged columns become int32 [batch, length], padded with padding[name] or 0. Plain columns become [batch, ...],
        apart from "example" and "cut", which are left out. The batch also has "lengths" int32 [batch] and "weights"
        float32 [batch].
        """
        present = indices >= 0
        chosen = np.maximum(indices, 0)
        lengths = np.where(present, self.lengths[chosen], 0).astype(np.int32)
        batch = {"lengths": lengths, "weights": present.astype(np.float32)}
        inside = np.arange(length) < lengths[:, None]
        for name, (values, starts) in self.ragged.items():
            padded = np.full((len(indices), length), padding.get(name, 0), np.int32)
            padded[inside] = np.concatenate(
                [values[starts[i] : starts[i] + n] for i, n in zip(chosen, lengths, strict=True)]
            )
            batch[name] = padded
        for name, values in self.plain.items():
            if name not in ("example", "cut"):
                batch[name] = values[chosen]
        return batch


class RowBatches:
    """Training batches of [rows, length]. Each epoch has every row once, in an order that the seed draws."""

    def __init__(self, rows: Rows, config: Config, padding: Mapping[str, int]):
        """Raises ValueError where a row is longer than config.data.block_length."""
        data, train = config.data, config.train
        lengths = choose_lengths(rows.lengths, data.lengths, data.block_length)
        self._order = BucketedOrder(rows.lengths, lengths, (train.batch_size,) * len(lengths), train.seed)
        self._rows, self._padding = rows, padding
        self.steps_per_epoch = self._order.steps_per_epoch

    def batch(self, step: int) -> NumpyBatch:
        """The batch of a step, as of `Rows.collate`."""
        indices, length = self._order.batch(step)
        return self._rows.collate(indices, length, self._padding)

    def rows(self, step: int) -> np.ndarray:
        """int64 [batch]: the numbers of the rows in the batch of a step; -1: an empty row."""
        return self._order.batch(step)[0]


def widen(sizes: Sequence[int], low: int, high: int, room: int) -> tuple[int, int]:
    """The range [low, high) of items with these sizes, widened on both sides in turn while the sum is within `room`."""
    used = sum(sizes[low:high])
    left = right = True
    while left or right:
        left = left and low > 0 and used + sizes[low - 1] <= room
        if left:
            low -= 1
            used += sizes[low]
        right = right and high < len(sizes) and used + sizes[high] <= room
        if right:
            used += sizes[high]
            high += 1
    return low, high


def make_rows(per_example: Sequence[Sequence[Mapping[str, Any]]]) -> Rows:
    """The rows of all examples, in order, as `Rows`. Every row must have the same columns."""
    rows = [row for rows in per_example for row in rows]
    counts = [len(rows) for rows in per_example]
    plain: dict[str, np.ndarray] = {"example": np.repeat(np.arange(len(per_example)), counts)}
    ragged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, first in rows[0].items() if rows else ():
        if isinstance(first, list):
            starts = np.cumsum([0, *(len(row[name]) for row in rows)])
            values = itertools.chain.from_iterable(row[name] for row in rows)
            ragged[name] = (np.fromiter(values, np.int32, starts[-1]), starts)
        else:
            plain[name] = np.array([row[name] for row in rows])
    return Rows(plain, ragged or {"input_ids": (np.zeros(0, np.int32), np.zeros(1, np.int64))})


def build_rows(
    examples: Sequence[_ExampleT], featurise: Featurise[_ExampleT], workers: int, show: Callable[[float], None]
) -> list[list[Row]]:
    """The rows of each of `examples`, made by `workers` processes (0: one for each core), or in this process where
    examples are few. show: takes the fraction that is done."""
    chunks = [examples[i : i + _CHUNK] for i in range(0, len(examples), _CHUNK)]
    per_example: list[list[Row]] = []
    if len(chunks) <= 4:
        return [rows for chunk in chunks for rows in featurise(chunk)]
    with Workers(workers, featurise) as pool:
        for rows in pool.map(call, chunks):
            per_example += rows
            show(len(per_example) / len(examples))
    return per_example


def fingerprint(source: str, settings: Mapping[str, Any]) -> str:
    """The SHA-256, in hexadecimal, of a data file's content and of the settings that its rows depend on. A name that is
    no file, as one of TFDS, stands for its content. Raises UserError for a pipe, whose content can be read once."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    path = Path(source).expanduser()
    if path.exists() and not path.is_file():
        raise UserError(f"{source} is no regular file, and a run reads its data more than once; write it to a file")
    digest.update(path.read_bytes() if path.is_file() else source.encode())
    return digest.hexdigest()


def save_rows(rows: Rows, path: Path) -> None:
    """Writes the rows aside, then renames the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"version": np.array(VERSION)} | {f"plain/{name}": values for name, values in rows.plain.items()}
    for name, (values, starts) in rows.ragged.items():
        arrays |= {f"values/{name}": values, f"starts/{name}": starts}
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_rows(path: Path) -> Rows | None:
    """The rows that `save_rows` wrote; None where the file is missing, damaged, or of another version."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:  # np.load leaves a damaged file open
            arrays = {name: file[name] for name in file.files}
        if arrays["version"] != VERSION:
            return None
        plain = {name.removeprefix("plain/"): values for name, values in arrays.items() if name.startswith("plain/")}
        names = [name.removeprefix("values/") for name in arrays if name.startswith("values/")]
        return Rows(plain, {name: (arrays[f"values/{name}"], arrays[f"starts/{name}"]) for name in names})
    except Exception:  # NumPy and zipfile have no classes of their own for damaged files, and raise many
        return None
