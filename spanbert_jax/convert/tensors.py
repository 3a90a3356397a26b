"""The tensors of a file, as readers give them and as tables of names translate them.

Invariant: the shape of a tensor is known without its values, which are read when they are asked for.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    shape: as the file says. read: returns the values, in this shape; raises UserError where they cannot be read.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __call__(self) -> np.ndarray:
        return self.read()

    @property
    def transposed(self) -> "Tensor":
        """The tensor with its axes in reverse order."""
        return Tensor(self.shape[::-1], lambda: self.read().T)


Tensors = Mapping[str, Tensor]
