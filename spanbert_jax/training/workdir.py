"""The directory of a run.

Invariant: everything in a workdir was computed with the configuration in its config.json, or with one that differs from
it in the fields of `config.MAY_CHANGE` alone, or in a decay of the learning rate that had not begun. A start with any
other configuration is refused before any file is touched.
"""

import importlib
from pathlib import Path

import jax
from etils import epath

from spanbert_jax.config import MAY_CHANGE, MAY_CHANGE_BEFORE_THE_DECAY, Config, flatten
from spanbert_jax.errors import UserError
from spanbert_jax.files import bucket_errors, is_remote, make_directory, written_aside
from spanbert_jax.training.checkpoint import CHECKPOINTS, whole_steps
from spanbert_jax.training.metadata import config_from_json, config_to_json
from spanbert_jax.training.together import together

_FILE = "config.json"


def open_workdir(config: Config, path: str) -> epath.Path:
    """Makes the directory, or checks that it belongs to this configuration.

    Raises UserError where the directory belongs to another configuration, naming every field that differs; where it
    cannot be made, or has a name that Orbax does not find again; and where it is in a bucket, for fine-tuning or
    without Google's client.
    """
    if set(path) & set("*?["):
        raise UserError(f"--workdir {path}: Orbax takes * ? and [ in a name for a pattern; choose another name")
    if not is_remote(path):
        make_directory(Path(path), "--workdir")
    elif config.task != "pretraining":
        raise UserError(f"{path}: fine-tuning writes to mounted directories only; choose one with --workdir")
    else:
        _check_client(path)
    with bucket_errors(path, "--workdir"):
        workdir = epath.Path(path)
        if (workdir / _FILE).exists():
            _check_same(config, workdir)
    return workdir


def _check_client(path: str) -> None:
    """Raises UserError where Google's client is missing. Orbax would ask the client about the bucket only at the first
    checkpoint, after hours of preparation."""
    try:
        importlib.import_module("google.cloud.storage")
    except ImportError as error:
        raise UserError(
            f"{path}: checkpoints in a bucket need the package google-cloud-storage ({error}); "
            "pip install -r requirements-gcs.txt, or choose a mounted directory with --workdir"
        ) from error


def claim_workdir(config: Config, workdir: epath.Path) -> None:
    """Writes config.json: from now on the workdir belongs to this configuration.

    A start that fails earlier, over a mistake in the configuration, claims nothing. Process 0 writes, and every process
    raises UserError where it cannot.
    """

    def write() -> None:
        with written_aside(workdir / _FILE) as aside:
            aside.write_text(config_to_json(config))

    together("claim the workdir", write, jax.process_index() == 0)


def read_config(file: epath.Path) -> Config:
    """The configuration in a workdir's config.json, written by this version or an earlier one. Raises UserError where
    the file holds none that can be read."""
    return config_from_json(file.read_bytes(), str(file))


def _check_same(config: Config, workdir: epath.Path) -> None:
    file = workdir / _FILE
    saved = read_config(file)
    old, new = flatten(saved), flatten(config)
    differing = [name for name in new if new[name] != old[name] and name not in MAY_CHANGE]
    if differing and set(differing) <= set(MAY_CHANGE_BEFORE_THE_DECAY) and new["optimizer.schedule"] == "wsd":
        _check_decay_is_ahead(saved, config, workdir)
    elif differing:
        lines = "; ".join(f"config.{name} is {old[name]!r} there and {new[name]!r} now" for name in differing)
        cure = "set it as it is there, or choose another --workdir"
        raise UserError(f"{file}: this workdir belongs to another configuration: {lines}; {cure}")


def _check_decay_is_ahead(saved: Config, config: Config, workdir: epath.Path) -> None:
    """Raises UserError where a step before the newest checkpoint had another learning rate than `config` gives it."""
    decays = [one.train.steps - one.optimizer.decay_steps for one in (saved, config)]  # where the constant part ends
    newest = max((int(step.name) for step in whole_steps(workdir / CHECKPOINTS)), default=0)
    if newest > min(decays):
        raise UserError(
            f"{workdir / _FILE}: the decay of the learning rate began at step {decays[0]} there and would begin at "
            f"{decays[1]} now, but the newest checkpoint is {newest}; set config.train.steps {saved.train.steps} and "
            f"config.optimizer.decay_steps {saved.optimizer.decay_steps} as they are there, or go on in a copy of the "
            f"workdir in which no checkpoint is newer than {min(decays)}"
        )
