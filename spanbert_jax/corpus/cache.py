"""Data directories in a bucket: copied from the host that built them, and to each host that reads them.

Invariant: blocks are read from a local copy, because array_record's reader takes local files alone. The copy gets its
name, the blocks' fingerprint, when it is whole, and is kept. Only one process of a host makes it. In a bucket the
metadata of the blocks is written last, so that half a copy is never taken for blocks.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from etils import epath

from spanbert_jax.corpus.blocks import METADATA_FILE, SPLITS, Blocks, file_digest, is_block_file, read_metadata
from spanbert_jax.errors import UserError
from spanbert_jax.files import disk_errors, locked, make_directory, new_directory
from spanbert_jax.text.tokenizer import METADATA_FILE as TOKENIZER_FILE
from spanbert_jax.text.tokenizer import Tokenizer, load_tokenizer

_AT_ONCE = 8  # files that are copied at the same time
_CHUNK = 2**22  # bytes
_REPORT_SECONDS = 0.5

CopyProgress = Callable[[float | None, str], None]  # (share done or None, the state in words)
Copy = tuple[epath.Path, epath.Path, int]  # from, to, bytes


def cache_directory(setting: str) -> Path:
    """The directory that holds the copies. setting: config.data.cache_dir, "" for ~/.cache/spanbert_jax."""
    return Path(setting or "~/.cache/spanbert_jax").expanduser()


def copy_of(data: epath.Path, cache: Path) -> Path:
    """The path that the local copy of a data directory has under `cache`, whether it was made or not."""
    return cache / read_metadata(data / "blocks").fingerprint


def fetch(data: epath.Path, cache: Path, report: CopyProgress) -> Path:
    """The local copy of a data directory (tokenizer/ and blocks/) under `cache`, made if it is not there.

    Where another process of this host is making the copy, this one waits. Raises UserError where the disk is too small,
    or where the copy is not whole.
    """
    metadata, target = read_metadata(data / "blocks"), copy_of(data, cache)
    with _locked(target, report):
        if target.is_dir():
            return target
        for left in cache.glob(f".{target.name}.*"):  # left by a process that was killed
            shutil.rmtree(left)
        with new_directory(target, "--config.data.cache_dir") as partial:
            copies = [copy for folder in ("tokenizer", "blocks") for copy in _files(data / folder, partial / folder)]
            needed, free = sum(size for *_, size in copies), shutil.disk_usage(cache).free
            if needed > free:
                raise UserError(
                    f"{cache}: the blocks in {data} take {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free; "
                    "name another disk with --config.data.cache_dir"
                )
            copy_all(copies, report)
            for split in SPLITS:
                Blocks(partial / "blocks", split, metadata)  # raises UserError where blocks are missing
            load_tokenizer(partial / "tokenizer")
    return target


def has_same_metadata(data: epath.Path, copy: Path) -> bool:
    """Whether the blocks' metadata in `copy` is that of `data`, byte for byte."""
    return (copy / "blocks" / METADATA_FILE).read_bytes() == (data / "blocks" / METADATA_FILE).read_bytes()


def fetch_again(data: epath.Path, copy: Path, names: Sequence[str], report: CopyProgress) -> None:
    """Copies the named files of the blocks anew, each over the damaged one in `copy` when it is sound.

    Raises UserError where a file in `data` is damaged too.
    """
    blocks, metadata = copy / "blocks", read_metadata(data / "blocks")
    with _locked(copy, report), tempfile.TemporaryDirectory(prefix=".again.", dir=copy) as aside:
        sources = [data / "blocks" / name for name in names]
        with disk_errors(blocks):
            copy_all([(file, epath.Path(aside) / file.name, file.stat().length) for file in sources], report)
        for name in names:
            if name in metadata.files and file_digest(Path(aside) / name) != metadata.files[name]:
                raise UserError(
                    f"{data / 'blocks' / name} is damaged: it is not as {METADATA_FILE} beside it describes the file; "
                    "put an undamaged copy in its place, or build in another directory with --config.data.dir"
                )
            (Path(aside) / name).replace(blocks / name)


