"""Reads blocks from disk by their numbers, and the metadata that says what the blocks were made from.

Invariant: a directory for which `is_built` is true holds a whole TFDS dataset (array_record, splits "train" and
"held_out"), because its metadata appears last, or together with all other files. The metadata has a digest of its own
fields and of every file that a run reads. This module writes nothing.

A record is a serialised tf.train.Example with an int64 feature, input_ids: the pieces of a block without [CLS] and
[SEP]. With config.corpus.spans the bytes span_tags have the span tag of each piece (text/span_tags.py). With
config.corpus.pairs the pieces are those of two texts, A and B, and the int64 feature pair has the number of pieces in A
and the label for next-sentence prediction (1: B is of another document; 0: B follows A).
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from spanbert_jax import json_files
from spanbert_jax.config import Config, CorpusConfig
from spanbert_jax.errors import UserError, reason, shortened
from spanbert_jax.files import has_its_digest
from spanbert_jax.text.lines import hash_file
from spanbert_jax.text.packing import FEATURE, SPANS_FEATURE
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.version import VERSION

if TYPE_CHECKING:
    import tensorflow as tf

SPLITS = ("train", "held_out")
DATASET = "spanbert_blocks"
METADATA_FILE = "metadata.json"
_COUNTS = ("documents", "sentences", "pieces", "blocks")
_READ_AHEAD = 1000  # records
# Fields of config.corpus that came after format 2. Metadata without such a field means the field's default, so blocks
# that do not use the field have the same bytes as before.
_LATER_FIELDS = ("spans", "pairs")
FORMAT = 2  # of a directory of blocks. Format 1, up to version 0.1.0, lacks this number and the files' "sha256".


class DamagedMetadata(UserError):
    """The metadata of blocks is not as it was written, so that nothing says what the blocks are.

    Attributes:
      found: the beginning of the message, without the advice.
    """

    def __init__(self, path: Path | epath.Path, why: str) -> None:
        self.found = f"{path} is damaged ({why})"
        super().__init__(
            f"{self.found}; put an undamaged copy in its place, or delete {path.parent}, so that it is built again"
        )


FileDigest = dict[str, Any]  # {"bytes": size, "sha256": of the bytes, in hex}
VerifyProgress = Callable[[float | None, str], None]  # (share done, the state in words)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What the blocks were made from, and what they hold.

    Attributes:
      format: `FORMAT` of the version that wrote the blocks.
      version: the version of this package that wrote the blocks; "" in format 1.
      tokenizer_fingerprint: `Tokenizer.fingerprint`.
      block_length: the most pieces in a block's row, [CLS] and [SEP] included.
      corpus: the fields of config.corpus that the blocks depend on (`source_fields`).
      sources: as `Corpus.sources`; in format 1 without "sha256".
      counts: split -> {"documents", "sentences", "pieces", "blocks"}.
      piece_counts: int64[vocab_size], how often each piece is in the train split.
      fingerprint: sha256, in hex, of the tokenizer's fingerprint, the block length and every record in order.
      spans: with config.corpus.spans: "kinds" (kind i + 1 is kinds[i]), "counts" (of the spans of each kind),
        "left_out" (sentences too long to be searched), "files" (path -> sha256) and "made_by" (libraries and models);
        None without.
      files: the name of each file of records or lengths -> its `FileDigest`; empty where an earlier version wrote the
        blocks.
    """

    format: int
    version: str
    tokenizer_fingerprint: str
    block_length: int
    corpus: dict[str, Any]
    sources: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    piece_counts: np.ndarray
    fingerprint: str
    spans: dict[str, Any] | None = None
    files: dict[str, FileDigest] = dataclasses.field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """The size of all `files`."""
        return sum(file["bytes"] for file in self.files.values())

    @property
    def kinds(self) -> list[str]:
        """The kinds of spans that the blocks have; kind i + 1 is kinds[i]."""
        return self.spans["kinds"] if self.spans else []


_FIELDS = {field.name for field in dataclasses.fields(Metadata)}


