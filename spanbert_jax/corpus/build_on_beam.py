"""A corpus to blocks on Apache Beam: on one machine, or on many by Dataflow, Flink or Spark.

Invariant: the directory has the bytes that `build_blocks` would write, file by file, whatever the runner and the number
of machines. Its metadata is written last, so that what a stopped pipeline leaves is never taken for blocks.

The corpus is cut into files, files into tasks of documents, and tasks are encoded wherever there is room. The numbers
of blocks in all tasks, added up in the corpus's order, give every block its place, and so its shard. Runs without
TensorFlow and JAX: a worker needs requirements-beam.txt and this package alone.
"""

import logging
import os
import re
import shutil
import struct
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from spanbert_jax.config import Config
from spanbert_jax.corpus import build as building
from spanbert_jax.corpus import tfds_source
from spanbert_jax.corpus.blocks import METADATA_FILE, SPLITS, is_block_file
from spanbert_jax.corpus.build import Shard, ShardWriter
from spanbert_jax.errors import UserError
from spanbert_jax.text import worker_pool
from spanbert_jax.text.documents import Document, find_files, make_documents, read_files
from spanbert_jax.text.tokenizer import Tokenizer, load_tokenizer

_TOKENIZER_FILES = ("spanbert_tokenizer.json", "vocab.txt", "spiece.model")
_LOCAL_RUNNERS = ("", "DirectRunner", "FnApiRunner")
_READ_AHEAD = 1000  # records of an array_record file


class Input(NamedTuple):
    """A file of the corpus; `place` is its place among them."""

    place: int
    path: str
    kind: str  # "text", "tfrecord" or "array_record"


class Places(NamedTuple):
    """Where the blocks of every task go."""

    tasks: np.ndarray  # int64[tasks], ascending: 2**32 x the file's place + the task's in it
    first: np.ndarray  # int64[tasks, splits], the place of a task's first block in its split
    blocks: np.ndarray  # int64[splits], of all tasks
    shard_records: int


def build_with_beam(config: Config, arguments: list[str]) -> None:
    """Builds the blocks of `config` in <config.data.dir>/blocks by Beam, which gets the `arguments` (--runner=...).

    The vocabulary is config.tokenizer.vocab_file, or the one in <config.data.dir>/tokenizer.
    Raises UserError where there is no vocabulary, the corpus cannot be read or is empty, or the directory holds
    something else.
    """
    directory = f"{config.data.dir.rstrip('/')}/blocks"
    _check_directory(directory)
    tokenizer = _tokenizer(config)
    inputs, sources = _inputs(config)
    options = PipelineOptions(arguments)
    name = options.view_as(StandardOptions).runner or ""
    # DirectRunner would first try to download a server and run the pipeline there.
    runner = FnApiRunner() if name in _LOCAL_RUNNERS else name
    if name in _LOCAL_RUNNERS:
        logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)  # errors are raised besides
    pipeline = beam.Pipeline(runner=runner, options=options)
    _describe(pipeline, config, tokenizer, inputs, sources, directory)
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # a worker's; what a runner keeps of it is its text
        text = f"UserError: {error}" if isinstance(error, UserError) else str(error)
        found = re.search(r"UserError: (.*?)( \[while running |\\n|\n|$)", text)
        if found is None:
            raise
        raise UserError(found[1]) from error


def _describe(
    pipeline: beam.Pipeline,
    config: Config,
    tokenizer: Tokenizer,
    inputs: list[Input],
    sources: list[dict[str, Any]],
    directory: str,
) -> None:
    """Adds the steps to a pipeline."""
    encoded = (
        pipeline
        | "Files" >> beam.Create(inputs)
        | "SpreadFiles" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(_read, config.corpus.document_break, config.corpus.held_out)
        | "SpreadTasks" >> beam.Reshuffle()
        | "Encode" >> beam.ParDo(_Encode(building.make_encoder(config, tokenizer))).with_outputs("sums", main="blocks")
    )
    places = (
        encoded.blocks
        | "Count" >> beam.Map(_count)
        | "AllCounts" >> beam.combiners.ToList()
        | "Places" >> beam.Map(_places, building.SHARD_RECORDS)
    )
    sums = encoded.sums | "Sum" >> beam.CombineGlobally(_Sum(6 + tokenizer.vocab_size))
    shards = (
        encoded.blocks
        | "Place" >> beam.FlatMap(_place, beam.pvalue.AsSingleton(places))
        | "Shards" >> beam.GroupByKey()
        | "Write" >> beam.Map(_write_shard, beam.pvalue.AsSingleton(places), directory)
    )
    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "Finish"
        >> beam.Map(
            _finish, beam.pvalue.AsList(shards), beam.pvalue.AsSingleton(sums), config, tokenizer, sources, directory
        )
    )


