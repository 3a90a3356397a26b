"""Files of records, one after another: the shards of a split's blocks.

Invariant: a shard's bytes depend on its records alone. Its digests are those of the records that were written and of
the file that came of them.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from spanbert_jax.corpus.blocks import DATASET, FileDigest, file_digest


class Shard(NamedTuple):
    """The content of one file of records, in numbers."""

    num_bytes: int
    digest: str  # sha256, in hex, of the records one after another
    lengths: np.ndarray  # int32[records]
    file: FileDigest


class ShardWriter:
    """Writes one file of records."""

    def __init__(self, path: Path, empty: bool = False) -> None:
        """empty: the records are counted and hashed, and the file stays empty."""
        # With groups of one record, a block is read without decompressing its neighbours.
        self._path, self._writer = path, None if empty else ArrayRecordWriter(str(path), "group_size:1")
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._lengths)

    def write(self, records: Sequence[bytes], lengths: Sequence[int]) -> None:
        """Appends records, each with the number of pieces in it."""
        for record in records:
            if self._writer:
                self._writer.write(record)
            self._digest.update(record)
            self._num_bytes += len(record)
        self._lengths.extend(lengths)

    def close(self) -> Shard:
        """Ends the file, and reads it once for its digest."""
        if self._writer:
            self._writer.close()
        else:
            self._path.touch()
        lengths = np.array(self._lengths, dtype=np.int32)
        return Shard(self._num_bytes, self._digest.hexdigest(), lengths, file_digest(self._path))


def shard_file(split: str, shard: int, shards: int) -> str:
    """The name that TFDS gives to file `shard` (from 0) of the `shards` files of a split."""
    return f"{DATASET}-{split}.array_record-{shard:05d}-of-{shards:05d}"


class SplitWriter:
    """Writes one split's records to shards, which get their names when the number of shards is known."""

    def __init__(self, directory: Path, split: str, records: int, only: Sequence[str] | None = None) -> None:
        """records: the most in a shard. only: the names of the shards that are written; the others stay empty."""
        self._directory, self._split, self._records, self._only = directory, split, records, only
        self._shards: list[Shard] = []
        self._writer = self._open()

    def _open(self) -> ShardWriter:
        number = len(self._shards)
        first = shard_file(self._split, number, 0).removesuffix("00000")  # of the name that the shard will have
        empty = self._only is not None and not any(name.startswith(first) for name in self._only)
        return ShardWriter(self._path(number), empty)

    def _path(self, shard: int) -> Path:
        return self._directory / f"{self._split}-{shard:05d}.partial"

    def write(self, records: Sequence[bytes], lengths: Sequence[int]) -> None:
        """Appends records, each with the number of pieces in it."""
        start = 0
        while start < len(records):
            if len(self._writer) == self._records:
                self._shards.append(self._writer.close())
                self._writer = self._open()
            stop = start + self._records - len(self._writer)
            self._writer.write(records[start:stop], lengths[start:stop])
            start = stop

    def close(self) -> list[Shard]:
        """Ends the last file. Returns what each file holds, in order."""
        self._shards.append(self._writer.close())
        for shard in range(len(self._shards)):
            name = shard_file(self._split, shard, len(self._shards))
            self._path(shard).rename(self._directory / name)
        return self._shards
