"""How files and directories are made, and what may go wrong: no rights, a full disk, another process, a bucket.

Invariant: a file or directory has its own name only when it is whole. It is written aside and then renamed. A full
disk ends in a UserError with the path and the free space, never with half a file.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from spanbert_jax.errors import UserError

_LONGEST_NAME = 255  # bytes; no file system of Linux takes more
_CLIENTS = ("tensorflow", "gcsfs", "google", "aiohttp")  # clients of buckets, whose errors need not be OSErrors
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, over the limit of a file's size
DIGEST = "sha256"  # the field of a JSON file that holds the digest of the file's other fields
_AnyPath = TypeVar("_AnyPath", Path, epath.Path)


def full_disk(error: BaseException, path: str | os.PathLike[str] = "") -> str:
    """One line about an error that a full disk, a used-up quota or a limit on file sizes caused; "" for other errors.

    path: the path in the line; by default the file that the error names. Libraries in C++ and Rust raise errors of
    their own, which are known by the system's words in their text.
    """
    cause: BaseException | None = error
    while cause:
        number = cause.errno if isinstance(cause, OSError) else None
        found = number if number in _FULL else next((n for n in _FULL if os.strerror(n) in str(cause)), None)
        if found:
            named = os.fspath(path) or str(getattr(cause, "filename", None) or "")
            why = f"({os.strerror(found)}{_free(named)}); make room and start again"
            return f"{named or 'a file or standard output'}: cannot be written {why}"
        cause = cause.__cause__ or cause.__context__
    return ""


def _free(path: str) -> str:
    if is_remote(path) or not path:
        return ""
    there = next(folder for folder in Path(path).absolute().parents if folder.exists())
    return f"; {shutil.disk_usage(there).free / 1e9:,.3f} GB are free in {there}"


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an error of a full disk into a UserError that names `path`; other errors pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if line := full_disk(error, path):
            raise UserError(line) from error
        raise


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], busy: Callable[[], None]) -> Iterator[None]:
    """Lets one process of this machine at a time into the block. `path` is the lock file, which is not deleted.

    busy: called where another process is inside, before this one waits for it. If `busy` raises an exception, this one
    does not wait. Raises OSError where the file cannot be made.
    """
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def written_aside(path: _AnyPath) -> Iterator[_AnyPath]:
    """A path beside `path` to write a file to. The file is renamed to `path` when the block ends without an error, and
    deleted otherwise.

    The file's first name begins with a dot, so that no pattern such as *.txt matches the unfinished file. Raises
    UserError where the disk is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield aside
            aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def is_plain_name(name: object) -> bool:
    """Whether a name that a file gives is that of a file in the same directory, and no path to another place."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode(errors="surrogatepass")) <= _LONGEST_NAME


def json_digest(fields: Mapping[str, Any]) -> str:
    """sha256, in hex, of a JSON object's fields, whatever their order, without the field `DIGEST` itself."""
    plain = json.loads(json.dumps({name: value for name, value in fields.items() if name != DIGEST}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def has_its_digest(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object's `DIGEST` is that of its other fields. True where it has none, as in files of earlier
    versions."""
    return DIGEST not in fields or bool(fields[DIGEST] == json_digest(fields))


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket, where nothing can be appended to and no directory renamed."""
    return "://" in os.fspath(path)


def absolute(path: epath.Path) -> epath.Path:
    """The absolute path. (`epath.Path.resolve` alone would take a gs:// path for a relative one.)"""
    return path if is_remote(path) else path.resolve()


@contextlib.contextmanager
def bucket_errors(path: str | os.PathLike[str], flag: str) -> Iterator[None]:
    """Turns errors of a bucket, and of the way to it, into a UserError that names the flag to change.

    Other errors pass, and so do all errors where `path` is in no bucket. Raises UserError for other buckets than gs://.
    """
    place = os.fspath(path)
    if is_remote(place) and not place.startswith("gs://"):
        raise UserError(f"{place}: of all buckets only gs:// ones work; choose another directory with {flag}")
    try:
        yield
    except Exception as error:
        client = type(error).__module__.partition(".")[0]
        if not is_remote(place) or not (isinstance(error, OSError | ImportError) or client in _CLIENTS):
            raise
        raise UserError(
            f"{place}: cannot be read or written ({type(error).__name__}: {str(error).partition(chr(10))[0][:300]}); "
            f"check the bucket's name and this machine's rights, or choose another directory with {flag}"
        ) from error


def make_directory(path: os.PathLike[str], flag: str) -> None:
    """Makes a directory, or checks that it may be written to.

    Raises UserError, naming the flag to change, where neither is possible, and for a path in a bucket.
    """
    if is_remote(path):
        raise UserError(f"{os.fspath(path)}: only mounted directories work (NFS, gcsfuse); choose one with {flag}")
    try:
        os.makedirs(path, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{os.fspath(path)}: cannot write there ({error.strerror}); choose another directory with {flag}"
        ) from error


@contextlib.contextmanager
def new_directory(path: Path, flag: str) -> Iterator[Path]:
    """A directory to write into. It is renamed to `path` when the block ends without an error, and deleted otherwise.

    Raises UserError, naming the flag to change, where `path` is there and not empty, or cannot be made; and where the
    disk is full.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists and is not an empty directory; choose another {flag}, or remove it")
    make_directory(path.parent, flag)
    with disk_errors(path):
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with disk_errors(path):
            aside.chmod(0o755)  # mkdtemp makes a directory that only its owner may enter
            yield aside
            aside.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def move_directory(source: epath.Path, target: epath.Path, mark: str) -> None:
    """Renames a directory. In a bucket, where none can be renamed, copies its files and deletes them afterwards.

    mark: the file whose presence says, in a bucket, that a directory is whole. This file is copied first and deleted
    first. Whenever the move stops, one of the two directories therefore has all files and the mark, and only the old
    one can lack the mark. Raises OSError, or an error of the bucket's client.
    """
    if not is_remote(source):
        source.rename(target)
        return
    for file in sorted(_files_in(source), key=lambda file: file.name != mark):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        file.copy(copy)
    (source / mark).unlink()
    source.rmtree()


def _files_in(directory: epath.Path) -> Iterator[epath.Path]:
    for child in directory.iterdir():
        if child.is_dir():
            yield from _files_in(child)
        else:
            yield child
