"""A corpus to blocks on disk.

Invariant: the bytes that a build writes depend on the corpus, the tokenizer and the block length alone. They do not
depend on the number of processes, nor on how often a build was interrupted before. The directory gets its name when it
is complete.

The records are written directly, and TFDS's metadata beside them, because a GeneratorBasedBuilder would read the corpus
once for each split and serialise every block in one process.
"""

import contextlib
import dataclasses
import heapq
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from spanbert_jax.batch import specials
from spanbert_jax.config import Config, CorpusConfig, TokenizerConfig
from spanbert_jax.corpus.blocks import (
    DATASET,
    FORMAT,
    METADATA_FILE,
    SPLITS,
    Metadata,
    damaged_files,
    file_digest,
    lengths_file,
    make_fingerprint,
    read_metadata,
    source_fields,
)
from spanbert_jax.corpus.shards import Shard, SplitWriter, shard_file
from spanbert_jax.corpus.sources import read_corpus
from spanbert_jax.corpus.vocabulary_fit import SAMPLE_PIECES, check_fit
from spanbert_jax.errors import UserError
from spanbert_jax.files import DIGEST, disk_errors, json_digest, locked, make_directory
from spanbert_jax.text import worker_pool
from spanbert_jax.text.block_making import BlockMaker, MadeBlocks
from spanbert_jax.text.documents import Document, hash_text, in_share
from spanbert_jax.text.packing import FEATURE, SPANS_FEATURE
from spanbert_jax.text.pairs import PAIR, Task, check_sentences, pair_tasks
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.tokenizer import Tokenizer, sentencepiece_from_model, wordpiece_from_vocab
from spanbert_jax.text.tokenizer_files import tokenizer_json_from_file
from spanbert_jax.version import VERSION

SHARD_RECORDS = 262_144  # about 300 MB
TASK_CHARS = 400_000  # of the documents in one task of a process
REPORT_SECONDS = 0.5
_OTHER_BLOCKS = "the text, a library or this version of the program gives other blocks than those that are there"

BuildProgress = Callable[[float | None, int, int], None]  # (share of the corpus read or None, documents, pieces) so far


def sample_sentences(config: Config, report: BuildProgress = lambda *_: None) -> Iterator[str]:
    """Sentences to train a tokenizer on, from documents of `config.tokenizer.sample_bytes` in all, none held out.

    The sample is the documents with the largest hashes, as many as fit. So the sample and its order do not depend on
    the corpus's order. Memory is bounded by the sample. `report` gets 0 for the pieces.
    """
    corpus, limit = config.corpus, config.tokenizer.sample_bytes
    kept: list[tuple[bytes, bytes]] = []  # a heap of (hash, text): the smallest hash goes first
    dropped = (b"", b"")  # the largest entry that was dropped; smaller ones that come later are not taken
    size, documents = 0, 0
    clock = _Clock(report)
    with worker_pool.Workers(corpus.workers) as pool:
        for document in read_corpus(corpus, pool).documents:
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


