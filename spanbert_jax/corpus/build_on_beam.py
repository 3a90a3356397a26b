"""A corpus to blocks on Apache Beam: on one machine, or on many by Dataflow, Flink or Spark.

Invariant: the directory has the bytes that `build_blocks` would write, file by file, whatever the runner and the number
of machines. Its metadata is written last, so that files of a stopped pipeline are never taken for blocks.

The corpus is cut into files, and files into tasks of documents. Any worker makes the blocks of any task. The numbers of
blocks in all tasks, added up in the corpus's order, give every block its place, and so its shard. Workers need neither
TensorFlow nor JAX, only requirements-beam.txt and this package.
"""

import itertools
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from spanbert_jax.config import Config, CorpusConfig
from spanbert_jax.corpus import build as building
from spanbert_jax.corpus.beam_inputs import Input, find_inputs, read_input
from spanbert_jax.corpus.blocks import METADATA_FILE, SPLITS, is_block_file, read_metadata
from spanbert_jax.corpus.shards import Shard, ShardWriter, shard_file
from spanbert_jax.corpus.sources import check_sides
from spanbert_jax.corpus.summary import describe_blocks
from spanbert_jax.corpus.vocabulary_fit import check_fit
from spanbert_jax.errors import UserError
from spanbert_jax.text.block_making import BlockMaker
from spanbert_jax.text.documents import Document
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.tokenizer import METADATA_FILE as TOKENIZER_METADATA
from spanbert_jax.text.tokenizer import VOCABULARY_FILES, Tokenizer, load_tokenizer

_TOKENIZER_FILES = (TOKENIZER_METADATA, *sorted(set(VOCABULARY_FILES.values())))
_LOCAL_RUNNERS = ("", "DirectRunner", "FnApiRunner")
_SAMPLE_CHARS = 400_000  # of text, on which the vocabulary is tried


class Places(NamedTuple):
    """The places of the blocks of every task."""

    tasks: np.ndarray  # int64[tasks], ascending: 2**32 x the file's place + the task's place in the file
    first: np.ndarray  # int64[tasks, splits], the place of a task's first block in its split
    blocks: np.ndarray  # int64[splits], the number of blocks of all tasks
    shard_records: int


def build_with_beam(config: Config, arguments: list[str]) -> list[str]:
    """Builds the blocks of `config` in <config.data.dir>/blocks by Beam, which gets the `arguments` (--runner=...).

    Returns the lines that describe the blocks. The vocabulary is config.tokenizer.vocab_file, or the one in
    <config.data.dir>/tokenizer.
    Raises UserError where there is no vocabulary or it does not fit the text, where the corpus cannot be read or has
    too few documents, and where the directory holds complete blocks or other files.
    """
    directory = f"{config.data.dir.rstrip('/')}/blocks"
    _check_directory(directory)
    tokenizer = _tokenizer(config)
    inputs, sources = find_inputs(config.corpus)
    _check_sample(config, tokenizer, inputs)
    options = PipelineOptions(arguments)
    name = options.view_as(StandardOptions).runner or ""
    # DirectRunner would first try to download a server and run the pipeline there.
    runner = FnApiRunner() if name in _LOCAL_RUNNERS else name
    if name in _LOCAL_RUNNERS:
        logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)  # Beam logs errors that it raises too
    pipeline = beam.Pipeline(runner=runner, options=options)
    _describe(pipeline, config, tokenizer, inputs, sources, directory)
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # of a worker: a runner may keep nothing but the text of its error
        text = f"UserError: {error}" if isinstance(error, UserError) else str(error)
        found = re.search(r"UserError: (.*?)( \[while running |\\n|\n|$)", text)
        if found is None:
            raise
        raise UserError(found[1]) from error
    with tempfile.TemporaryDirectory() as aside:
        (Path(aside) / METADATA_FILE).write_bytes(FileSystems.open(f"{directory}/{METADATA_FILE}").read())
        return describe_blocks(config, tokenizer, read_metadata(Path(aside)))


def _check_sample(config: Config, tokenizer: Tokenizer, inputs: list[Input]) -> None:
    """Raises UserError, before any machine starts, where the first documents show that the vocabulary does not fit,
    where no document would be held out, or where a file of spans does not fit the corpus."""

    def read() -> Iterator[Document]:
        for file in inputs:
            yield from read_input(file, config.corpus.document_break, [])

    documents = read()
    sample: list[Document] = []
    while sum(len(document.text) for document in sample) < _SAMPLE_CHARS and (document := next(documents, None)):
        sample.append(document)
    check_sides(config.corpus, itertools.chain(sample, documents))
    maker = building.block_maker(config, tokenizer)
    if maker.finder is not None:
        maker.finder.check_documents(lambda: (document.text for document in read()))
    counts = [maker(task).piece_counts for task in building.make_tasks(sample, config.corpus, [])]
    check_fit(config, tokenizer, np.sum(counts, axis=0))