class Blocks:
    """One split's blocks, in random access; several threads may use them.

    Attributes:
      metadata: of all splits.
      lengths: int32[blocks], the number of pieces in each block, without the special pieces of its row.

    Raises UserError where the files hold another number of blocks than the metadata says, or no lengths.
    """

    def __init__(self, directory: Path, split: str, metadata: Metadata) -> None:
        self.metadata = metadata
        self._count = metadata.counts[split]["blocks"]
        paths = _record_files(directory, split)
        self._readers = [_open_records(path) for path in paths]
        self._ends = np.cumsum([reader.num_records() for reader in self._readers])
        found = int(self._ends[-1]) if paths else 0
        if found != self._count:
            raise UserError(
                f"{directory}: split {split!r} has {found} blocks in {len(paths)} files, but its metadata "
                f"says {self._count}; delete the directory, so that it is built again"
            )
        self.lengths = _read_lengths(directory / lengths_file(split), self._count)

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The serialised tf.train.Examples of the blocks with the given numbers (int64[n], from 0), in their order."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self._count:
            raise IndexError(f"indices {indices.min()} to {indices.max()} of {self._count} blocks")
        shards = np.searchsorted(self._ends, indices, side="right")
        records: list[bytes] = [b""] * len(indices)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            start = self._ends[shard - 1] if shard else 0
            found = self._readers[shard].read((indices[places] - start).tolist())
            for place, record in zip(places, found, strict=True):
                records[place] = record
        return records


def parse_records(
    records: "Sequence[bytes] | tf.Tensor", features: Sequence[str] = (FEATURE,)
) -> "dict[str, tf.Tensor]":
    """The `features` of each record of `Blocks.read`: int64 [records, longest], with -1 up to the longest. A feature
    that no record has is int64 [records, 0]. Span tags are int32 [records, longest], with 0 up to the longest, and are
    asked for together with the pieces."""
    import tensorflow as tf  # for seconds, which processes that read no pieces do not have to wait

    feature = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True, default_value=-1)
    wanted = dict.fromkeys(features, feature)
    if SPANS_FEATURE in wanted:
        wanted[SPANS_FEATURE] = tf.io.FixedLenFeature([], tf.string)
    parsed: dict[str, tf.Tensor] = tf.io.parse_example(records, wanted)
    if SPANS_FEATURE in wanted:
        tags = tf.io.decode_raw(parsed[SPANS_FEATURE], tf.uint8, fixed_length=tf.shape(parsed[FEATURE])[1])
        parsed[SPANS_FEATURE] = tf.cast(tags, tf.int32)
    return parsed


def lengths_file(split: str) -> str:
    """The name of the file with a split's `Blocks.lengths`."""
    return f"lengths-{split}.npy"


def _read_lengths(path: Path, count: int) -> np.ndarray:
    again = f"delete {path.parent}, so that it is built again"
    try:
        lengths = np.array(np.load(path, mmap_mode="r"))  # A damaged header that is mapped asks for no memory.
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: it was removed, or an earlier version of this program built the blocks; {again}"
        ) from error
    except Exception as error:  # NumPy reads the header with Python's own parser, and raises what that raises
        raise UserError(f"{path} is damaged ({shortened(error)}); {again}") from error
    if lengths.shape != (count,) or lengths.dtype != np.int32:
        raise UserError(
            f"{path} has lengths of type {lengths.dtype} and shape {lengths.shape}, and there are {count} blocks; "
            f"{again}"
        )
    return lengths


def is_block_file(name: str) -> bool:
    """Whether a file has a name that files of blocks have. A stopped copy or pipeline leaves such files, which may be
    deleted."""
    return name.startswith((f"{DATASET}-", "lengths-", "dataset_info.json", "features.json", METADATA_FILE))


def is_built(directory: Path | epath.Path) -> bool:
    """Whether the directory holds complete blocks."""
    return (directory / METADATA_FILE).exists()