def build_blocks(
    config: Config, tokenizer: Tokenizer, directory: Path, report: BuildProgress = lambda *_: None
) -> None:
    """Builds the blocks of `config` in `directory`, which appears when it is complete.

    `report` is called about twice a second. Raises UserError where the corpus cannot be read, is empty or has too few
    documents to hold any out, where `directory` holds something, where another process is building there, where the
    vocabulary does not fit the text, and where the disk is full.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty; give another with --config.data.dir, or delete it")
    with _built_aside(directory) as build:
        _write(config, tokenizer, build, report)
        (build / "lock").unlink()
        build.rename(directory)


def rebuild_files(
    config: Config, tokenizer: Tokenizer, directory: Path, names: Sequence[str], report: BuildProgress = lambda *_: None
) -> None:
    """Builds the named files of `Metadata.files` again and puts them into the place of damaged ones.

    The whole corpus is read and packed, as for a build, but of the shards only the named ones are written. Raises the
    UserErrors of `build_blocks`, and UserError where the build gives other blocks than the metadata describes; then no
    file is replaced.
    """
    old = read_metadata(directory)
    with _built_aside(directory) as build:
        _write(config, tokenizer, build, report, names)
        if read_metadata(build).fingerprint != old.fingerprint or any(
            file_digest(build / name) != old.files[name] for name in names
        ):
            raise UserError(_OTHER_BLOCKS)
        for name in names:
            (build / name).replace(directory / name)
        shutil.rmtree(build)


def rebuild_metadata(
    config: Config, tokenizer: Tokenizer, directory: Path, report: BuildProgress = lambda *_: None
) -> None:
    """Builds everything again beside `directory`, and takes from that build the metadata alone, in the place of damaged
    metadata.

    Raises the UserErrors of `build_blocks`, and UserError where a file of records or lengths in `directory` is not as
    the build gives it, since nothing says then which of both was meant; then no file is replaced.
    """
    with _built_aside(directory) as build:
        _write(config, tokenizer, build, report)
        if damaged_files(directory, read_metadata(build)):
            raise UserError(_OTHER_BLOCKS)
        (build / METADATA_FILE).replace(directory / METADATA_FILE)
        shutil.rmtree(build)


def _write(
    config: Config, tokenizer: Tokenizer, build: Path, report: BuildProgress, only: Sequence[str] | None = None
) -> None:
    """Writes the whole dataset to `build`. only: the names of the shards that are written; the others stay empty."""
    counts = {split: np.zeros(3, dtype=np.int64) for split in SPLITS}
    piece_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    maker = block_maker(config, tokenizer)
    span_counts = np.zeros(maker.span_counters, dtype=np.int64)
    writers = {split: SplitWriter(build, split, SHARD_RECORDS, only) for split in SPLITS}
    clock = _Clock(report)
    with worker_pool.Workers(config.corpus.workers, maker) as pool:
        if maker.finder:
            maker.finder.check_documents(lambda: (of.text for of in read_corpus(config.corpus, pool).documents))
        corpus = read_corpus(config.corpus, pool)
        fractions: list[float | None] = []
        made: MadeBlocks
        fits = False
        for made in pool.map(worker_pool.call, make_tasks(corpus.documents, config.corpus, fractions)):
            for split in SPLITS:
                held_out = split == "held_out"
                writers[split].write(made.records[held_out], made.lengths[held_out])
                counts[split] += made.counts[held_out]
            piece_counts += made.piece_counts
            span_counts += made.span_counts
            if not fits and piece_counts.sum() >= SAMPLE_PIECES:
                check_fit(config, tokenizer, piece_counts)
                _check_pairs(config.corpus, counts)
                fits = True
            clock.tick(fractions.pop(0), *_done(counts))
    shards = {split: writer.close() for split, writer in writers.items()}
    spans = describe_spans(maker.finder, span_counts)
    write_metadata(config, tokenizer, build, corpus.sources, shards, counts, piece_counts, spans)
    report(1.0, *_done(counts))


def tokenizer_from_file(wanted: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer of config.tokenizer.vocab_file, None where this is "". Raises UserError where it cannot be read."""
    if not wanted.vocab_file:
        return None
    if wanted.kind == "wordpiece":
        return wordpiece_from_vocab(wanted.vocab_file, wanted.lowercase)
    if wanted.kind == "tokenizer_json":
        return tokenizer_json_from_file(wanted.vocab_file)
    return sentencepiece_from_model(wanted.vocab_file)


def block_maker(config: Config, tokenizer: Tokenizer) -> BlockMaker:
    """The function that turns the documents of `config` into its blocks."""
    corpus, max_pieces = config.corpus, config.data.block_length - specials(config)
    return BlockMaker(tokenizer, corpus.language, corpus.sentences, max_pieces, span_finder(corpus), corpus.pairs)


def span_finder(corpus: CorpusConfig) -> SpanFinder | None:
    """The finder of config.corpus.spans, None where it is "". Raises UserError where a rule cannot be used."""
    return SpanFinder(corpus.spans) if corpus.spans else None


def describe_spans(finder: SpanFinder | None, span_counts: np.ndarray) -> dict[str, Any] | None:
    """`Metadata.spans`. span_counts: the sum of `MadeBlocks.span_counts`."""
    if finder is None:
        return None
    left_out, *counts = span_counts.tolist()
    return {
        "kinds": list(finder.kinds),
        "counts": dict(zip(finder.kinds, counts, strict=True)),
        "left_out": left_out,
        "files": finder.files,
        "made_by": finder.made_by,
    }


def _done(counts: dict[str, np.ndarray]) -> tuple[int, int]:
    """(documents, pieces) of all splits."""
    documents, _, pieces = np.sum(list(counts.values()), axis=0).tolist()
    return documents, pieces


def make_tasks(documents: Iterable[Document], corpus: CorpusConfig, fractions: list[float | None]) -> Iterator[Task]:
    """Groups documents into tasks for `BlockMaker`; appends to `fractions` the share of the corpus that is read at each
    task's end. Raises UserError as `pair_tasks`."""
    if corpus.pairs:
        yield from pair_tasks(documents, corpus.held_out, fractions, TASK_CHARS)
        return
    task: Task = []
    size = 0
    fraction = None
    for document in documents:
        task.append((document.text, in_share(document.key, corpus.held_out), document.key))
        size += len(document.text)
        fraction = document.fraction
        if size >= TASK_CHARS:
            fractions.append(fraction)
            yield task
            task, size = [], 0
    if task:
        fractions.append(fraction)
        yield task


