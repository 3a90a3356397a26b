"""Files and directories: where they may lie, and how they come into being.

Invariant: a file or directory has its own name only when it is whole. It is written aside and then renamed.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from etils import epath

from spanbert_jax.errors import UserError

_CLIENTS = ("tensorflow", "gcsfs", "google", "aiohttp")  # whose errors are a bucket's; all but OSErrors are their own
_AnyPath = TypeVar("_AnyPath", Path, epath.Path)


@contextlib.contextmanager
def written_aside(path: _AnyPath) -> Iterator[_AnyPath]:
    """A path beside `path` to write a file to, which takes the name `path` when the block ends without an error, and
    else disappears. The name begins with a dot, so that no pattern such as *.txt takes the unfinished file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket, where nothing can be appended to and no directory renamed."""
    return "://" in os.fspath(path)


def absolute(path: epath.Path) -> epath.Path:
    """The path from the root; `epath.Path.resolve` takes gs:// for a relative one."""
    return path if is_remote(path) else path.resolve()


@contextlib.contextmanager
def bucket_errors(path: str | os.PathLike[str], flag: str) -> Iterator[None]:
    """Turns what goes wrong between here and a bucket into a UserError that names the flag to change; other errors, and
    all where `path` is no bucket's, pass."""
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
    """Makes a directory, or checks that it may be written to; raises UserError, naming the flag to change."""
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
    """A directory to write into that takes the name `path` when the block ends without an error, and else disappears.

    Raises UserError, naming the flag to change, where `path` is there and not empty, or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists and is not an empty directory; choose another {flag}, or remove it")
    make_directory(path.parent, flag)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    aside.chmod(0o755)  # mkdtemp's is for its owner alone
    try:
        yield aside
        aside.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