def _inputs(config: Config) -> tuple[list[Input], list[dict[str, Any]]]:
    """The files of the corpus in order, and its sources for the metadata."""
    corpus = config.corpus
    if corpus.files:
        sizes = _text_files(corpus.files)
        inputs = [Input(place, path, "text") for place, path in enumerate(sizes)]
        return inputs, [{"file": path, "bytes": size} for path, size in sizes.items()]
    if corpus.name == "docstrings":
        raise UserError("config.corpus.name is 'docstrings', which are read by one machine; give --config.corpus.files")
    paths, kind = tfds_source.record_files(corpus.name, corpus.tfds_data_dir)
    return [Input(place, path, kind) for place, path in enumerate(paths)], [{"name": corpus.name}]


def _text_files(globs: str) -> dict[str, int]:
    """path -> bytes of the files that comma-separated globs match, in order of name."""
    patterns = [pattern for part in globs.split(",") if (pattern := part.strip())]
    remote = [pattern for pattern in patterns if "://" in pattern]
    local = [pattern for pattern in patterns if "://" not in pattern]
    sizes = {str(path): path.stat().st_size for path in find_files(",".join(local))} if local or not remote else {}
    for pattern, match in zip(remote, FileSystems.match(remote), strict=True):
        if not match.metadata_list:
            raise UserError(f"config.corpus.files: {pattern!r} matches no file")
        sizes.update({found.path: found.size_in_bytes for found in match.metadata_list})
    return dict(sorted(sizes.items()))


def _read(file: Input, document_break: str, held_out: float) -> Iterator[Any]:
    """((the file's place, the task's), documents as `worker_pool.encode_documents` takes them)."""
    for number, task in enumerate(building.make_tasks(_documents(file, document_break), held_out, [])):
        yield (file.place, number), task


def _documents(file: Input, document_break: str) -> Iterator[Document]:
    if file.kind == "tfrecord":
        with FileSystems.open(file.path) as stream:
            yield from make_documents((_text(record), None) for record in _tfrecords(file.path, stream))
        return
    with tempfile.TemporaryDirectory() as aside:
        path = _local(file.path, Path(aside))
        if file.kind == "array_record":
            yield from make_documents((_text(record), None) for record in _array_records(path))
            return
        try:
            yield from read_files([path], document_break)
        except UserError as error:
            raise UserError(str(error).replace(str(path), file.path)) from error


def _local(path: str, aside: Path) -> Path:
    """The file itself, or where it is in a bucket a copy of it under its name."""
    if "://" not in path:
        return Path(path)
    copy = aside / path.rpartition("/")[2]
    with FileSystems.open(path, compression_type="uncompressed") as source, open(copy, "wb") as target:
        shutil.copyfileobj(source, target, 2**20)
    return copy


def _text(record: bytes) -> str:
    features = tf_example_pb2.Example.FromString(record).features.feature
    return features["text"].bytes_list.value[0].decode("utf-8", "replace")


def _tfrecords(path: str, stream: IO[bytes]) -> Iterator[bytes]:
    """The records of a TFRecord file: each has its length (uint64) and that one's checksum (4 bytes) before it, and its
    own checksum behind it."""
    while header := stream.read(12):
        size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
        record = stream.read(size + 4)
        if len(header) < 12 or len(record) < size + 4:
            raise UserError(f"{path} ends within a record; copy it again")
        yield record[:size]


def _array_records(path: Path) -> Iterator[bytes]:
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    count = reader.num_records()
    for start in range(0, count, _READ_AHEAD):
        yield from reader.read(range(start, min(start + _READ_AHEAD, count)))


class _Encode(beam.DoFn):
    """A task's documents to its blocks: (task, [(records, lengths) for each split]); tagged "sums", int64[6 + vocab]:
    documents, sentences and pieces of each split, and the counts of pieces in training."""

    def __init__(self, encoder: worker_pool.Encoder) -> None:
        self._encoder = encoder

    def setup(self) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Beam has its own threads and processes

    def process(self, element: Any) -> Iterator[Any]:
        task, documents = element
        encoded = worker_pool.encode_documents(self._encoder, documents)
        sides = [split == "held_out" for split in SPLITS]
        yield task, [(encoded.records[side], encoded.lengths[side]) for side in sides]
        sums = np.concatenate([*(encoded.counts[side] for side in sides), encoded.piece_counts])
        yield beam.pvalue.TaggedOutput("sums", sums)


class _Sum(beam.CombineFn):
    """The sum of int64[size] arrays."""

    def __init__(self, size: int) -> None:
        self._size = size

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(self._size, dtype=np.int64)

    def add_input(self, total: np.ndarray, value: np.ndarray) -> np.ndarray:
        return total + value

    def merge_accumulators(self, totals: Iterable[np.ndarray]) -> np.ndarray:
        return np.sum([self.create_accumulator(), *totals], axis=0)

    def extract_output(self, total: np.ndarray) -> np.ndarray:
        return total


def _task_number(task: tuple[int, int]) -> int:
    return (task[0] << 32) + task[1]


def _count(element: Any) -> tuple[int, ...]:
    """(the task's number, its blocks in each split)"""
    task, sides = element
    return _task_number(task), *(len(records) for records, _ in sides)


