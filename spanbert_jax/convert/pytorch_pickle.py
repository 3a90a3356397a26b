"""Tensors in PyTorch's pickles, in the zip format (since 1.6) and in the legacy one, without running what is in them.

Invariant: nothing of a pickle is run, and a file takes no more memory than a small multiple of its own size. A pickle
claims sizes apart from the bytes that it holds, so each claim (of a record in the zip, a storage, a tensor) is compared
with these bytes. The values of the zip format stay in the file until they are read.
"""

import argparse
import mmap
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_jax.convert.tensors import Tensor, Tensors
from spanbert_jax.errors import UserError, shortened

# Of the pickled structure without the values. An operation of one byte can make an object of 64; the structure of
# BERT-large takes 60 kB, and that of a training checkpoint with the state of its optimizer less than 1 MB.
_MOST_STRUCTURE = 2**22
_LEGACY_PICKLES = 5  # a magic number, a version, facts about the machine, the object, and the keys of its storages
# Tied tensors share bytes, and a state_dict lists each by its own name: three times the word table in BERT's heads.
_MOST_SHARED = 4


def read_pickle(path: Path) -> Tensors:
    """The tensors of a state_dict, or of a fairseq checkpoint's "model".

    Raises UserError where the file is damaged, asks for code to be run, holds no tensors, or claims more values than it
    holds bytes, and where torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch pickle, which only PyTorch reads: pip install -r requirements-torch.txt, or give "
            "safetensors"
        ) from error
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as torch.load decides
    records = _zip_records(path) if is_zip else None
    if records is None:
        _check_legacy(path)
    # fairseq's training checkpoints hold these objects, which are nothing but values, beside the tensors.
    meters = [(_Meter, f"fairseq.meters.{name}") for name in ("AverageMeter", "StopwatchMeter", "TimeMeter")]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *meters]):
            warnings.simplefilter("ignore")  # torch warns of a pickle's protocol before it raises the error itself
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch has no class of its own for damaged or refused files
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks to load {shortened(asked[1])}" if asked else "it is damaged, or not PyTorch's"
        raise UserError(f"{path}: not a pickle of weights alone ({reason}); nothing in it was run") from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    tensors = {
        name: value
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise UserError(f"{path}: holds a {type(loaded).__name__} without tensors; expected a model's state_dict")
    _check_claims(path, tensors, records)
    return {name: Tensor(tuple(tensor.shape), _reader(tensor, name, path)) for name, tensor in tensors.items()}


def _zip_records(path: Path) -> Counter[int]:
    """How many records of values have each size in bytes. Raises UserError where a record is compressed, which torch
    never does, or the pickled structure is too large."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a pickle of weights alone (it is damaged, or not PyTorch's); nothing in it was run"
        ) from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(f"{path}: its record {entry.filename[:100]!r} is compressed, which PyTorch never does")
        if entry.filename.endswith("/data.pkl") and entry.file_size > _MOST_STRUCTURE:
            raise UserError(
                f"{path}: {entry.file_size:,} bytes beside its values; at most {_MOST_STRUCTURE:,} are read"
            )
    return Counter(entry.file_size for entry in entries if "/data/" in entry.filename)


def _check_legacy(path: Path) -> None:
    """Raises UserError where the pickles at the beginning of a legacy file end too late, or not at all."""
    with open(path, "rb") as file:
        try:
            # Mapped, because a read of a mapped file is cut at the file's end and allocates nothing beyond it.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of the escapes in damaged text
                for _ in range(_LEGACY_PICKLES):
                    for _ in pickletools.genops(data):  # type: ignore[arg-type]  # it reads, and tells its position
                        if data.tell() > _MOST_STRUCTURE:
                            raise UserError(f"{path}: more than {_MOST_STRUCTURE:,} bytes beside its values")
        except ValueError:  # damaged, or not PyTorch's; torch says which code it asks for before the damage
            if path.stat().st_size > _MOST_STRUCTURE:
                raise UserError(
                    f"{path}: not a pickle of weights alone (it is damaged, or not PyTorch's); nothing in it was run"
                ) from None


def _check_claims(path: Path, tensors: Mapping[str, Any], records: Counter[int] | None) -> None:
    """Raises UserError where a tensor, a storage or all tensors together claim more bytes than the file has for them.

    records: see `_zip_records`; None for the legacy format, whose storages torch compares with the file.
    """
    storages: dict[int, int] = {}  # place -> bytes
    for name, tensor in tensors.items():
        if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UserError(
                f"{path}: {shortened(name)} is no dense tensor ({tensor.layout}, {tensor.device}); expected one"
            )
        storage = tensor.untyped_storage()
        claimed = tensor.numel() * tensor.element_size()
        if claimed > storage.nbytes():
            raise UserError(
                f"{path}: {shortened(name)} has shape {tuple(tensor.shape)!s:.200}, {claimed:,} bytes, in a storage of "
                f"{storage.nbytes():,}; save a copy of each tensor (tensor.contiguous().clone())"
            )
        storages[storage.data_ptr()] = storage.nbytes()
    unknown = Counter(size for size in storages.values() if size) - records if records is not None else Counter()
    if unknown:
        raise UserError(f"{path}: a tensor claims {next(iter(unknown)):,} bytes, and no record of the file has so many")
    total, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if total > _MOST_SHARED * size:
        raise UserError(f"{path}: its tensors claim {total:,} bytes, and the file has {size:,}")


def _reader(tensor: Any, name: str, path: Path) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        try:
            values = tensor.detach()
            is_known = str(values.dtype) in ("torch.float16", "torch.float32", "torch.float64")
            return (values.float() if values.is_floating_point() and not is_known else values).numpy()
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"{path}: {shortened(name)} is of type {tensor.dtype}, which NumPy does not have"
            ) from error

    return read


class _Meter:
    """Stands in for fairseq's meters, so that their values can be unpickled without fairseq and its code."""
