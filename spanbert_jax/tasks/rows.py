"""Rows of a fine-tuning task: ragged lists of pieces with what belongs to them, built in parallel and kept in a file.

Invariant: a file of rows is used again only for the data, the vocabulary and the settings it was made from.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_jax.text.worker_pool import Workers, call

# "input_ids" and other lists, one value a piece; numbers and arrays of one shape, one a row. "cut", if it is there: the
# row lacks some of its text.
Row = dict[str, Any]
Featurise = Callable[[Sequence[Any]], list[list[Row]]]  # examples -> the rows of each; picklable

_CHUNK = 64  # examples a worker takes at once


class Rows:
    """Columns of a number a row, and columns of a list a row."""

    def __init__(self, plain: Mapping[str, np.ndarray], ragged: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        """plain: [rows, ...] each. ragged: (all lists joined, int64 [rows + 1] where each begins and the last ends)."""
        self.plain, self.ragged = dict(plain), dict(ragged)
        self.lengths = np.diff(self.ragged["input_ids"][1])  # int64 [rows]
        self.example = self.plain["example"]  # int64 [rows], ascending: the example that each row belongs to

    def __len__(self) -> int:
        return len(self.lengths)

    def column(self, name: str, row: int) -> np.ndarray:
        """The list of a ragged column in a row."""
        values, starts = self.ragged[name]
        return values[starts[row] : starts[row + 1]]

    def collate(self, indices: np.ndarray, length: int, padding: Mapping[str, int]) -> dict[str, np.ndarray]:
        """A batch of the rows at `indices` (-1: an empty row, of length 0 and weight 0).

        Every ragged column is int32 [batch, length], padded with `padding` (else 0); plain ones are [batch, ...]; there
        are "lengths" int32 [batch] and "weights" float32 [batch] besides.
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


def make_rows(per_example: Sequence[Sequence[Row]]) -> Rows:
    """The rows of all examples, in order; every row has the same columns."""
    rows = [row for rows in per_example for row in rows]
    counts = [len(rows) for rows in per_example]
    plain: dict[str, np.ndarray] = {"example": np.repeat(np.arange(len(per_example)), counts)}
    ragged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, first in rows[0].items() if rows else ():
        if isinstance(first, list):
            starts = np.cumsum([0, *(len(row[name]) for row in rows)])
            ragged[name] = (np.fromiter((x for row in rows for x in row[name]), np.int32, starts[-1]), starts)
        else:
            plain[name] = np.array([row[name] for row in rows])
    return Rows(plain, ragged or {"input_ids": (np.zeros(0, np.int32), np.zeros(1, np.int64))})


def build_rows(examples: Sequence[Any], featurise: Featurise, workers: int, show: Callable[[float], None]) -> Rows:
    """The rows of `examples`, made by `workers` processes (0: one a core); few examples are not worth a process."""
    chunks = [examples[i : i + _CHUNK] for i in range(0, len(examples), _CHUNK)]
    per_example: list[list[Row]] = []
    if len(chunks) <= 4:
        return make_rows([rows for chunk in chunks for rows in featurise(chunk)])
    with Workers(workers, featurise) as pool:
        for rows in pool.map(call, chunks):
            per_example += rows
            show(len(per_example) / len(examples))
    return make_rows(per_example)


def fingerprint(source: str, settings: Mapping[str, Any]) -> str:
    """Of a data file's content (a name that is no file stands for itself) and of the settings its rows depend on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    path = Path(source).expanduser()
    digest.update(path.read_bytes() if path.is_file() else source.encode())
    return digest.hexdigest()


def save_rows(rows: Rows, path: Path) -> None:
    """Writes aside, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"plain/{name}": values for name, values in rows.plain.items()}
    for name, (values, starts) in rows.ragged.items():
        arrays |= {f"values/{name}": values, f"starts/{name}": starts}
    aside = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    np.savez(aside, **arrays)  # type: ignore[arg-type]
    aside.replace(path)


def load_rows(path: Path) -> Rows:
    """What `save_rows` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    names = [name.removeprefix("values/") for name in arrays if name.startswith("values/")]
    plain = {name.removeprefix("plain/"): values for name, values in arrays.items() if name.startswith("plain/")}
    return Rows(plain, {name: (arrays[f"values/{name}"], arrays[f"starts/{name}"]) for name in names})
