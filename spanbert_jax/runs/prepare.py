"""Finds a run's vocabulary and blocks where an earlier start left them, or makes them.

Invariant: vocabulary and blocks are reused only for the text and the settings that they were made from, and only where
every byte is the one that was written. Both appear under their names when they are complete. With several processes,
process 0 does the work; each process makes and verifies its host's copy of blocks in a bucket.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.corpus import blocks as block_data
from spanbert_jax.corpus import build as building
from spanbert_jax.corpus import cache as block_cache
from spanbert_jax.corpus.cache import cache_directory
from spanbert_jax.corpus.masking import check_words
from spanbert_jax.corpus.sources import changed_sources, check_documents
from spanbert_jax.corpus.summary import describe_blocks
from spanbert_jax.corpus.units import check_kinds
from spanbert_jax.errors import UserError
from spanbert_jax.files import bucket_errors, is_remote, locked, make_directory, new_directory, written_aside
from spanbert_jax.runs.start_from import StartingWeights
from spanbert_jax.text import tokenizer as tokenizers
from spanbert_jax.text.documents import match_files
from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.progress import Stage
from spanbert_jax.training.together import together

_NOTE = "made_from.json"
_SECOND_OF_HASHING = 2**30  # bytes


def prepare(config: Config, workdir: Path | epath.Path, start: StartingWeights) -> tuple[Tokenizer, Path]:
    """Finds or makes the tokenizer and the blocks; returns (the tokenizer, the directory of both).

    For a directory in a bucket, the returned one is this host's copy. Where the text has changed since the blocks were
    built, a run that has a checkpoint goes on with these blocks and prints a warning.

    Raises UserError where the text cannot be read, or where tokenizer or blocks exist that were made for another
    configuration or from other text. If one process fails, every other process raises UserError too.
    """
    data = data_directory(config, workdir)
    cache = cache_directory(config.data.cache_dir)

    def make() -> None:
        resumed = _has_checkpoint(epath.Path(workdir))
        if is_remote(data):
            _prepare_remote(config, data, cache, resumed, start)
        else:
            _prepare(config, Path(data), resumed, start)

    def copy() -> Path:
        if not is_remote(data):
            return Path(data)
        with bucket_errors(data, "--config.data.dir"):
            there = block_cache.copy_of(data, cache)
            if not there.is_dir():
                with Stage(f"Copying {data} to {cache}") as stage:
                    block_cache.fetch(data, cache, stage.update)
            damaged = _damaged(there / "blocks", block_data.read_metadata(data / "blocks"))
            if not block_cache.has_same_metadata(data, there):
                damaged.append(block_data.METADATA_FILE)
            if damaged:
                print(f"warning: {_describe(there / 'blocks', damaged)}; copied again from {data}", file=sys.stderr)
                with Stage(f"Copying {len(damaged)} files of {data}") as stage:
                    block_cache.fetch_again(data, there, damaged, stage.update)
            return there

    task, first = "prepare the data", jax.process_index() == 0
    together(task, make, first)
    local = together(task, copy)
    together(task, lambda: _copy_tokenizer(local / "tokenizer", epath.Path(workdir) / "tokenizer"), first)
    return tokenizers.load_tokenizer(local / "tokenizer"), local


def data_directory(config: Config, workdir: Path | epath.Path) -> epath.Path:
    """The directory of a run's vocabulary and blocks."""
    return epath.Path(config.data.dir) if config.data.dir else epath.Path(workdir) / "data"


def _has_checkpoint(workdir: epath.Path) -> bool:
    checkpoints = workdir / "checkpoints"
    with bucket_errors(workdir, "--workdir"):
        return checkpoints.is_dir() and any(path.name.isdecimal() for path in checkpoints.iterdir())


def _prepare(config: Config, data: Path, resumed: bool, start: StartingWeights) -> None:
    if not block_data.is_built(data / "blocks"):
        make_directory(data, "--config.data.dir")
        with _making_alone(data):
            if not block_data.is_built(data / "blocks"):
                _make(config, data, start)
                return
    tokenizer = tokenizers.load_tokenizer(data / "tokenizer")
    _check(config, tokenizer, data, resumed, start)


@contextlib.contextmanager
def _making_alone(data: Path) -> Iterator[None]:
    """Lets one process at a time make vocabulary and blocks in a directory. Raises UserError where another one is at
    it, a run or tools/show_masking.py, which might otherwise lose its vocabulary to this one."""

    def busy() -> None:
        raise UserError(
            f"{data}: another run makes the vocabulary and the blocks there; wait for it, or give another "
            "--config.data.dir or --workdir"
        )

    with locked(data / "lock", busy):
        yield


