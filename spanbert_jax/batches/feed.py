"""From NumPy rows to global arrays on the devices, ahead of the step that takes them.

Invariant: batches arrive in order, and each device receives its own rows and no others. The feed never changes the
content of a batch.
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
    """The rows of global batches that the devices of this process hold.

    Attributes:
      unit: the number of rows of every batch is a multiple of it, so that rows divide evenly over the devices.
      places: `held_places` of a number of rows, cached.
    """

    def __init__(self, layout: jax.sharding.Sharding, microbatches: int = 1):
        """layout: the sharding of a batch's first axis. microbatches: in a batch; all devices share each of them."""
        shards = layout.num_devices // layout.shard_shape((layout.num_devices,))[0]
        self.unit = shards * microbatches
        self.places = functools.cache(functools.partial(held_places, layout))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Those of `indices` (int64 [rows], filled up with -1 to a multiple of `unit`) that this process holds."""
        whole = np.pad(indices, (0, -len(indices) % self.unit), constant_values=-1)
        return whole[self.places(len(whole))]

    def count(self, held: int) -> int:
        """The number of rows of a global batch of which this process holds `held` rows."""
        return held * self.unit // len(self.places(self.unit))


def held_places(layout: jax.sharding.Sharding, count: int) -> np.ndarray:
    """The places, int64 and ascending, of the rows of a batch of `count` rows that this process's devices hold."""
    held = layout.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count, dtype=np.int64)[index] for index in held]))


def to_global(batch: NumpyBatch, layout: jax.sharding.Sharding, held: HeldRows | None = None) -> Batch:
    """The global batch, its first axis laid out as `layout`.

    batch: where `held` is given, the rows that this process holds, in order; otherwise the whole batch, which every
    process then has to give.
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
    """`to_global` of each batch. A thread makes and places the next batches while the caller is busy.

    An exception of `batches` is raised in the place of its batch. Both queues are C code that keeps the interpreter's
    lock where an item is there. With futures or `queue.Queue` the caller, whose batch is ready, would wait up to 5 ms
    for the thread that makes the next one.
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
        yield from iter(take, None)  # no batch is held here, because freeing the last one's arrays takes time
    finally:
        wanted.put(False)
        thread.join()
