"""A function of batches, compiled once for each of their shapes, and the rows of every length that go through it.

Invariant: each row is computed once, and the outputs are in the rows' order, whatever the batches were. After `warm_up`
with all shapes of the batches, nothing is traced or compiled again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.feed import to_global

Params = dict[str, Any]
Compute = Callable[[Params, Batch], dict[str, jax.Array]]
Batches = Iterable[tuple[np.ndarray, NumpyBatch]]  # int [batch] row numbers, -1 for none; their batch
AbstractBatch = Mapping[str, jax.ShapeDtypeStruct]
Outputs = list[dict[str, np.ndarray]]  # of each row
Show = Callable[[float], None]  # is told the fraction that is done


def quiet(_: float) -> None:
    """Shows nothing."""


class Predictor:
    """A function (params, batch) -> {name: [batch, ...]}, with a program for each shape of batch that it has met."""

    def __init__(self, compute: Compute, layout: NamedSharding):
        """layout: of a batch's rows over the devices."""
        assert isinstance(layout.mesh, Mesh)  # of devices
        self._layout, self._mesh = layout, layout.mesh
        self._everywhere = NamedSharding(layout.mesh, PartitionSpec())
        self._compute = jax.jit(compute, out_shardings=self._everywhere)
        self._programs: dict[Any, Callable[[Params, Batch], dict[str, jax.Array]]] = {}
        self.multiple = layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]  # that divides the rows of every batch

    def place(self, params: Params) -> Params:
        """NumPy parameters, put on every device once and not with every batch."""
        return jax.device_put(params, self._everywhere)

    def warm_up(self, params: Params, shapes: Sequence[AbstractBatch], show: Show = quiet) -> None:
        """Compiles the program of every shape. params: laid out as those that follow will be."""
        for done, shape in enumerate(shapes, start=1):
            self._program(params, shape)
            show(done / len(shapes))

    def outputs(self, params: Params, batches: Batches, count: int, show: Show = quiet) -> Outputs:
        """The outputs for each of `count` rows, of which every one is in one of the batches. A program that is missing
        is compiled when its shape is met."""
        results: Outputs = [{} for _ in range(count)]
        done = 0
        for indices, batch in batches:
            program = self._program(params, batch)
            computed = {name: np.asarray(x) for name, x in program(params, to_global(batch, self._layout)).items()}
            for place, row in enumerate(indices):
                if row >= 0:
                    results[row] = {name: values[place] for name, values in computed.items()}
                    done += 1
            show(done / count)
        return results

    def _program(
        self, params: Params, batch: Mapping[str, np.ndarray | jax.ShapeDtypeStruct]
    ) -> Callable[[Params, Batch], dict[str, jax.Array]]:
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
