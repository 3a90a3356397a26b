"""What the engine's models share: a function of batches, with a compiled program for each shape.

Invariant: a row's output does not depend on the other rows of its batch, up to rounding, and not at all with
`deterministic`.
"""

import abc
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import NumpyBatch
from spanbert_jax.batches.shapes import Shape
from spanbert_jax.serving.predictor import AbstractBatch, Compute, Params, Predictor
from spanbert_jax.serving.scheduler import Row


class CompiledModel(abc.ABC):
    """A model of the engine, but for its rows and its answers."""

    is_first = True

    def __init__(
        self,
        name: str,
        compute: Compute,
        params: Params,
        layout: NamedSharding,
        table: Callable[[int], Sequence[Shape]],
        deterministic: bool,
    ):
        """layout: divides the rows of a batch among the devices. table: takes the number that divides every number of
        rows, and gives every shape. deterministic: whether each length has one number of rows, the fewest."""
        self._predictor = Predictor(compute, layout)
        self._params = self._predictor.place(params)
        self.name = name
        self.table: Sequence[Shape] = tuple(table(self._predictor.multiple))
        if deterministic:
            fewest = {shape.length: shape for shape in sorted(self.table, reverse=True)}
            self.table = tuple(shape for shape in self.table if fewest[shape.length] == shape)
        self.ready: Sequence[Shape] = ()

    @abc.abstractmethod
    def fields(self, shape: Shape) -> AbstractBatch:
        """The arrays of a batch of the shape."""

    @abc.abstractmethod
    def batch(self, rows: Sequence[Row], shape: Shape) -> NumpyBatch:
        """The batch of at most shape.rows rows of at most shape.length pieces. Its last rows may be empty."""

    def prepare(self, shape: Shape) -> None:
        """Compiles the program of a shape, and puts the shape into `ready`."""
        self._predictor.warm_up(self._params, [self.fields(shape)])
        self.ready = (*self.ready, shape)

    def start(self, rows: Sequence[Row], shape: Shape) -> dict[str, jax.Array]:
        """Begins to compute the rows, and does not wait for the end. A shape that is not in `ready` is compiled."""
        return self._predictor.start(self._params, self.batch(rows, shape))

    def finish(self, started: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        """Waits for the result of `start`."""
        return {name: np.asarray(values) for name, values in started.items()}
