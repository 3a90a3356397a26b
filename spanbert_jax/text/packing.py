"""Sentences to blocks, and blocks to records.

Invariant: the blocks of a document, put one after another, are its sentences, put one after another: nothing is lost,
added or moved. (The reference drops over-long sentences and unterminated documents.) Worker processes import this, so
it knows no TensorFlow: `serialize` writes the few bytes of a tf.train.Example itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

FEATURE = "input_ids"  # the feature of a record with the pieces of its block
SPANS_FEATURE = "span_tags"  # where rules find spans: a byte for each piece (text/span_tags.py)


def pack(sentences: Iterable[Sequence[int]], limit: int) -> Iterator[list[int]]:
    """Packs the pieces of one document's sentences, in order, into blocks of at most `limit` pieces.

    Greedy: a sentence goes into the current block if it fits, else it begins the next one. A sentence of more than
    `limit` pieces is cut after every `limit`, and its parts are packed like sentences.
    """
    block: list[int] = []
    for part in cut(sentences, limit):
        if len(block) + len(part) > limit:
            yield block
            block = []
        block.extend(part)
    if block:
        yield block


def cut(sentences: Iterable[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
    """The sentences, in order, each of more than `limit` pieces cut after every `limit`; those without pieces are left
    out."""
    for sentence in sentences:
        for start in range(0, len(sentence), limit):
            yield sentence[start : start + limit]


def serialize(features: Mapping[str, Sequence[int] | np.ndarray]) -> bytes:
    """The bytes of a tf.train.Example, from each feature's name -> its numbers.

    An array of uint8 becomes a BytesList with one value, and all else, from 0 to 2**28 - 1, an Int64List.
    """
    return _field(1, b"".join(_field(1, _entry(name, numbers)) for name, numbers in features.items()))


def _entry(name: str, numbers: Sequence[int] | np.ndarray) -> bytes:
    """An entry of the map `Features.feature`."""
    if isinstance(numbers, np.ndarray) and numbers.dtype == np.uint8:
        return _field(1, name.encode()) + _field(2, _field(1, _field(1, numbers.tobytes())))
    groups = np.asarray(numbers, dtype=np.uint32)[:, None] >> np.array([0, 7, 14, 21], dtype=np.uint32)  # [numbers, 4]
    present = groups > 0
    present[:, 0] = True
    continues = np.zeros_like(present)
    continues[:, :-1] = present[:, 1:]
    varints = ((groups & 0x7F) | (continues.astype(np.uint32) << 7)).astype(np.uint8)[present].tobytes()
    int64_list = _field(1, varints)
    return _field(1, name.encode()) + _field(2, _field(3, int64_list))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size = len(payload)
    length = bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + payload
