"""A model for the engine whose answers are hashes of its inputs, so that swapped answers are seen. It needs no JAX."""

import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from spanbert_jax.batches.shapes import Shape
from spanbert_jax.errors import UserError
from spanbert_jax.serving.scheduler import Output, Row

UNREADABLE, FAILS_AT_START, FAILS_AT_END, NOT_FINITE, NO_ANSWER = 666, 667, 668, 669, 670
TABLE = tuple(Shape(rows, length) for length in (4, 8, 16) for rows in (1, 2, 8))

Item = list[list[int]]  # the ids of each row


def value(ids: Sequence[int]) -> float:
    return float(zlib.crc32(np.array(ids, np.int32).tobytes()))


class FakeModel:
    is_first = True

    def __init__(self, name: str = "fake", table: Sequence[Shape] = TABLE, ready: Sequence[Shape] | None = None):
        self.name, self.table = name, tuple(table)
        self.ready = self.table if ready is None else tuple(ready)
        self.batches: list[Shape] = []
        self.begun = threading.Semaphore(0)  # released at each `start`
        self.gate = threading.Event()  # `finish` waits for it
        self.gate.set()

    def prepare(self, shape: Shape) -> None:
        self.ready = (*self.ready, shape)

    def rows(self, items: Sequence[Item]) -> list[list[Row]]:
        for number, item in enumerate(items):
            if any(UNREADABLE in ids for ids in item):
                raise UserError(f"inputs[{number}] cannot be read")
        return [[{"input_ids": list(ids), "cut": len(ids) > 16} for ids in item] for item in items]

    def start(self, rows: Sequence[Row], shape: Shape) -> Any:
        assert shape in self.ready and 0 < len(rows) <= shape.rows
        assert all(len(row["input_ids"]) <= shape.length for row in rows)
        self.batches.append(shape)
        self.begun.release()
        if any(FAILS_AT_START in row["input_ids"] for row in rows):
            raise ValueError("start")
        return shape, rows

    def finish(self, started: Any) -> dict[str, np.ndarray]:
        assert self.gate.wait(30)
        shape, rows = started
        if any(FAILS_AT_END in row["input_ids"] for row in rows):
            raise ValueError("finish")
        values = np.full(shape.rows, -1.0)
        for place, row in enumerate(rows):
            values[place] = np.nan if NOT_FINITE in row["input_ids"] else value(row["input_ids"])
        return {"value": values}

    def answer(self, items: Sequence[Item], rows: list[list[Row]], outputs: list[list[Output]]) -> list[Any]:
        assert [[list(row["input_ids"]) for row in of] for of in rows] == [list(item) for item in items]
        if any(NO_ANSWER in ids for item in items for ids in item):
            raise KeyError("answer")
        return [[float(output["value"]) for output in of] for of in outputs]
