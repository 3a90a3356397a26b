"""A workdir belongs to one configuration, and a directory that cannot be written to is said so at once."""

import dataclasses
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory, move_directory
from spanbert_jax.training import loop, progress
from spanbert_jax.training.checkpoint import whole_steps
from spanbert_jax.training.workdir import claim_workdir, open_workdir
from tests.support import fake_bucket, runs
from tests.support.recipes import recipe_of
from tests.support.synthetic import small_config


def test_a_claimed_workdir_takes_changes_of_where_and_how_fast_but_not_of_what(tmp_path: Path) -> None:
    config = small_config()
    claim_workdir(config, open_workdir(config, str(tmp_path / "run")))
    faster = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=7, accumulation=4))
    open_workdir(faster, str(tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"config.train.seed is 1 there and 2 now; set it as it is there, or choose another"
    ):
        open_workdir(small_config(train={"seed": 2}), str(tmp_path / "run"))


def test_a_name_that_orbax_takes_for_a_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\[1\]: Orbax takes \* \? and \[ in a name for a pattern"):
        open_workdir(small_config(), str(tmp_path / "run[1]"))
    assert not list(tmp_path.iterdir())


def test_a_start_that_fails_over_its_configuration_claims_nothing(tmp_path: Path) -> None:
    def claim() -> None:
        claimed.append(train)

    claimed: list[dict[str, str]] = []
    for train in ({"only": "mlm,slo"}, {"only": "mlm"}):
        config = small_config(train={"steps": 2, "sbo_weight": 0.0, **train}, init_from="runs/a")
        try:
            loop.run(config, recipe_of(config, []), epath.Path(tmp_path), claim)
        except UserError as error:
            assert "config.train.only names 'slo'" in str(error)
    assert claimed == [{"only": "mlm"}]


def wsd(steps: int, decay_steps: int) -> Config:
    """A run of Muon with a stable learning rate and a decay."""
    train = {"steps": steps, "checkpoint_every": 2, "keep_checkpoints": 9, "sbo_weight": 0.0}
    return small_config(train=train, optimizer={"name": "muon", "schedule": "wsd", "decay_steps": decay_steps})


def run_in(workdir: Path, config: Config) -> list[int]:
    """Runs from the newest checkpoint in the workdir to the last step of `config`; returns the steps that were done."""
    asked: list[int] = []
    claim_workdir(config, open_workdir(config, str(workdir)))
    assert loop.run(config, recipe_of(config, asked), epath.Path(workdir)).finished
    return asked


def test_a_decay_from_a_stable_checkpoint_is_bitwise_that_of_a_run_that_planned_it(tmp_path: Path) -> None:
    """The decay is done in a copy of the workdir; the run of the original could go on, or decay otherwise."""
    stable, copied, planned = (tmp_path / name for name in ("stable", "copied", "planned"))
    assert run_in(stable, wsd(4, 0)) == [0, 1, 2, 3]
    shutil.copytree(stable, copied)
    assert run_in(copied, wsd(7, 3)) == [4, 5, 6]
    assert run_in(planned, wsd(7, 3)) == [0, 1, 2, 3, 4, 5, 6]
    one, other = (runs.params(workdir, 7) for workdir in (copied, planned))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert any(not np.array_equal(one[name], array) for name, array in runs.params(stable, 4).items())


def test_a_decay_that_would_change_steps_already_done_is_refused(tmp_path: Path) -> None:
    claim_workdir(wsd(10, 4), open_workdir(wsd(10, 4), str(tmp_path)))
    open_workdir(wsd(20, 15), str(tmp_path))  # there is no checkpoint yet
    for step in (4, 6):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    open_workdir(wsd(40, 34), str(tmp_path))
    for config, begins in ((wsd(20, 15), 5), (wsd(5, 0), 5)):
        with pytest.raises(UserError, match=rf"began at step 6 there and would begin at {begins} now, but the newest"):
            open_workdir(config, str(tmp_path))
    (tmp_path / "checkpoints" / "8").mkdir()
    with pytest.raises(UserError, match=r"newest checkpoint is 8; .* copy of the workdir in which no .* newer than 6"):
        open_workdir(wsd(40, 20), str(tmp_path))
    with pytest.raises(UserError, match=r"config.optimizer.warmup_steps is 2 there and 3 now"):
        changed = dataclasses.replace(wsd(40, 34).optimizer, warmup_steps=3)
        open_workdir(dataclasses.replace(wsd(40, 34), optimizer=changed), str(tmp_path))


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


def test_a_bucket_is_refused_where_only_directories_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="gs://bucket/run: only mounted directories work"):
        make_directory("gs://bucket/run", "--workdir")
    with pytest.raises(UserError, match="fine-tuning writes to mounted directories only"):
        open_workdir(dataclasses.replace(small_config(), task="question_answering"), "gs://bucket/run")
    monkeypatch.setitem(sys.modules, "google.cloud.storage", types.ModuleType("google.cloud.storage"))
    with pytest.raises(UserError, match="s3://bucket/run: of all buckets only gs:// ones work"):
        open_workdir(small_config(), "s3://bucket/run")


def test_the_package_that_a_bucket_needs_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(UserError, match=r"google-cloud-storage .* pip install -r requirements-gcs.txt"):
        open_workdir(small_config(), "gs://bucket/run")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    fake_bucket.install(tmp_path)
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def test_a_workdir_in_a_bucket_belongs_to_one_configuration(bucket: Path) -> None:
    claim_workdir(small_config(), open_workdir(small_config(), "gs://bucket/run"))
    assert [path.name for path in (bucket / "run").iterdir()] == ["config.json"]
    with pytest.raises(UserError, match=r"gs://bucket/run/config.json: .* config.train.seed is 1 there and 2 now"):
        open_workdir(small_config(train={"seed": 2}), "gs://bucket/run")


def test_in_a_bucket_only_a_checkpoint_that_is_marked_as_whole_is_found(bucket: Path) -> None:
    for step in (4, 8):
        (bucket / "run" / "checkpoints" / str(step) / "state").mkdir(parents=True)
    assert whole_steps(epath.Path("gs://bucket/run/checkpoints")) == []
    (bucket / "run" / "checkpoints" / "4" / "commit_success.txt").touch()
    assert whole_steps(epath.Path("gs://bucket/run/checkpoints")) == [epath.Path("gs://bucket/run/checkpoints/4")]


MOVED = {"mark": "0", "a": "1", "b/c": "2", "b/d/e": "3"}


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_move_in_a_bucket_that_is_stopped_leaves_all_files_under_one_name_and_the_mark_with_every_copy(
    stop: int, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at operation `stop`: one of four copies, the deletion of the mark, or that of the rest."""
    source, target = epath.Path("gs://bucket/12"), epath.Path("gs://bucket/12.damaged")
    for name, text in MOVED.items():
        fake_bucket.write(bucket / "12" / name, text.encode())
    left = iter(range(1, stop))

    def stopping(name: str) -> None:
        work = getattr(fake_bucket.Bucket, name)

        def limited(*arguments: object, **keywords: object) -> object:
            if "rb" not in (*arguments, *keywords.values()) and next(left, None) is None:
                raise KeyboardInterrupt
            return work(*arguments, **keywords)

        monkeypatch.setattr(fake_bucket.Bucket, name, limited)

    for operation in ("_open", "rm"):
        stopping(operation)
    with pytest.raises(KeyboardInterrupt):
        move_directory(source, target, "mark")
    before, after = contents(bucket / "12"), contents(bucket / "12.damaged")
    assert MOVED in (before, after)
    assert not after or "mark" in after
    assert before == MOVED or (after == MOVED and "mark" not in before)


def test_a_move_in_a_bucket_and_on_a_disk_leaves_the_files_under_the_new_name_alone(
    bucket: Path, tmp_path: Path
) -> None:
    for folder, place in ((bucket, "gs://bucket"), (tmp_path / "disk", str(tmp_path / "disk"))):
        for name, text in MOVED.items():
            fake_bucket.write(folder / "12" / name, text.encode())
        move_directory(epath.Path(f"{place}/12"), epath.Path(f"{place}/12.damaged"), "mark")
        assert contents(folder / "12.damaged") == MOVED and not (folder / "12").exists()


def test_metrics_reach_a_bucket_while_the_run_goes_on_and_are_cut_where_it_resumes(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (bucket / "run" / "metrics.jsonl").read_text().splitlines()]

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_COPIES", 0.0)
    killed = progress.MetricsWriter(epath.Path("gs://bucket/run"), 0)
    for step in (1, 10, 20):
        killed.write(step, {"loss": 1.0})
    assert steps() == [1, 10, 20]  # and it is never closed
    writer = progress.MetricsWriter(epath.Path("gs://bucket/run"), 10)
    writer.write(20, {"loss": 2.0})
    writer.close()
    assert steps() == [1, 10, 20]
    assert json.loads((bucket / "run" / "metrics.jsonl").read_text().splitlines()[-1])["loss"] == 2.0
    assert len(list((bucket / "run" / "tensorboard").iterdir())) == 2
    killed.close()
