"""From NumPy rows to global arrays on the devices, ahead of the step that takes them.

Invariant: batches arrive in order, and each device receives its own rows and no others. What a batch holds does not
depend on the feed.
"""

import functools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from spanbert_jax.batch import Batch, NumpyBatch

_AHEAD = 2  # batches that wait on the devices


class HeldRows:
    """The rows of global batches that the devices of this process hold."""

    def __init__(self, layout: jax.sharding.Sharding, microbatches: int = 1):
        """layout: of a batch's first axis; microbatches, too, are spread over all devices."""
        shards = layout.num_devices // layout.shard_shape((layout.num_devices,))[0]
        self.unit = shards * microbatches  # divides the rows of every batch
        self.places = functools.cache(functools.partial(held_places, layout))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The held ones of int64 [rows], which is filled up with -1 to a multiple of `unit`."""
        whole = np.pad(indices, (0, -len(indices) % self.unit), constant_values=-1)
        return whole[self.places(len(whole))]

    def count(self, held: int) -> int:
        """Rows of the global batch of which this process holds `held`."""
        return held * self.unit // len(self.places(self.unit))


def held_places(layout: jax.sharding.Sharding, count: int) -> np.ndarray:
    """int64, ascending: which of `count` rows the devices of this process hold."""
    held = layout.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count, dtype=np.int64)[index] for index in held]))


def to_global(batch: NumpyBatch, layout: jax.sharding.Sharding, held: HeldRows | None = None) -> Batch:
    """The global batch, its first axis laid out as `layout`.

    batch: the rows that this process holds, in order, where `held` is given; otherwise the whole batch, which then
    every process has.
    """

    def place(local: np.ndarray) -> jax.Array:
        count = held.count(len(local)) if held else len(local)

        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(count)
            start = int(np.searchsorted(held.places(count), first)) if held else first
            return local[start : start + last - first]

        return jax.make_array_from_callback((count, *local.shape[1:]), layout, part)

    return {name: place(array) for name, array in batch.items()}


def feed(batches: Iterator[NumpyBatch], layout: jax.sharding.Sharding, held: HeldRows | None = None) -> Iterator[Batch]:
    """`to_global` of each batch, the next ones made and placed by a thread while the caller is busy.

    Both queues are C code that never gives up the interpreter where something is there: with futures or `queue.Queue`
    the caller, who has a batch already, waits up to 5 ms for the thread that makes the next one.
    """
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            while wanted.get():
                batch = next(batches, None)
                ready.put(None if batch is None else to_global(batch, layout, held))
        except BaseException as error:
            ready.put(error)

    def take() -> Batch | None:
        batch = ready.get()
        if isinstance(batch, BaseException):
            raise batch
        wanted.put(True)
        return batch

    thread = threading.Thread(target=fetch, name="input", daemon=True)
    thread.start()
    try:
        for _ in range(_AHEAD):
            wanted.put(True)
        yield from iter(take, None)  # holding no batch itself: to free the last one's arrays would take time here
    finally:
        wanted.put(False)
        thread.join()
