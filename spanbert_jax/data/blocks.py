"""A corpus to blocks on disk, and blocks back by index.

Invariant: a directory that `is_built` holds a whole TFDS dataset (array_record, splits "train" and "held_out") whose
bytes depend on the corpus, the tokenizer and the block length alone: not on the number of processes, nor on how often
a build was interrupted before. It appears under its name at once, when it is complete.

A record is a serialised tf.train.Example with one int64 feature, input_ids: the pieces of a block without [CLS] and
[SEP]. The records are written directly, and TFDS's metadata beside them, because a GeneratorBasedBuilder would read
the corpus once for each split and serialise every block in one process.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import heapq
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from spanbert_jax.config import Config, CorpusConfig
from spanbert_jax.data import tfds_source
from spanbert_jax.errors import UserError
from spanbert_jax.text import docstrings, workers
from spanbert_jax.text.documents import Document, find_files, hash_text, in_share, read_files
from spanbert_jax.text.packing import FEATURE
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.tokenizer import Tokenizer

SPLITS = ("train", "held_out")
DATASET = "spanbert_blocks"
METADATA_FILE = "metadata.json"
SHARD_RECORDS = 262_144  # about 300 MB
_TASK_CHARS = 400_000  # of documents that a process takes at once
_REPORT_SECONDS = 0.5

Report = Callable[[float | None, int, int], None]  # (share of the corpus read, documents, pieces) so far


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What the blocks were made from, and what they hold.

    Attributes:
      tokenizer_fingerprint: of the Tokenizer.
      block_length: pieces in a block at most, [CLS] and [SEP] included.
      corpus: the fields of config.corpus that the blocks depend on.
      sources: [{"file": path, "bytes": size}, ...] or [{"name": dataset}].
      counts: split -> {"documents", "sentences", "pieces", "blocks"}.
      piece_counts: int64[vocab_size], how often each piece is in the train split.
      fingerprint: sha256, in hex, of every record in order and of all of the above that defines them.
    """

    tokenizer_fingerprint: str
    block_length: int
    corpus: dict[str, Any]
    sources: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    piece_counts: np.ndarray
    fingerprint: str


