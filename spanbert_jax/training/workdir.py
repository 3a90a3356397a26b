"""The directory of a run.

Invariant: all that a workdir holds was computed with the configuration in its config.json, up to the fields in
`config.MAY_CHANGE`; a start with another one is refused before anything is touched.
"""

import contextlib
import errno
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


def open_workdir(config: Config, path: str) -> epath.Path:
    """Makes the directory, or checks that it belongs to this configuration.

    Raises UserError where it belongs to another one, naming every field that differs, or cannot be written.
    """
    workdir = epath.Path(path)
    make_directory(workdir, "--workdir")
    if (workdir / _FILE).exists():
        _check_same(config, workdir / _FILE)
    return workdir


def make_directory(path: os.PathLike[str], flag: str) -> None:
    """Makes a directory, or checks that it may be written to; raises UserError, naming the flag to change."""
    if "://" in os.fspath(path):
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
