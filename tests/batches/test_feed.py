"""The feed gives batches in order and ahead of time, hands on errors, and ends its thread."""

import itertools
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spanbert_jax.batch import NumpyBatch
from spanbert_jax.batches.feed import HeldRows, feed, to_global

LAYOUT = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))


def numbered(count: int, made: list[int]) -> Iterator[NumpyBatch]:
    """Batches of three axes, each filled with its number."""
    for number in range(count):
        made.append(number)
        yield {"input_ids": np.full((2, 3, 4), number, np.int32), "lengths": np.full((2, 3), number, np.int32)}


def input_threads() -> int:
    return sum(thread.name == "input" for thread in threading.enumerate())


def test_batches_of_any_rank_come_in_order_and_ahead_of_the_caller() -> None:
    made: list[int] = []
    batches = feed(numbered(10, made), LAYOUT)
    first = next(batches)
    for _ in range(1000):  # two more are made while nobody asks
        if len(made) == 3:
            break
        time.sleep(0.01)
    assert made == [0, 1, 2]
    found = [first, *batches]
    assert [int(batch["lengths"][0, 0]) for batch in found] == list(range(10))
    assert {batch["input_ids"].shape for batch in found} == {(2, 3, 4)}
    assert all(batch["input_ids"].sharding == LAYOUT for batch in found)


def test_an_error_is_raised_where_its_batch_would_be() -> None:
    def broken() -> Iterator[NumpyBatch]:
        yield from numbered(2, [])
        raise ValueError("a row is damaged")

    batches = feed(broken(), LAYOUT)
    assert [int(batch["lengths"][0, 0]) for batch in itertools.islice(batches, 2)] == [0, 1]
    with pytest.raises(ValueError, match="a row is damaged"):
        next(batches)


def test_a_feed_that_is_closed_ends_its_thread() -> None:
    before = input_threads()
    batches = feed(numbered(10**9, []), LAYOUT)
    next(batches)
    assert input_threads() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert input_threads() == before


def test_whole_batches_and_held_rows_make_the_same_arrays() -> None:
    rows = np.arange(12).reshape(4, 3)
    held = HeldRows(LAYOUT, microbatches=2)
    np.testing.assert_array_equal(held.rows(np.array([5, 6, 7])), [5, 6, 7, -1])
    for batch in (to_global({"x": rows}, LAYOUT), to_global({"x": rows}, LAYOUT, held)):
        np.testing.assert_array_equal(batch["x"], rows)