def _places(counts: list[tuple[int, ...]], shard_records: int) -> Places:
    table = np.array(sorted(counts), dtype=np.int64).reshape(-1, 1 + len(SPLITS))  # [tasks, 1 + splits]
    ends = np.cumsum(table[:, 1:], axis=0)
    return Places(table[:, 0], ends - table[:, 1:], table[:, 1:].sum(axis=0), shard_records)


def _place(element: Any, places: Places) -> Iterator[Any]:
    """((split, shard), (place in the shard, records, lengths)): a task's blocks, cut where a shard ends."""
    task, sides = element
    row = np.searchsorted(places.tasks, _task_number(task))
    for split, (records, lengths) in enumerate(sides):
        place, start = int(places.first[row, split]), 0
        while start < len(records):
            shard, inside = divmod(place + start, places.shard_records)
            stop = min(len(records), start + places.shard_records - inside)
            yield (split, shard), (inside, records[start:stop], lengths[start:stop])
            start = stop


def _write_shard(element: Any, places: Places, directory: str) -> tuple[tuple[int, int], Shard]:
    (split, shard), parts = element
    with tempfile.TemporaryDirectory() as aside:
        path = Path(aside) / "shard"
        writer = ShardWriter(path)
        for _, records, lengths in sorted(parts, key=lambda part: part[0]):
            writer.write(records, lengths)
        written = writer.close()
        shards = -(-int(places.blocks[split]) // places.shard_records)
        _put(path, f"{directory}/{building.shard_file(SPLITS[split], shard, shards)}")
    return (split, shard), written


def _finish(
    _: None,
    shards: list[tuple[tuple[int, int], Shard]],
    sums: np.ndarray,
    config: Config,
    tokenizer: Tokenizer,
    sources: list[dict[str, Any]],
    directory: str,
) -> None:
    """Writes what stands beside the shards; the metadata is the last of all files."""
    found = dict(shards)
    in_order = {split: [found[key] for key in sorted(found) if key[0] == i] for i, split in enumerate(SPLITS)}
    counts = {split: sums[3 * i : 3 * i + 3] for i, split in enumerate(SPLITS)}
    with tempfile.TemporaryDirectory() as aside:
        names = [building.shard_file(split, i, len(of)) for split, of in in_order.items() for i in range(len(of))]
        for name in names:  # TFDS looks for their names
            (Path(aside) / name).touch()
        building.write_metadata(config, tokenizer, Path(aside), sources, in_order, counts, sums[6:])
        for path in sorted(Path(aside).iterdir(), key=lambda path: path.name == METADATA_FILE):
            if path.name not in names:
                _put(path, f"{directory}/{path.name}")


def _put(path: Path, target: str) -> None:
    """Copies a file to `target`, where it appears whole; a task that ran twice writes the same bytes twice."""
    partial = f"{target}.{uuid.uuid4().hex}.partial"
    with open(path, "rb") as source, FileSystems.create(partial, compression_type="uncompressed") as sink:
        shutil.copyfileobj(source, sink, 2**20)
    if FileSystems.exists(target):
        FileSystems.delete([target])
    FileSystems.rename([partial], [target])


def _check_directory(directory: str) -> None:
    """Makes the directory, or removes what an earlier pipeline left in it."""
    if "://" not in directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
    found = [file.path for file in FileSystems.match([f"{directory}/*"])[0].metadata_list]
    names = {path: path.rpartition("/")[2] for path in found}
    if METADATA_FILE in names.values():
        raise UserError(f"{directory}: these blocks are complete; give another --data-dir, or delete them")
    others = [path for path, name in names.items() if not is_block_file(name)]
    if others:
        raise UserError(f"{directory} exists and holds other files ({others[0]}); give another --data-dir")
    if found:
        FileSystems.delete(found)


def _tokenizer(config: Config) -> Tokenizer:
    """The given vocabulary, put beside the blocks, or the one that is there."""
    directory = f"{config.data.dir.rstrip('/')}/tokenizer"
    given = building.tokenizer_from_file(config.tokenizer)
    with tempfile.TemporaryDirectory() as aside:
        there = Path(aside) / "there"
        there.mkdir()
        for name in _TOKENIZER_FILES:
            if FileSystems.exists(f"{directory}/{name}"):
                (there / name).write_bytes(FileSystems.open(f"{directory}/{name}").read())
        if any(there.iterdir()):
            found = load_tokenizer(there)
            if given and given.fingerprint != found.fingerprint:
                raise UserError(f"{directory}: not the vocabulary of {config.tokenizer.vocab_file}; delete it")
            return found
        if given is None:
            raise UserError(
                f"{directory} holds no vocabulary, and Beam trains none: name one with "
                "--config.tokenizer.vocab_file, or copy the tokenizer/ of a run there"
            )
        given.save(Path(aside) / "new")
        if "://" not in directory:
            Path(directory).mkdir(parents=True)
        for path in sorted((Path(aside) / "new").iterdir(), key=lambda path: path.name == _TOKENIZER_FILES[0]):
            _put(path, f"{directory}/{path.name}")
        return given
