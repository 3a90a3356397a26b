"""Computes a function of batches for rows of every length, with one compiled program for each shape of batch.

Invariant: each row is computed once, and the outputs are in the rows' order, however rows were put into batches. After
`warm_up` with all shapes of the batches, nothing is traced or compiled again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.feed import to_global
from spanbert_jax.training.progress import Show, quiet

Params = dict[str, Any]
Compute = Callable[[Params, Batch], dict[str, jax.Array]]
Batches = Iterable[tuple[np.ndarray, NumpyBatch]]  # (int [batch] row numbers, -1 for an empty row; the batch)
AbstractBatch = Mapping[str, jax.ShapeDtypeStruct]
Outputs = list[dict[str, np.ndarray]]  # one dict for each row

_T = TypeVar("_T")
_ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]  # the sorted (name, shape) of a batch's arrays


class Predictor:
    """A function (params, batch) -> {name: [batch, ...]}, with a program for each shape of batch that it has met."""

    def __init__(self, compute: Compute, layout: NamedSharding):
        """layout: divides the rows of a batch among the devices."""
        assert isinstance(layout.mesh, Mesh)  # of devices
        self._layout, self._mesh = layout, layout.mesh
        self._everywhere = NamedSharding(layout.mesh, PartitionSpec())
        self._compute = jax.jit(compute, out_shardings=self._everywhere)
        self._programs: dict[_ShapeKey, Compute] = {}
        # The number of rows in a batch must be a multiple of this.
        self.multiple = layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]

    def place(self, params: Params) -> Params:
        """Puts NumPy parameters on every device, so that calls need not copy them again."""
        return jax.device_put(params, self._everywhere)

    def warm_up(self, params: Params, shapes: Sequence[AbstractBatch], show: Show = quiet) -> None:
        """Compiles the program of every shape. params: with the layout of the params of later calls."""
        for done, shape in enumerate(shapes, start=1):
            self._program(params, shape)
            show(done / len(shapes))

    def outputs(self, params: Params, batches: Batches, count: int, show: Show = quiet) -> Outputs:
        """The outputs of each of `count` rows. Each row must be in exactly one of the batches.

        A shape that was not warmed up is compiled when a batch has it.
        """
        results: Outputs = [{} for _ in range(count)]
        done = 0
        for indices, started in one_ahead((indices, self.start(params, batch)) for indices, batch in batches):
            computed = {name: np.asarray(values) for name, values in started.items()}
            for place, row in enumerate(indices):
                if row >= 0:
                    results[row] = {name: values[place] for name, values in computed.items()}
                    done += 1
            show(done / count)
        return results

    def start(self, params: Params, batch: NumpyBatch) -> dict[str, jax.Array]:
        """Begins to compute the outputs of a batch, [batch, ...], and does not wait for the end."""
        # Alone, a process hands NumPy arrays over: laying them out in Python takes 50 microseconds each.
        arrays: Any = batch if jax.process_count() == 1 else to_global(batch, self._layout)
        return self._program(params, batch)(params, arrays)

    def _program(self, params: Params, batch: Mapping[str, np.ndarray | jax.ShapeDtypeStruct]) -> Compute:
        key = tuple(sorted((name, array.shape) for name, array in batch.items()))
        if key not in self._programs:
            abstract = {
                name: jax.ShapeDtypeStruct(
                    array.shape, jax.dtypes.canonicalize_dtype(array.dtype), sharding=self._layout
                )
                for name, array in batch.items()
            }
            with jax.set_mesh(self._mesh):
                self._programs[key] = self._compute.lower(params, abstract).compile()
        return self._programs[key]


def one_ahead(started: Iterable[_T]) -> Iterator[_T]:
    """The items, each after the next one was taken. So a device has its next batch while the last one is fetched."""
    last: list[_T] = []
    for item in started:
        yield from last
        last = [item]
    yield from last