def fetch_tokenizer(data: epath.Path) -> Tokenizer:
    """The tokenizer of a data directory."""
    with tempfile.TemporaryDirectory() as aside:
        copy_all(_files(data / "tokenizer", Path(aside)), lambda *_: None)
        return load_tokenizer(Path(aside))


@contextlib.contextmanager
def staging(data: epath.Path, cache: Path, report: CopyProgress) -> Iterator[Path]:
    """The directory in which this host builds the data that `publish` then copies to `data`.

    The files of a stopped build are still there. Where another process of this host is building, this one waits.
    """
    directory = cache / f"building-{hashlib.sha256(os.fspath(data).encode()).hexdigest()[:16]}"
    with _locked(directory, report):
        yield directory


def publish(built: Path, data: epath.Path, cache: Path, report: CopyProgress) -> None:
    """Copies a local data directory to the bucket, and makes it this host's copy.

    Raises UserError where `data` holds files that are not of blocks, or another vocabulary.
    """
    check_free(data, load_tokenizer(built / "tokenizer"))
    for file in _listed(data / "blocks"):
        file.unlink()
    copies = [copy for folder in ("tokenizer", "blocks") for copy in _files(built / folder, data / folder)]
    last = [copy for copy in copies if copy[0].name in (METADATA_FILE, TOKENIZER_FILE)]
    copy_all([copy for copy in copies if copy not in last], report)
    for copy in last:  # the tokenizer's metadata, then that of the blocks
        copy_all([copy], lambda *_: None)
    target = cache / read_metadata(built / "blocks").fingerprint
    with _locked(target, report):
        if target.is_dir():
            shutil.rmtree(built)
        else:
            built.rename(target)


def check_free(data: epath.Path, tokenizer: Tokenizer) -> None:
    """Raises UserError where `data` holds files that are not of blocks, or another vocabulary."""
    others = [file for file in _listed(data / "blocks") if not is_block_file(file.name)]
    if others:
        raise UserError(f"{others[0]} is none of ours; delete it, or give another directory with --config.data.dir")
    there = (data / "tokenizer" / TOKENIZER_FILE).exists()
    if there and fetch_tokenizer(data).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{data / 'tokenizer'} holds another vocabulary than this configuration's; delete it, or give another "
            "directory with --config.data.dir"
        )


def _listed(folder: epath.Path) -> list[epath.Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _files(source: Path | epath.Path, target: Path | epath.Path) -> list[Copy]:
    source, target = epath.Path(source), epath.Path(target)
    return [(file, target / file.name, file.stat().length) for file in sorted(source.iterdir()) if not file.is_dir()]


def copy_all(copies: Sequence[Copy], report: CopyProgress) -> None:
    """Copies files, several at a time, and checks their sizes."""
    total, done, lock = sum(size for *_, size in copies), 0, threading.Lock()

    def copy(job: Copy) -> None:
        nonlocal done
        source, target, size = job
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)
                with lock:
                    done += len(chunk)
        if target.stat().length != size:
            raise UserError(f"{target} has {target.stat().length:,} bytes of the {size:,} of {source}; start again")

    for folder in {target.parent for _, target, _ in copies}:
        folder.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs = [pool.submit(copy, job) for job in copies]
        try:
            while concurrent.futures.wait(jobs, _REPORT_SECONDS, concurrent.futures.FIRST_EXCEPTION).not_done:
                if any(job.done() and job.exception() for job in jobs):
                    break
                report(done / max(total, 1), f"{done / 1e9:,.2f} of {total / 1e9:,.2f} GB")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for job in jobs:
        if not job.cancelled():
            job.result()
    report(1.0, f"{total / 1e9:,.2f} GB")


@contextlib.contextmanager
def _locked(directory: Path, report: CopyProgress) -> Iterator[None]:
    """Lets one process of this host in at a time, for a directory; others wait, and report that they wait."""
    make_directory(directory.parent, "--config.data.cache_dir")
    with locked(
        f"{directory}.lock", lambda: report(None, "waiting for another process of this machine that does the same")
    ):
        yield
