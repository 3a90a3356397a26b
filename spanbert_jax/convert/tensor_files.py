"""Tensors in files: safetensors, their shards, and PyTorch's pickles (`pytorch_pickle.py`).

Invariant: no code in a file is run, and no file outside of the directory of the named one is opened. The shape of a
tensor is known without its values, which are read when they are asked for, except those of a legacy pickle.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from spanbert_jax import json_files
from spanbert_jax.convert.pytorch_pickle import read_pickle
from spanbert_jax.convert.tensors import Tensor, Tensors
from spanbert_jax.errors import UserError, quoted, reason, shortened
from spanbert_jax.files import is_plain_name

_INDEX = ".index.json"


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file, of its shards (a .safetensors.index.json), or of a PyTorch pickle.

    Shapes and dtypes are the file's, but floating-point types that NumPy lacks become float32 in a pickle. Raises
    UserError where the file is missing or damaged, asks for code to be run or for a file elsewhere, or claims more than
    it holds, and for a pickle where torch is not installed. So does the call of a tensor that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a directory or file of weights")
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return read_pickle(path)


def _read_safetensors(path: Path) -> Tensors:
    try:
        # Not mapped: mapped pages would count as this process's memory, a second copy of the model.
        file = safe_open(path, framework="np", backend="pread")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({shortened(error)}); fetch or export it again"
        ) from error

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                return file.get_tensor(name)
            except (SafetensorError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{path}: {shortened(name)} cannot be read ({shortened(error)}); export it again"
                ) from error

        return read

    return {name: Tensor(shape, reader(name)) for name, shape in shapes.items()}


def _read_shards(path: Path) -> Tensors:
    try:
        files = json_files.read(path)["weight_map"]
        elsewhere = [file for file in files.values() if not is_plain_name(file)]
        if elsewhere:
            raise UserError(
                f"{path}: names the shard {quoted(elsewhere[0])}; expected the name of a file beside the index, as "
                "transformers writes it"
            )
        shards = {name: read_tensors(path.parent / name) for name in sorted(set(files.values()))}
        return {name: shards[file][name] for name, file in files.items()}
    except json_files.OTHER_SHAPE as error:
        raise UserError(
            f"{path}: not an index of shards, or a shard lacks a tensor that it lists ({reason(error)}); "
            "fetch them again"
        ) from error
