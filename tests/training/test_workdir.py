"""A workdir belongs to one configuration, and a directory that cannot be written to is said so at once."""

import dataclasses
import os
from pathlib import Path

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.training.workdir import claim_workdir, make_directory, open_workdir
from tests.synthetic import small_config


def test_a_claimed_workdir_takes_changes_of_where_and_how_fast_but_not_of_what(tmp_path: Path) -> None:
    config = small_config()
    claim_workdir(config, open_workdir(config, str(tmp_path / "run")))
    faster = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=7, accumulation=4))
    open_workdir(faster, str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"config.train.seed is 1 there and 2 now; choose another --workdir"):
        open_workdir(small_config(train={"seed": 2}), str(tmp_path / "run"))


def test_an_unclaimed_workdir_takes_any_configuration(tmp_path: Path) -> None:
    open_workdir(small_config(), str(tmp_path))
    open_workdir(small_config(train={"seed": 2}), str(tmp_path))


def test_a_damaged_config_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not a configuration"):
        open_workdir(small_config(), str(tmp_path))


def test_a_directory_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for os.access: the superuser, who may run this, has every permission."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"cannot write there \(Permission denied\); choose another directory with --x"):
        make_directory(tmp_path, "--x")


def test_a_bucket_is_refused_instead_of_becoming_a_local_folder() -> None:
    with pytest.raises(UserError, match="gs://bucket/run: only mounted directories work"):
        make_directory("gs://bucket/run", "--workdir")