def _make(config: Config, data: Path, start: StartingWeights) -> None:
    _check_spans(config)
    check_documents(config.corpus)
    tokenizer = _make_tokenizer(config, data / "tokenizer", start)
    check_words(config.masking, tokenizer)  # before hours of building
    with Stage("Building blocks") as stage:
        building.build_blocks(config, tokenizer, data / "blocks", _reporter(stage))
    for line in describe_blocks(config, tokenizer, block_data.read_metadata(data / "blocks")):
        print(line)


def _check_spans(config: Config) -> None:
    """Raises UserError, before hours of building, where a rule for spans cannot be used or finds no wanted kind."""
    finder = building.span_finder(config.corpus)
    check_kinds(config, finder.kinds if finder else ())


def _prepare_remote(config: Config, data: epath.Path, cache: Path, resumed: bool, start: StartingWeights) -> None:
    """Checks the blocks in the bucket, or builds them on this host's disk and copies them there."""
    with (
        bucket_errors(data, "--config.data.dir"),
        block_cache.staging(data, cache, lambda _, words: print(f"Preparing {data}: {words}")) as local,
    ):
        if block_data.is_built(data / "blocks"):
            _check(config, block_cache.fetch_tokenizer(data), data, resumed, start)
            return
        make_directory(local, "--config.data.cache_dir")
        _check_spans(config)
        check_documents(config.corpus)
        block_cache.check_free(data, _make_tokenizer(config, local / "tokenizer", start))
        _prepare(config, local, resumed, start)
        with Stage(f"Copying {local} to {data}") as stage:
            block_cache.publish(local, data, cache, stage.update)


def _check(
    config: Config, tokenizer: Tokenizer, data: Path | epath.Path, resumed: bool, start: StartingWeights
) -> None:
    _check_tokenizer(config, tokenizer, data / "tokenizer", start)
    metadata = _read_metadata(config, tokenizer, data / "blocks")
    block_data.check_blocks(metadata, config, tokenizer)
    check_kinds(config, metadata.kinds)
    # The note stands beside the vocabulary before the text is read for the blocks.
    marks = (epath.Path(data / "tokenizer" / _NOTE), epath.Path(data / "blocks" / block_data.METADATA_FILE))
    read_at = min(mark.stat().mtime for mark in marks if mark.exists())
    changes = changed_sources(metadata.sources, config.corpus, read_at)
    if not is_remote(data):
        _check_files(config, tokenizer, Path(data) / "blocks", metadata, changes)
    if not changes:
        return
    found = f"{data}/blocks: since these blocks were built, {changes}"
    if resumed:
        print(f"warning: {found}; the run goes on with the old text. For the new text, choose another --workdir")
    else:
        where = "--config.data.dir" if config.data.dir else "--workdir"
        raise UserError(f"{found}; put the files back as they were, or choose another {where} to build new blocks")


def _read_metadata(config: Config, tokenizer: Tokenizer, directory: Path | epath.Path) -> block_data.Metadata:
    """The metadata of the blocks. Where it is damaged, on a disk, it is built again. Raises UserError where that gives
    other blocks than those that are there."""
    try:
        return block_data.read_metadata(directory)
    except block_data.DamagedMetadata as error:
        if is_remote(directory):
            raise
        found = error.found
    _build_again(config, found, "", functools.partial(building.rebuild_metadata, config, tokenizer, Path(directory)))
    return block_data.read_metadata(directory)


def _check_files(
    config: Config, tokenizer: Tokenizer, directory: Path, metadata: block_data.Metadata, changes: str
) -> None:
    """Verifies the blocks, and builds damaged files again. changes: how the text has changed since the blocks were
    built. Raises UserError where a file is damaged and its text is gone or has changed."""
    if not metadata.files:
        block_data.check_records(directory, metadata)
        return
    damaged = _damaged(directory, metadata)
    if damaged:
        rebuild = functools.partial(building.rebuild_files, config, tokenizer, directory, damaged)
        _build_again(config, _describe(directory, damaged), changes, rebuild)


def _build_again(config: Config, found: str, changes: str, rebuild: Callable[[building.BuildProgress], None]) -> None:
    """Calls `rebuild` for the damage that `found` names, and prints a warning. changes: how the text has changed since
    the blocks were built, where that is known. Raises UserError where nothing can be built from the text."""
    try:
        if changes:
            raise UserError(f"since the blocks were built, {changes}")
        with Stage("Building damaged blocks again") as stage:
            rebuild(_reporter(stage))
    except UserError as error:
        raise UserError(
            f"{found}, and cannot be built again ({error}); put undamaged copies in their place, or choose another "
            f"{'--config.data.dir' if config.data.dir else '--workdir'} to build new blocks"
        ) from error
    print(f"warning: {found}; built again from the text", file=sys.stderr)


def _damaged(directory: Path, metadata: block_data.Metadata) -> list[str]:
    """`damaged_files`, with a progress display where the files take more than about a second."""
    with Stage("Verifying blocks", enabled=metadata.num_bytes > _SECOND_OF_HASHING) as stage:
        return block_data.damaged_files(directory, metadata, stage.update)