def read_metadata(directory: Path | epath.Path) -> Metadata:
    """The metadata of built blocks, of this format or an older one.

    Raises UserError where there are no blocks, and where the metadata is of a newer format or damaged
    (`DamagedMetadata`).
    """
    path = directory / METADATA_FILE
    try:
        fields = json_files.read(path)
        if not has_its_digest(fields):
            raise ValueError("its fields are not those that were written, by their digest")
        if fields.get("format", 1) > FORMAT:
            raise UserError(
                f"{path}: spanbert_jax {fields.get('version')} wrote these blocks, in format {fields['format']}, and "
                f"this is {VERSION}, which reads formats up to {FORMAT}; install that version, or "
                "build the blocks again in another directory with --config.data.dir"
            )
        known = {"format": 1, "version": ""} | {name: fields[name] for name in fields if name in _FIELDS}
        metadata = Metadata(**known | {"piece_counts": np.array(fields["piece_counts"], dtype=np.int64)})
        _check_types(metadata)
        if metadata.piece_counts.sum() != metadata.counts["train"]["pieces"]:
            raise ValueError("piece_counts do not add up to the pieces of the split 'train'")
        return metadata
    except FileNotFoundError as error:
        raise UserError(f"{directory} holds no blocks ({METADATA_FILE} is missing); build them first") from error
    except json_files.OTHER_SHAPE as error:
        raise DamagedMetadata(path, reason(error)) from error


def _check_types(metadata: Metadata) -> None:
    """Raises TypeError or KeyError where a field that is read later has another shape."""
    kinds = (metadata.spans or {"kinds": []})["kinds"]
    corpus = {name: value for name, value in metadata.corpus.items() if not isinstance(value, dict | list)}
    numbers = [metadata.block_length, *(metadata.counts[split][name] for split in SPLITS for name in _COUNTS)]
    texts = [metadata.fingerprint, metadata.tokenizer_fingerprint, *kinds]
    if not (isinstance(kinds, list) and all(type(one) is int for one in numbers) and corpus == metadata.corpus):
        raise TypeError("a count, the kinds of spans or a field of config.corpus is of another type")
    if not all(isinstance(one, str) for one in texts) or not isinstance(metadata.sources, list):
        raise TypeError("a fingerprint, a kind of spans or the sources are of another type")


def open_blocks(directory: Path, split: str) -> Blocks:
    """The blocks of the split "train" or "held_out"; raises the UserErrors of `read_metadata` and `Blocks`."""
    return Blocks(directory, split, read_metadata(directory))


def make_fingerprint(tokenizer_fingerprint: str, block_length: int, digests: Mapping[str, Sequence[str]]) -> str:
    """`Metadata.fingerprint`. digests: split -> the sha256, in hex, of the records of each file of the split."""
    in_order = [f"{split} {digest}" for split in SPLITS for digest in digests[split]]
    return hashlib.sha256("\n".join([tokenizer_fingerprint, str(block_length), *in_order]).encode()).hexdigest()


