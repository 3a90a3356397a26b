"""Triton's binary extension of the Open Inference Protocol: tensors as bytes after the JSON.

Invariant: a tensor of BYTES is, for each element in row order, its length as four bytes and then its bytes. The other
types are their numbers. The least significant byte of a length or a number comes first.
"""

import struct
from collections.abc import Sequence

import numpy as np

from spanbert_jax.service.problems import Problem

HEADER = "inference-header-content-length"  # the bytes of the JSON, in requests and responses that have such tensors


def split_body(body: bytes, size: str | None) -> tuple[bytes, bytes]:
    """(the JSON, the bytes after it). size: the value of the header; raises Problem where it does not fit the body."""
    if size is None:
        return body, b""
    if not size.isdecimal() or len(size) > 18 or int(size) > len(body):
        raise Problem("malformed", f"the header {HEADER} is {size[:20]!r} for a body of {len(body):,} bytes")
    return body[: int(size)], body[int(size) :]


def read_texts(data: bytes) -> list[str]:
    """The elements of a tensor of BYTES as texts; raises Problem where they are not whole or not UTF-8."""
    texts: list[str] = []
    place = 0
    while place < len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "little")
        if place + 4 > len(data) or end > len(data):
            raise Problem("invalid", f"the binary tensor ends inside of element {len(texts)}", "inputs")
        try:
            texts.append(data[place + 4 : end].decode())
        except UnicodeDecodeError as error:
            raise Problem("invalid", f"element {len(texts)} of the binary tensor is not UTF-8", "inputs") from error
        place = end
    return texts


def write_tensor(datatype: str, values: np.ndarray | Sequence[float] | Sequence[str]) -> bytes:
    """The bytes of a tensor of FP32 or BYTES."""
    if datatype == "FP32":
        return np.asarray(values, "<f4").tobytes()
    encoded = [str(value).encode() for value in values]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)
