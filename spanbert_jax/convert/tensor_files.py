"""Tensors in files: safetensors, and PyTorch's pickles without running what is in them.

Invariant: no code in a file is run. A tensor of a safetensors file is loaded when it is asked for.
"""

import argparse
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from spanbert_jax.errors import UserError

Tensors = Mapping[str, Callable[[], np.ndarray]]  # name -> a function that reads the tensor
_INDEX = ".index.json"


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file, of its shards (a .safetensors.index.json), or of a PyTorch pickle.

    Shapes and dtypes are the file's, but bfloat16 in a pickle becomes float32. Raises UserError where the file is
    missing, damaged, or asks for code to be run, and for a pickle where torch is not installed.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a directory or file of weights")
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pickle(path)


def _read_safetensors(path: Path) -> Tensors:
    try:
        # Not mapped: mapped pages would count as this process's memory, a second copy of the model.
        file = safe_open(path, framework="np", backend="pread")
        return {name: lambda name=name: file.get_tensor(name) for name in file.offset_keys()}  # type: ignore[misc]
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch or export it again") from error


def _read_shards(path: Path) -> Tensors:
    try:
        files = json.loads(path.read_text())["weight_map"]
        shards = {name: _read_safetensors(path.parent / name) for name in sorted(set(files.values()))}
        return {name: shards[file][name] for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not an index of shards, or a shard lacks a tensor that it lists ({error!r}); fetch them again"
        ) from error


def _read_pickle(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch pickle, which only PyTorch reads: pip install -r requirements-torch.txt, or give "
            "safetensors"
        ) from error
    # fairseq's training checkpoints hold these objects, which are nothing but values, beside the tensors.
    meters = [(_Meter, f"fairseq.meters.{name}") for name in ("AverageMeter", "StopwatchMeter", "TimeMeter")]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *meters]):
            warnings.simplefilter("ignore")  # torch warns of a pickle's protocol before it raises the error itself
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no class of its own for damaged or refused files
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks to load {asked[1]}" if asked else "it is damaged, or not PyTorch's"
        raise UserError(f"{path}: not a pickle of weights alone ({reason}); nothing in it was run") from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    tensors = {
        name: value
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise UserError(f"{path}: holds a {type(loaded).__name__} without tensors; expected a model's state_dict")

    def reader(tensor: Any) -> Callable[[], np.ndarray]:
        return lambda: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()

    return {name: reader(tensor) for name, tensor in tensors.items()}


class _Meter:
    """Stands in for fairseq's meters, so that their values can be unpickled without fairseq and its code."""
