"""The directory of a run.

Invariant: all that a workdir holds was computed with the configuration in its config.json, up to the fields in
`config.MAY_CHANGE`; a start with another one is refused before anything is touched.
"""

import contextlib
import errno
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from spanbert_jax.config import MAY_CHANGE, Config, flatten, from_dict, to_json
from spanbert_jax.errors import UserError

_FILE = "config.json"
_CLIENTS = ("tensorflow", "gcsfs", "google", "aiohttp")  # whose errors are a bucket's; all but OSErrors are their own


def open_workdir(config: Config, path: str) -> epath.Path:
    """Makes the directory, or checks that it belongs to this configuration.

    Raises UserError where it belongs to another one, naming every field that differs, or cannot be written.
    """
    if not is_remote(path):
        make_directory(Path(path), "--workdir")
    elif config.task != "pretraining":
        raise UserError(f"{path}: fine-tuning writes to mounted directories only; choose one with --workdir")
    else:
        _check_client(path)
    with bucket_errors(path, "--workdir"):
        workdir = epath.Path(path)
        if (workdir / _FILE).exists():
            _check_same(config, workdir / _FILE)
    return workdir


def _check_client(path: str) -> None:
    """Orbax asks Google's client about the bucket, only after hours of preparation."""
    try:
        importlib.import_module("google.cloud.storage")
    except ImportError as error:
        raise UserError(
            f"{path}: checkpoints in a bucket need the package google-cloud-storage ({error}); "
            "pip install -r requirements-gcs.txt, or choose a mounted directory with --workdir"
        ) from error


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


def claim_workdir(config: Config, workdir: epath.Path) -> None:
    """Writes config.json: from now on the workdir is this configuration's. A start that fails before, for a mistake in
    it, claims nothing."""
    if jax.process_index() == 0:
        aside = workdir / f"{_FILE}.tmp"
        aside.write_text(to_json(config))
        aside.replace(workdir / _FILE)


def read_config(file: epath.Path) -> Config:
    """The configuration in a workdir's config.json; raises UserError where it is none."""
    try:
        return from_dict(json.loads(file.read_text()))
    except ValueError as error:
        raise UserError(f"{file}: not a configuration ({error}); delete it or choose another --workdir") from error


def _check_same(config: Config, file: epath.Path) -> None:
    old = flatten(read_config(file))
    new = flatten(config)
    differing = [name for name in new if new[name] != old[name] and name not in MAY_CHANGE]
    if differing:
        lines = "; ".join(f"config.{name} is {old[name]!r} there and {new[name]!r} now" for name in differing)
        raise UserError(f"{file}: this workdir belongs to another configuration: {lines}; choose another --workdir")


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