class Blocks:
    """One split's blocks, read at random; may be used by several threads."""

    def __init__(self, directory: Path, split: str, metadata: Metadata) -> None:
        self.metadata = metadata
        self._count = metadata.counts[split]["blocks"]
        paths = sorted(directory.glob(f"{DATASET}-{split}.array_record-*"))
        options = "readahead_buffer_size:0,max_parallelism:0"  # best for random access, say array_record's own notes
        self._readers = [ArrayRecordReader(str(path), options) for path in paths]
        self._ends = np.cumsum([reader.num_records() for reader in self._readers])
        found = int(self._ends[-1]) if paths else 0
        if found != self._count:
            raise UserError(
                f"{directory}: split {split!r} has {found} blocks in {len(paths)} files, but its metadata "
                f"says {self._count}; delete the directory, so that it is built again"
            )

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The serialised tf.train.Examples of int64[n] indices into [0, len), in the same order."""
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


def is_built(directory: Path) -> bool:
    """Whether the directory holds complete blocks."""
    return (directory / METADATA_FILE).is_file()


def read_metadata(directory: Path) -> Metadata:
    """The metadata of built blocks; raises UserError where there are none."""
    path = directory / METADATA_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Metadata(**{**fields, "piece_counts": np.array(fields["piece_counts"], dtype=np.int64)})
    except FileNotFoundError as error:
        raise UserError(f"{directory} holds no blocks ({METADATA_FILE} is missing); build them first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); delete {directory}, so that it is built again") from error


def open_blocks(directory: Path, split: str) -> Blocks:
    """The blocks of "train" or "held_out"; raises UserError where there are none, or not as many as there should be."""
    return Blocks(directory, split, read_metadata(directory))


def check_blocks(metadata: Metadata, config: Config, tokenizer: Tokenizer) -> None:
    """Raises UserError, saying what differs, where blocks are not the ones that `config` and `tokenizer` make."""
    wanted = {"tokenizer": tokenizer.fingerprint, "data.block_length": config.data.block_length}
    found = {"tokenizer": metadata.tokenizer_fingerprint, "data.block_length": metadata.block_length}
    wanted |= {f"corpus.{name}": value for name, value in source_fields(config.corpus).items()}
    found |= {f"corpus.{name}": value for name, value in metadata.corpus.items()}
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        listed = "; ".join(f"{name} is {wanted[name]!r}, theirs was {found.get(name)!r}" for name in different)
        raise UserError(
            f"the blocks in {config.data.dir or 'the data directory'} were made otherwise: {listed}. "
            "Change that back, or give another directory with --config.data.dir"
        )


def source_fields(corpus: CorpusConfig) -> dict[str, Any]:
    """The fields that decide what the blocks hold."""
    fields = dataclasses.asdict(corpus)
    for name in ("workers", "tfds_data_dir", "name" if corpus.files else "document_break"):
        del fields[name]
    return fields


def read_corpus(corpus: CorpusConfig, pool: workers.Workers) -> tuple[Iterator[Document], list[dict[str, Any]]]:
    """The documents of the corpus, always in the same order, and its sources for the metadata."""
    if corpus.files:
        paths = find_files(corpus.files)
        return read_files(paths, corpus.document_break), [
            {"file": str(path), "bytes": path.stat().st_size} for path in paths
        ]
    if corpus.name == "docstrings":
        return docstrings.read_docstrings(pool), [{"name": corpus.name}]
    return tfds_source.read_tfds(corpus.name, corpus.tfds_data_dir), [{"name": corpus.name}]


def sample_sentences(config: Config, report: Report = lambda *_: None) -> Iterator[str]:
    """Sentences to train a tokenizer on: of documents up to `config.tokenizer.sample_bytes`, none of them held out.

    The documents with the largest hashes, as many as fit: the same ones in the same order whatever the corpus's
    order. Memory is bounded by the sample. `report` gets pieces 0.
    """
    corpus, limit = config.corpus, config.tokenizer.sample_bytes
    kept: list[tuple[bytes, bytes]] = []  # a heap of (hash, text): the smallest hash goes first
    dropped = (b"", b"")  # the largest that had to go; nothing under it may come in again
    size, documents = 0, 0
    clock = _Clock(report)
    with workers.Workers(corpus.workers) as pool:
        for document in read_corpus(corpus, pool)[0]:
            documents += 1
            clock.tick(document.fraction, documents, 0)
            entry = (hash_text(document.text), document.text.strip().encode())
            if in_share(document.key, corpus.held_out) or entry <= dropped:
                continue
            heapq.heappush(kept, entry)
            size += len(entry[1])
            while size > limit and len(kept) > 1:
                dropped = heapq.heappop(kept)
                size -= len(dropped[1])
    report(1.0, documents, 0)
    for _, text in sorted(kept):
        yield from split_sentences(text.decode(), corpus.language, corpus.sentences)


def build_blocks(config: Config, tokenizer: Tokenizer, directory: Path, report: Report = lambda *_: None) -> None:
    """Builds the blocks of `config` in `directory`, which appears when it is complete.

    `report` is called about twice a second with (share of the corpus that was read or None, documents, pieces).
    Raises UserError for a corpus that cannot be read, is empty, or has too few documents to hold any out, for a
    directory that holds something else, and where another process is building there.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty; give another with --config.data.dir, or delete it")
    with _built_aside(directory) as build:
        metadata = _write(config, tokenizer, build, report)
        fields = dataclasses.asdict(metadata) | {"piece_counts": metadata.piece_counts.tolist()}
        (build / METADATA_FILE).write_text(json.dumps(fields) + "\n", encoding="utf-8")


def _write(config: Config, tokenizer: Tokenizer, build: Path, report: Report) -> Metadata:
    """Writes the shards and TFDS's metadata to `build`."""
    corpus = config.corpus
    encoder = workers.Encoder(tokenizer, corpus.language, corpus.sentences, config.data.block_length - 2)
    counts = {split: np.zeros(3, dtype=np.int64) for split in SPLITS}
    piece_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    writers = {split: _SplitWriter(build, split) for split in SPLITS}
    clock = _Clock(report)
    with workers.Workers(corpus.workers, encoder) as pool:
        documents, sources = read_corpus(corpus, pool)
        fractions: list[float | None] = []
        for encoded in pool.map(workers.encode, _tasks(documents, corpus.held_out, fractions)):
            for split in SPLITS:
                writers[split].write(encoded.records[split == "held_out"])
                counts[split] += encoded.counts[split == "held_out"]
            piece_counts += encoded.piece_counts
            clock.tick(fractions.pop(0), *_done(counts))
    for writer in writers.values():
        writer.close()
    _check_splits(corpus, writers, counts)
    _write_tfds_metadata(build, writers)
    digests = [
        tokenizer.fingerprint,
        str(config.data.block_length),
        *(writer.digest.hexdigest() for writer in writers.values()),
    ]
    report(1.0, *_done(counts))
    return Metadata(
        tokenizer_fingerprint=tokenizer.fingerprint,
        block_length=config.data.block_length,
        corpus=source_fields(corpus),
        sources=sources,
        counts={
            split: dict(zip(("documents", "sentences", "pieces"), counts[split].tolist(), strict=True))
            | {"blocks": writers[split].blocks}
            for split in SPLITS
        },
        piece_counts=piece_counts,
        fingerprint=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
    )