def _describe(
    pipeline: beam.Pipeline,
    config: Config,
    tokenizer: Tokenizer,
    inputs: list[Input],
    sources: list[dict[str, Any]],
    directory: str,
) -> None:
    """Adds the steps to a pipeline."""
    read = (
        pipeline
        | "Files" >> beam.Create(inputs)
        | "SpreadFiles" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(_Read(config.corpus)).with_outputs("contents", main="tasks")
    )
    maker = building.block_maker(config, tokenizer)
    made = (
        read.tasks
        | "SpreadTasks" >> beam.Reshuffle()
        | "MakeBlocks" >> beam.ParDo(_MakeBlocks(maker)).with_outputs("sums", main="blocks")
    )
    places = (
        made.blocks
        | "Count" >> beam.Map(_count)
        | "AllCounts" >> beam.combiners.ToList()
        | "Places" >> beam.Map(_places, building.SHARD_RECORDS)
    )
    sums = made.sums | "Sum" >> beam.CombineGlobally(_Sum(6 + tokenizer.vocab_size + maker.span_counters))
    shards = (
        made.blocks
        | "Place" >> beam.FlatMap(_place, beam.pvalue.AsSingleton(places))
        | "Shards" >> beam.GroupByKey()
        | "Write" >> beam.Map(_write_shard, beam.pvalue.AsSingleton(places), directory)
    )
    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "Finish"
        >> beam.Map(
            _finish,
            beam.pvalue.AsList(shards),
            beam.pvalue.AsSingleton(sums),
            beam.pvalue.AsList(read.contents),
            config,
            tokenizer,
            maker.finder,
            sources,
            directory,
        )
    )


class _Read(beam.DoFn):
    """From a file to its tasks: ((the file's place, the task's place), documents as `BlockMaker` takes them).

    The tag "contents" has, for text files: (the file's place, sha256 in hex of its bytes).
    """

    def __init__(self, corpus: CorpusConfig) -> None:
        self._corpus = corpus

    def process(self, file: Input) -> Iterator[Any]:
        contents: list[str] = []
        documents = read_input(file, self._corpus.document_break, contents)
        for number, task in enumerate(building.make_tasks(documents, self._corpus, [])):
            yield (file.place, number), task
        for digest in contents:
            yield beam.pvalue.TaggedOutput("contents", (file.place, digest))


class _MakeBlocks(beam.DoFn):
    """From a task's documents to its blocks: (task, [(records, lengths) for each split]).

    The tag "sums" has int64[6 + vocab + span_counters]: documents, sentences and pieces of each split, the number of
    times that each piece occurs in training, and `MadeBlocks.span_counts`.
    """

    def __init__(self, maker: BlockMaker) -> None:
        self._maker = maker

    def setup(self) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Beam has its own threads and processes

    def process(self, element: Any) -> Iterator[Any]:
        task, documents = element
        made = self._maker(documents)
        sides = [split == "held_out" for split in SPLITS]
        yield task, [(made.records[side], made.lengths[side]) for side in sides]
        sums = np.concatenate([*(made.counts[side] for side in sides), made.piece_counts, made.span_counts])
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
    """(the task's number, the number of its blocks in each split)"""
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
        _put(path, f"{directory}/{shard_file(SPLITS[split], shard, shards)}")
    return (split, shard), written


def _finish(
    _: None,
    shards: list[tuple[tuple[int, int], Shard]],
    sums: np.ndarray,
    contents: list[tuple[int, str]],
    config: Config,
    tokenizer: Tokenizer,
    finder: SpanFinder | None,
    sources: list[dict[str, Any]],
    directory: str,
) -> None:
    """Writes the files that stand beside the shards; the metadata is the last of all files."""
    found, hashes = dict(shards), dict(contents)
    sources = [source | {"sha256": hashes[place]} if hashes else source for place, source in enumerate(sources)]
    in_order = {split: [found[key] for key in sorted(found) if key[0] == i] for i, split in enumerate(SPLITS)}
    counts = {split: sums[3 * i : 3 * i + 3] for i, split in enumerate(SPLITS)}
    with tempfile.TemporaryDirectory() as aside:
        names = [shard_file(split, i, len(of)) for split, of in in_order.items() for i in range(len(of))]
        for name in names:  # TFDS checks that files of these names are there
            (Path(aside) / name).touch()
        piece_counts, span_counts = np.split(sums[6:], [tokenizer.vocab_size])
        spans = building.describe_spans(finder, span_counts)
        building.write_metadata(config, tokenizer, Path(aside), sources, in_order, counts, piece_counts, spans)
        for path in sorted(Path(aside).iterdir(), key=lambda path: path.name == METADATA_FILE):
            if path.name not in names:
                _put(path, f"{directory}/{path.name}")


def _put(path: Path, target: str) -> None:
    """Copies a file to `target`, where it appears whole. Where Beam runs a task twice, the second copy has the same
    bytes."""
    partial = f"{target}.{uuid.uuid4().hex}.partial"
    with open(path, "rb") as source, FileSystems.create(partial, compression_type="uncompressed") as sink:
        shutil.copyfileobj(source, sink, 2**20)
    if FileSystems.exists(target):
        FileSystems.delete([target])
    FileSystems.rename([partial], [target])


def _check_directory(directory: str) -> None:
    """Makes the directory, or removes the files that a stopped pipeline left in it.

    Raises UserError where it holds complete blocks or other files.
    """
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
    """The tokenizer beside the blocks; where there is none, that of config.tokenizer.vocab_file, which is copied there.

    Raises UserError where there is neither, or where the two differ.
    """
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
            Path(directory).mkdir(parents=True, exist_ok=True)
        for path in sorted((Path(aside) / "new").iterdir(), key=lambda path: path.name == _TOKENIZER_FILES[0]):
            _put(path, f"{directory}/{path.name}")
        return given