def file_digest(path: Path) -> FileDigest:
    """The entry of a file in `Metadata.files`; raises OSError."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def damaged_files(directory: Path, metadata: Metadata, report: VerifyProgress = lambda *_: None) -> list[str]:
    """The names of the files that are missing or not as `Metadata.files` has them, in that order.

    Every byte is read: a disk or a copy that changes a byte changes neither a file's size nor its times. A core hashes
    1 GB in 0.6 s, and there is a thread for each core. Of hundreds of GB the disk decides: 300 GB take 16 cores 12 s,
    and 5 minutes from a disk that gives 1 GB/s.

    Raises UserError where a file may not be read.
    """

    def sound(name: str) -> bool:
        try:
            size = (directory / name).stat().st_size
            return size == metadata.files[name]["bytes"] and file_digest(directory / name) == metadata.files[name]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):  # lost, or on a bad part of the disk
                return False
            raise UserError(f"cannot read {directory / name}: {error.strerror}; make it readable") from error

    damaged: list[str] = []
    done = 0
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())  # a thread that hashes does not hold Python's lock
    try:
        for name, is_sound in zip(metadata.files, pool.map(sound, metadata.files), strict=True):
            damaged += [] if is_sound else [name]
            done += metadata.files[name]["bytes"]
            report(done / max(metadata.num_bytes, 1), f"{done / 1e9:,.2f} of {metadata.num_bytes / 1e9:,.2f} GB")
    finally:
        pool.shutdown(cancel_futures=True)
    return damaged


def check_records(directory: Path, metadata: Metadata) -> None:
    """Raises UserError where the records are not those from which `Metadata.fingerprint` was made: for blocks of an
    earlier version, which have no `Metadata.files`.

    A build writes the metadata last. So the records are read only where one of their files changed after the metadata
    was written.
    """
    files = {split: _record_files(directory, split) for split in SPLITS}
    changed = max((max(path.stat().st_mtime, path.stat().st_ctime) for of in files.values() for path in of), default=0)
    if changed <= (directory / METADATA_FILE).stat().st_mtime:
        return
    digests = {split: [_digest(path) for path in of] for split, of in files.items()}
    if make_fingerprint(metadata.tokenizer_fingerprint, metadata.block_length, digests) != metadata.fingerprint:
        raise UserError(
            f"{directory}: the records are not those that {METADATA_FILE} was written for; restore both, or delete the "
            "directory, so that it is built again"
        )


def _record_files(directory: Path, split: str) -> list[Path]:
    return sorted(directory.glob(f"{DATASET}-{split}.array_record-*"))


def _digest(path: Path) -> str:
    """sha256, in hex, of the records of a file one after another."""
    digest = hashlib.sha256()
    for record in read_records(path):
        digest.update(record)
    return digest.hexdigest()


def read_records(path: Path) -> Iterator[bytes]:
    """The records of an array_record file, in order."""
    reader = _open_records(path)
    count = reader.num_records()
    for start in range(0, count, _READ_AHEAD):
        yield from reader.read(range(start, min(start + _READ_AHEAD, count)))


def _open_records(path: Path) -> ArrayRecordReader:
    return ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")  # its advice for random access


def check_blocks(metadata: Metadata, config: Config, tokenizer: Tokenizer) -> None:
    """Raises UserError, naming the fields that differ, where `config` and `tokenizer` would make other blocks."""
    wanted = {"tokenizer": tokenizer.fingerprint, "data.block_length": config.data.block_length}
    found = {"tokenizer": metadata.tokenizer_fingerprint, "data.block_length": metadata.block_length}
    later = {name: getattr(CorpusConfig, name) for name in _LATER_FIELDS}
    wanted |= {f"corpus.{name}": value for name, value in (later | source_fields(config.corpus)).items()}
    found |= {f"corpus.{name}": value for name, value in (later | metadata.corpus).items()}
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        listed = "; ".join(f"{name} is {wanted[name]!r}, and was {found.get(name)!r}" for name in different)
        raise UserError(
            f"the blocks in {config.data.dir or 'the data directory'} were made otherwise: {listed}. "
            "Change that back, or give another directory with --config.data.dir"
        )
    for path, digest in (metadata.spans or {}).get("files", {}).items():
        if Path(path).is_file() and hash_file(Path(path)) != digest:
            raise UserError(
                f"{path} was changed since the blocks in {config.data.dir or 'the data directory'} were built with it "
                "(config.corpus.spans). Put it back as it was, or give another directory with --config.data.dir"
            )


def source_fields(corpus: CorpusConfig) -> dict[str, Any]:
    """The fields of config.corpus on which the blocks depend, those of `_LATER_FIELDS` only where they are set."""
    fields = dataclasses.asdict(corpus)
    unused = ["workers", "tfds_data_dir", "name" if corpus.files else "document_break"]
    unused += [name for name in _LATER_FIELDS if fields[name] == getattr(CorpusConfig, name)]
    return {name: value for name, value in fields.items() if name not in unused}