def _done(counts: dict[str, np.ndarray]) -> tuple[int, int]:
    """(documents, pieces) of all splits."""
    documents, _, pieces = np.sum(list(counts.values()), axis=0).tolist()
    return documents, pieces


def _tasks(
    documents: Iterable[Document], held_out: float, fractions: list[float | None]
) -> Iterator[list[tuple[str, bool]]]:
    """Groups documents into tasks for `workers.encode`; appends to `fractions` how far each task goes."""
    task: list[tuple[str, bool]] = []
    size = 0
    fraction = None
    for document in documents:
        task.append((document.text, in_share(document.key, held_out)))
        size += len(document.text)
        fraction = document.fraction
        if size >= _TASK_CHARS:
            fractions.append(fraction)
            yield task
            task, size = [], 0
    if task:
        fractions.append(fraction)
        yield task


class _SplitWriter:
    """Writes one split's records to shards, named as TFDS names them once their number is known."""

    def __init__(self, directory: Path, split: str) -> None:
        self.split, self.blocks, self.num_bytes, self.shard_lengths = split, 0, 0, [0]
        self.digest = hashlib.sha256()
        self._directory = directory
        self._writer = self._open()

    def _open(self) -> ArrayRecordWriter:
        # Groups of one record: a block is read without decompressing its neighbours.
        return ArrayRecordWriter(str(self._path(len(self.shard_lengths) - 1)), "group_size:1")

    def _path(self, shard: int) -> Path:
        return self._directory / f"{self.split}-{shard:05d}.partial"

    def write(self, records: list[bytes]) -> None:
        for record in records:
            if self.shard_lengths[-1] == SHARD_RECORDS:
                self._writer.close()
                self.shard_lengths.append(0)
                self._writer = self._open()
            self._writer.write(record)
            self.digest.update(record)
            self.shard_lengths[-1] += 1
            self.num_bytes += len(record)
        self.blocks += len(records)

    def close(self) -> None:
        self._writer.close()
        shards = len(self.shard_lengths)
        for shard in range(shards):
            name = f"{DATASET}-{self.split}.array_record-{shard:05d}-of-{shards:05d}"
            self._path(shard).rename(self._directory / name)


def _check_splits(corpus: CorpusConfig, writers: dict[str, _SplitWriter], counts: dict[str, np.ndarray]) -> None:
    documents = {split: int(counts[split][0]) for split in SPLITS}
    total = sum(documents.values())
    if total == 0:
        raise UserError("the corpus holds no text; check config.corpus.files or config.corpus.name")
    share = max(0.05, min(0.5, 2 / total))
    for split, writer in writers.items():
        if writer.blocks == 0:
            raise UserError(
                f"the corpus has {total} documents, and config.corpus.held_out={corpus.held_out} puts "
                f"{documents['train']} of them into training and {documents['held_out']} into evaluation, so that "
                f"{split!r} has no blocks; give more documents, or another share, such as {share:.2g}"
                + (", or config.corpus.document_break='blank_line'" if corpus.document_break == "file" else "")
            )


def _write_tfds_metadata(build: Path, writers: dict[str, _SplitWriter]) -> None:
    template = tfds.core.ShardedFileTemplate(data_dir=build, dataset_name=DATASET, filetype_suffix="array_record")
    tfds.folder_dataset.write_metadata(
        data_dir=build,
        features=tfds.features.FeaturesDict({FEATURE: tfds.features.Tensor(shape=(None,), dtype=np.int64)}),
        split_infos=[
            tfds.core.SplitInfo(name=split, shard_lengths=writer.shard_lengths, num_bytes=writer.num_bytes)
            for split, writer in writers.items()
        ],
        filename_template=template,
        version="1.0.0",
        check_data=False,
    )


@contextlib.contextmanager
def _built_aside(directory: Path) -> Iterator[Path]:
    """A fresh directory beside `directory` that becomes it at the end; what a killed build left is deleted."""
    build = directory.with_name(directory.name + ".building")
    try:
        build.mkdir(parents=True, exist_ok=True)
        lock = open(build / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"cannot write to {build}: {error.strerror}; give another directory with --config.data.dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is building in {build}; wait for it, or give another --config.data.dir"
            ) from error
        for path in build.iterdir():
            if path.name != "lock":
                path.unlink()
        try:
            yield build
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        (build / "lock").unlink()
        build.rename(directory)


class _Clock:
    """Passes a report on about twice a second."""

    def __init__(self, report: Report) -> None:
        self._report, self._next = report, 0.0

    def tick(self, fraction: float | None, documents: int, pieces: int) -> None:
        if time.monotonic() >= self._next:
            self._report(fraction, documents, pieces)
            self._next = time.monotonic() + _REPORT_SECONDS