def _describe(directory: Path, damaged: list[str]) -> str:
    others = f" and {len(damaged) - 1} more are" if len(damaged) > 1 else " is"
    return f"{directory}: {damaged[0]}{others} damaged (not as the build wrote the file)"


def _reporter(stage: Stage) -> Callable[[float | None, int, int], None]:
    """A function that shows the counts and speeds of documents and pieces in the progress display."""
    began = time.monotonic()

    def show(fraction: float | None, documents: int, pieces: int) -> None:
        seconds = max(time.monotonic() - began, 1e-3)
        parts = [f"{documents:,} documents ({documents / seconds:,.0f}/s)"]
        if pieces:
            parts.append(f"{pieces:,} pieces ({pieces / seconds:,.0f}/s)")
        stage.update(fraction, ", ".join(parts))

    return show


def _make_tokenizer(config: Config, directory: Path, start: StartingWeights) -> Tokenizer:
    """The tokenizer of an unfinished build, where that build had the same text and settings; otherwise a new one."""
    settings = {**dataclasses.asdict(config.tokenizer), "vocab_file": ""}
    given = given_tokenizer(config, start)
    paths = [(str(path), path.stat()) for path in match_files(config.corpus.files)]
    files = [(path, status.st_size, status.st_mtime_ns) for path, status in paths]
    made_from = json.dumps(
        [given.fingerprint] if given else [settings, block_data.source_fields(config.corpus), files], sort_keys=True
    )
    note = directory / _NOTE
    if note.exists() and note.read_bytes() == made_from.encode():
        return tokenizers.load_tokenizer(directory)
    if directory.exists() and not note.exists():
        raise UserError(
            f"{directory} exists and holds no tokenizer of this program; give another --config.data.dir, or move it"
        )
    tokenizer = given or _train_tokenizer(config)
    shutil.rmtree(directory, ignore_errors=True)
    with new_directory(directory, "--config.data.dir") as aside:
        tokenizer.save(aside)
        (aside / _NOTE).write_text(made_from)
    return tokenizer


def _check_tokenizer(config: Config, found: Tokenizer, directory: Path | epath.Path, start: StartingWeights) -> None:
    wanted = config.tokenizer
    elsewhere = "choose another --config.data.dir or --workdir"
    source = wanted.vocab_file or config.init_from
    if source:
        # On another machine the source may be missing. The directory has everything from it.
        given = given_tokenizer(config, start) if Path(source).exists() else None
        if given and found.fingerprint != given.fingerprint:
            raise UserError(f"{directory} holds another vocabulary than {source}; {elsewhere}")
    elif (found.kind, found.vocab_size) != (wanted.kind, wanted.vocab_size):
        raise UserError(
            f"{directory} holds a {found.kind} vocabulary of {found.vocab_size} pieces, and config.tokenizer asks for "
            f"{wanted.kind} with {wanted.vocab_size}; {elsewhere}"
        )


def given_tokenizer(config: Config, start: StartingWeights) -> Tokenizer | None:
    """The tokenizer of `config.init_from` or of `config.tokenizer.vocab_file`; None where one is to be trained."""
    if config.init_from:
        return start.open().tokenizer
    return building.tokenizer_from_file(config.tokenizer)


def _train_tokenizer(config: Config) -> Tokenizer:
    wanted = config.tokenizer
    with Stage("Sampling text for the vocabulary") as stage:
        sentences = list(building.sample_sentences(config, _reporter(stage)))
    # Not as a context manager, which would wait for SentencePiece after an interrupt.
    thread = concurrent.futures.ThreadPoolExecutor(1)
    with Stage(f"Training a vocabulary of {wanted.vocab_size:,} pieces") as stage:
        training = thread.submit(train_sentencepiece, sentences, wanted.kind, wanted.vocab_size)
        while not concurrent.futures.wait([training], timeout=0.5).done:
            stage.update(None, f"{len(sentences):,} sentences")
        return training.result()


def _copy_tokenizer(source: Path, target: epath.Path) -> None:
    described = (source / tokenizers.METADATA_FILE).read_bytes()
    with bucket_errors(target, "--workdir"):
        if (target / tokenizers.METADATA_FILE).exists():
            if (target / tokenizers.METADATA_FILE).read_bytes() != described:
                raise UserError(
                    f"{target} holds another vocabulary than the blocks in {source.parent}; choose another --workdir"
                )
            return
        target.mkdir(parents=True, exist_ok=True)
        files = [path for path in source.iterdir() if path.name != _NOTE]
        for path in sorted(files, key=lambda path: path.name == tokenizers.METADATA_FILE):  # last
            with written_aside(target / path.name) as aside:
                aside.write_bytes(path.read_bytes())
