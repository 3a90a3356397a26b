"""TensorFlow-1 checkpoints: PREFIX.index and PREFIX.data-*.

Invariant: a tensor is read when it is asked for. The tensor comes back as it was saved (TensorFlow compares its
checksum), or a UserError names the tensor and the files.
"""

import functools
import math
from pathlib import Path
from typing import Any

import spanbert_jax.tensorflow_settings  # noqa: F401  # before TensorFlow is imported

# isort: split
import numpy as np
import tensorflow as tf

from spanbert_jax.convert.tensors import Tensor, Tensors
from spanbert_jax.errors import UserError, shortened

# TensorFlow has no class for a damaged file. It raises one of these, depending on where the damage lies.
_DAMAGED = (tf.errors.OpError, RuntimeError, ValueError, IndexError)


def read_checkpoint(prefix: Path) -> Tensors:
    """The checkpoint's tensors under their names in it, in the shapes and dtypes that they were saved in.

    Raises UserError where a file is missing, or shorter than its tensors. A function of the result raises UserError
    where the bytes of its tensor are damaged.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        raise UserError(
            f"{index}: no such file; a TensorFlow checkpoint is {prefix.name}.index and {prefix.name}.data-* in one "
            f"directory, named here by {prefix} alone"
        )
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except _DAMAGED as error:
        raise UserError(
            f"{index}: not the index of a TensorFlow checkpoint ({shortened(error)}); fetch it again"
        ) from error
    files = sorted(prefix.parent.glob(f"{prefix.name}.data-*"))
    if not files:
        raise UserError(f"{prefix}.data-*: no such file, only {index.name}; fetch it too, the tensors are in it")
    size = sum(path.stat().st_size for path in files)
    needed = sum(math.prod(shape) * dtypes[name].size for name, shape in shapes.items())
    if size < needed:
        names = ", ".join(path.name for path in files)
        raise UserError(f"{prefix.parent}: {names}: {size} bytes; the tensors take {needed}. Fetch what is missing")
    return {
        name: Tensor(tuple(shapes[name]), functools.partial(_read, reader, name, prefix)) for name in sorted(shapes)
    }


def _read(reader: Any, name: str, prefix: Path) -> np.ndarray:
    try:
        return np.asarray(reader.get_tensor(name))
    except _DAMAGED as error:
        raise UserError(
            f"{prefix}.data-*: tensor {shortened(name)} is damaged ({shortened(error, 300)}); fetch the files again"
        ) from error