def write_metadata(
    config: Config,
    tokenizer: Tokenizer,
    build: Path,
    sources: list[dict[str, Any]],
    shards: Mapping[str, Sequence[Shard]],
    counts: Mapping[str, np.ndarray],
    piece_counts: np.ndarray,
    spans: dict[str, Any] | None,
) -> None:
    """Writes all files that stand beside the shards, `METADATA_FILE` last.

    Args:
      sources: as `Metadata` has them.
      shards: split -> its shards, in order.
      counts: split -> int64[3]: documents, sentences, pieces.
      piece_counts: int64[vocab_size], of the train split.
      spans: as `Metadata` has them.

    Raises:
      UserError: where a split would have no blocks, or the vocabulary does not fit the text.
    """
    check_fit(config, tokenizer, piece_counts)
    _check_pairs(config.corpus, counts)
    blocks = {split: sum(len(shard.lengths) for shard in shards[split]) for split in SPLITS}
    _check_splits(config.corpus, blocks, {split: int(counts[split][0]) for split in SPLITS})
    _write_tfds_metadata(build, config.corpus, shards)
    for split in SPLITS:
        np.save(build / lengths_file(split), np.concatenate([shard.lengths for shard in shards[split]]))
    digests = {split: [shard.digest for shard in shards[split]] for split in SPLITS}
    files = {lengths_file(split): file_digest(build / lengths_file(split)) for split in SPLITS}
    for split in SPLITS:
        files |= {
            shard_file(split, number, len(shards[split])): shard.file for number, shard in enumerate(shards[split])
        }
    names = ("documents", "sentences", "pieces")
    metadata = Metadata(
        format=FORMAT,
        version=VERSION,
        tokenizer_fingerprint=tokenizer.fingerprint,
        block_length=config.data.block_length,
        corpus=source_fields(config.corpus),
        sources=sources,
        counts={
            split: dict(zip(names, map(int, counts[split]), strict=True)) | {"blocks": blocks[split]}
            for split in SPLITS
        },
        piece_counts=piece_counts,
        fingerprint=make_fingerprint(tokenizer.fingerprint, config.data.block_length, digests),
        spans=spans,
        files=files,
    )
    fields = dataclasses.asdict(metadata) | {"piece_counts": piece_counts.tolist()}
    if spans is None:
        del fields["spans"]
    fields[DIGEST] = json_digest(fields)
    (build / METADATA_FILE).write_text(json.dumps(fields) + "\n", encoding="utf-8")


def _check_pairs(corpus: CorpusConfig, counts: Mapping[str, np.ndarray]) -> None:
    if corpus.pairs:
        documents, sentences, _ = np.sum(list(counts.values()), axis=0).tolist()
        check_sentences(documents, sentences)


def _check_splits(corpus: CorpusConfig, blocks: dict[str, int], documents: dict[str, int]) -> None:
    total = sum(documents.values())
    if total == 0:
        raise UserError("the corpus holds no text; check config.corpus.files or config.corpus.name")
    for split in SPLITS:
        if blocks[split] == 0:
            raise UserError(
                f"the corpus has {total} documents, and config.corpus.held_out={corpus.held_out} puts "
                f"{documents['train']} of them into training and {documents['held_out']} into evaluation, so that "
                f"{split!r} has no blocks; give more documents, or another share"
                + (", or config.corpus.document_break='blank_line'" if corpus.document_break == "file" else "")
            )


def _write_tfds_metadata(build: Path, corpus: CorpusConfig, shards: Mapping[str, Sequence[Shard]]) -> None:
    features: dict[str, Any] = {FEATURE: tfds.features.Tensor(shape=(None,), dtype=np.int64)}
    if corpus.pairs:
        features[PAIR] = tfds.features.Tensor(shape=(2,), dtype=np.int64)
    if corpus.spans:
        features[SPANS_FEATURE] = tfds.features.Tensor(shape=(), dtype=np.object_)  # bytes
    template = tfds.core.ShardedFileTemplate(data_dir=build, dataset_name=DATASET, filetype_suffix="array_record")
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(shard.lengths) for shard in shards[split]],
            num_bytes=sum(shard.num_bytes for shard in shards[split]),
        )
        for split in SPLITS
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=build,
        features=tfds.features.FeaturesDict(features),
        split_infos=infos,
        filename_template=template,
        version="1.0.0",
        check_data=False,
    )


@contextlib.contextmanager
def _built_aside(directory: Path) -> Iterator[Path]:
    """An empty directory beside `directory`, which no other process uses. It is deleted after an error, and so are the
    files of a killed build before."""
    build = directory.with_name(directory.name + ".building")
    make_directory(build, "--config.data.dir")

    def busy() -> None:
        raise UserError(f"another process is building in {build}; wait for it, or give another --config.data.dir")

    with disk_errors(directory), locked(build / "lock", busy):
        for path in build.iterdir():
            if path.name != "lock":
                path.unlink()
        try:
            yield build
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise


class _Clock:
    """Calls `report` about twice a second, however often `tick` is called."""

    def __init__(self, report: BuildProgress) -> None:
        self._report, self._next = report, 0.0

    def tick(self, fraction: float | None, documents: int, pieces: int) -> None:
        if time.monotonic() >= self._next:
            self._report(fraction, documents, pieces)
            self._next = time.monotonic() + REPORT_SECONDS
