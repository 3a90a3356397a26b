"""The directory of a run.

Invariant: all that a workdir holds was computed with the configuration in its config.json, up to the fields in
`config.MAY_CHANGE`; a start with another one is refused before anything is touched.
"""

import json

import jax
from etils import epath

from spanbert_jax.config import MAY_CHANGE, Config, flatten, from_dict, to_json
from spanbert_jax.errors import UserError


def open_workdir(config: Config, path: str) -> epath.Path:
    """Makes the directory, or checks that it belongs to this configuration; writes config.json.

    Raises UserError where it belongs to another one, naming every field that differs, or cannot be written.
    """
    workdir = epath.Path(path)
    file = workdir / "config.json"
    try:
        if file.exists():
            _check_same(config, file)
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            aside = workdir / "config.json.tmp"
            aside.write_text(to_json(config))
            aside.replace(file)
    except OSError as error:
        raise UserError(
            f"{workdir}: cannot write there ({error.strerror or error}); choose another --workdir"
        ) from error
    return workdir


def _check_same(config: Config, file: epath.Path) -> None:
    try:
        old = flatten(from_dict(json.loads(file.read_text())))
    except ValueError as error:
        raise UserError(f"{file}: not a configuration ({error}); delete it or choose another --workdir") from error
    new = flatten(config)
    differing = [name for name in new if new[name] != old[name] and name not in MAY_CHANGE]
    if differing:
        lines = "; ".join(f"config.{name} is {old[name]!r} there and {new[name]!r} now" for name in differing)
        raise UserError(f"{file}: this workdir belongs to another configuration: {lines}; choose another --workdir")
