"""Checkpoints of parameters alone, which one of a workdir is meant, that the best of a run is kept, and damage."""

import dataclasses
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from spanbert_jax.errors import UserError
from spanbert_jax.training import checkpoint as checkpoints
from spanbert_jax.training import loop, sharding
from spanbert_jax.training.checkpoint import (
    find_checkpoint,
    read_metadata,
    read_params,
    read_shapes,
    read_state,
    whole_steps,
    write_params,
)
from spanbert_jax.training.checksums import checksums
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.step import abstract_state
from tests.support.damage import DAMAGE, damage, flipped
from tests.support.recipes import config_of, recipe_of
from tests.support.synthetic import small_config


def params_of(value: float) -> dict[str, Any]:
    return {"a": {"b": np.full((3, 2), value, np.float32)}, "c": np.full(4, value, np.float32)}


def at(step: int) -> Metadata:
    return Metadata("x", step, small_config())


def test_parameters_and_what_belongs_to_them_are_read_back(tmp_path: Path) -> None:
    metadata = Metadata("x", 7, small_config(), labels=("x",), special={"a": 1}, evaluation={"held_out/score": 3.0})
    write_params(epath.Path(tmp_path), params_of(2.0), metadata)
    checkpoint = find_checkpoint(epath.Path(tmp_path))
    saved = dataclasses.replace(metadata, checksums=checksums({"params": params_of(2.0)}))
    assert checkpoint.name == "7" and read_metadata(checkpoint) == saved
    jax.tree.map(np.testing.assert_array_equal, read_params(checkpoint), params_of(2.0))
    assert read_shapes(checkpoint) == {"a": {"b": (3, 2)}, "c": (4,)}


@pytest.mark.parametrize("step", [3, 7, 12])
def test_a_later_write_is_the_one_that_stays_whatever_its_step(tmp_path: Path, step: int) -> None:
    write_params(epath.Path(tmp_path), params_of(1.0), at(7))
    write_params(epath.Path(tmp_path), params_of(2.0), at(step))
    (only,) = (child for child in tmp_path.iterdir() if child.name.isdigit())
    assert only.name == str(step)
    np.testing.assert_array_equal(read_params(epath.Path(only))["c"], params_of(2.0)["c"])


def test_the_best_comes_before_the_newest_where_it_is_whole(tmp_path: Path) -> None:
    workdir = epath.Path(tmp_path)
    with pytest.raises(UserError, match="no checkpoint there"):
        find_checkpoint(workdir)
    write_params(workdir / "checkpoints", params_of(1.0), at(9))
    (tmp_path / "best" / "5.orbax-checkpoint-tmp-1").mkdir(parents=True)  # a first save that was cut off
    assert whole_steps(workdir / "best") == []
    assert find_checkpoint(workdir) == workdir / "checkpoints" / "9"
    write_params(workdir / "best", params_of(2.0), at(5))
    assert find_checkpoint(workdir) == workdir / "best" / "5"


def test_the_newest_checkpoint_is_the_one_of_the_highest_number(tmp_path: Path) -> None:
    for name in ("9", "10", "8", "11.orbax-checkpoint-tmp", "12.damaged"):
        (tmp_path / name / "state").mkdir(parents=True)
    assert [step.name for step in whole_steps(epath.Path(tmp_path))] == ["10", "9", "8"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_and_named_unless_it_is_asked_for(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {"a": np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)}  # small ones lie in the index
    for step, folder in ((5, "best"), (8, "checkpoints"), (9, "checkpoints")):
        write_params(epath.Path(tmp_path / "written"), params, at(step))
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "written" / str(step)).rename(tmp_path / folder / str(step))
    best, newest, older = (tmp_path / name for name in ("best/5", "checkpoints/9", "checkpoints/8"))
    for checkpoint in (best, newest):
        damage(checkpoint, *DAMAGE[kind])
    assert find_checkpoint(epath.Path(tmp_path)) == epath.Path(older)
    for line, skipped in zip(capsys.readouterr().err.splitlines(), (best, newest), strict=True):
        assert line.startswith(f"warning: {skipped} is damaged (") and line.endswith(f"); {older} is used")
    asked = find_checkpoint(epath.Path(newest))
    with pytest.raises(UserError, match=r"checkpoints/9: this checkpoint is damaged \(.*name another, or move it away"):
        assert read_metadata(asked) and read_params(asked)
    damage(older, *DAMAGE[kind])
    with pytest.raises(UserError, match=r"no sound checkpoint there: \S*best/5 is damaged .*checkpoints/8 is damaged"):
        find_checkpoint(epath.Path(tmp_path))
    assert best.is_dir() and newest.is_dir()  # who only looks renames nothing


def test_the_other_reads_of_a_damaged_checkpoint_print_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio logs the error of a read that nobody waits for, when it frees the read's task."""
    with pytest.raises(UserError, match="is damaged"):
        read_params(epath.Path(tmp_path / "7"))
    for error in (ValueError('DATA_LOSS: Error opening "zarr" driver: Error reading "a"'), ValueError("other")):
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=error)
    (record,) = caplog.records
    assert record.exc_info and str(record.exc_info[1]) == "other"


def scored(config: Any, values: list[float]) -> loop.Recipe:
    """A recipe whose evaluations give these values, one after another."""
    left = iter(values)
    recipe = recipe_of(config, [])
    return recipe._replace(evaluate=lambda params, layout, show: {"held_out/score": next(left)}, best="held_out/score")


def test_the_best_evaluation_is_kept_and_one_that_is_no_number_never_is(tmp_path: Path) -> None:
    config = config_of(steps=5, eval_every=1, checkpoint_every=100)
    recipe = scored(config, [1.0, math.nan, 3.0, 2.0, math.nan])
    assert loop.run(config, recipe, epath.Path(tmp_path)).finished
    best = find_checkpoint(epath.Path(tmp_path))
    assert (best.parent.name, best.name) == ("best", "3")
    assert read_metadata(best).evaluation == {"held_out/score": 3.0}


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the checkpoints 1 and 2 of a run that ended, of which 1 was best."""
    workdir = tmp_path_factory.mktemp("run")
    config = config_of(steps=2, eval_every=1, checkpoint_every=1)
    assert loop.run(config, scored(config, [2.0, 1.0]), epath.Path(workdir)).finished
    return workdir


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    kind: str, saved_twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, asked = tmp_path / "run", list[int]()
    shutil.copytree(saved_twice, workdir)
    damage(workdir / "checkpoints" / "2", *DAMAGE[kind])
    config = config_of(steps=2, checkpoint_every=1)
    assert loop.run(config, recipe_of(config, asked), epath.Path(workdir)).finished
    said = capsys.readouterr().err
    assert asked == [1] and said.count("\n") == 1
    assert said.startswith(f"warning: {workdir}/checkpoints/2 is damaged (")
    assert said.endswith("): kept as 2.damaged; going on from 1\n")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "2.damaged"]
    again, before = (read_params(epath.Path(run) / "checkpoints" / "2") for run in (workdir, saved_twice))
    jax.tree.map(np.testing.assert_array_equal, again, before)


def test_damage_that_only_another_process_finds_counts_for_all(
    saved_twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, asked = tmp_path / "run", list[int]()
    shutil.copytree(saved_twice, workdir)
    (workdir / "checkpoints" / "2.damaged").mkdir()  # of an earlier time
    found = iter(["a file is cut", "", ""])  # of checkpoint 2; of the files and the checksums of checkpoint 1
    monkeypatch.setattr(checkpoints, "first_text", lambda text: next(found))
    config = config_of(steps=2, checkpoint_every=1)
    assert loop.run(config, recipe_of(config, asked), epath.Path(workdir)).finished
    line = f"warning: {workdir}/checkpoints/2 is damaged (a file is cut): kept as 2.damaged+; going on from 1\n"
    assert asked == [1] and capsys.readouterr().err == line


@pytest.mark.parametrize("kind", ["a cut array", "cut metadata"])
def test_a_damaged_best_checkpoint_is_set_aside_and_the_next_evaluation_makes_a_new_one(
    kind: str, saved_twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved_twice, workdir)
    damage(workdir / "best" / "1", *DAMAGE[kind])
    config = config_of(steps=2, eval_every=1, checkpoint_every=1)
    assert loop.run(config, scored(config, [0.5]), epath.Path(workdir)).finished
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {workdir}/best/1 is damaged (") and said.count("\n") == 1
    assert said.endswith("): kept as 1.damaged; the next evaluation makes a new best\n")
    assert sorted(path.name for path in (workdir / "best").iterdir()) == ["1.damaged", "2"]
    assert read_metadata(find_checkpoint(epath.Path(workdir))).evaluation == {"held_out/score": 0.5}


def test_where_every_checkpoint_is_damaged_nothing_is_touched_and_the_user_decides(
    saved_twice: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved_twice, workdir)
    for step in "12":
        damage(workdir / "checkpoints" / step, *DAMAGE["no state"])
    config = config_of(steps=2, checkpoint_every=1)
    with pytest.raises(UserError, match=r"checkpoints: every checkpoint there is damaged \(2: .*; 1: .*move them away"):
        loop.run(config, recipe_of(config, []), epath.Path(workdir))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_damaged_checkpoint_that_cannot_be_renamed_stops_the_run_with_one_line(
    saved_twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    workdir = tmp_path / "run"
    shutil.copytree(saved_twice, workdir)
    damage(workdir / "checkpoints" / "2", *DAMAGE["no state"])
    monkeypatch.setattr(checkpoints, "move_directory", refuse)
    config = config_of(steps=2, checkpoint_every=1)
    with pytest.raises(UserError, match=r"checkpoints/2: .* cannot be renamed to 2.damaged \(Permission denied\)"):
        loop.run(config, recipe_of(config, []), epath.Path(workdir))


def test_a_whole_checkpoint_of_another_model_is_refused_and_not_set_aside(saved_twice: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved_twice, workdir)
    config = small_config(train={"steps": 2, "checkpoint_every": 1}, model={"mlp": 48})
    with pytest.raises(UserError, match=r"checkpoints/2: its parameters are not those of this configuration's model"):
        loop.run(config, recipe_of(config, []), epath.Path(workdir))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def arrays_file(checkpoint: Path) -> Path:
    """The file that holds most of a checkpoint's arrays."""
    return max(checkpoint.glob("state/**/d/*"), key=lambda path: path.stat().st_size)


def test_a_flipped_bit_in_an_array_is_never_read(saved_twice: Path, tmp_path: Path) -> None:
    """Orbax's own checks find it where it breaks the compression. Elsewhere it would be another number."""
    shutil.copytree(saved_twice / "checkpoints" / "2", tmp_path / "2")
    checkpoint, file = epath.Path(tmp_path / "2"), arrays_file(tmp_path / "2")
    assert set(read_state(checkpoint)) == {"params", "opt_state", "step"}  # all as they were saved
    size = file.stat().st_size
    for read in (read_state, read_params):
        sound, said = read(checkpoint), list[str]()
        for place in range(0, size, size // 40):
            with flipped(file, place):
                try:
                    now = read(checkpoint)
                except UserError as error:
                    said.append(str(error))
                    assert f"{checkpoint}: this checkpoint is damaged (" in said[-1] and "\n" not in said[-1]
                else:  # the bit is in no array, or in one that is not read
                    jax.tree.map(np.testing.assert_array_equal, now, sound)
        if read is read_state:  # which arrays share a file is chance, and so the parameters may be in another
            assert sum("(array " in line and "not as saved)" in line for line in said) > 10


def restored(workdir: Path) -> tuple[int, Any]:
    """What a run in the workdir goes on from: (step, state in NumPy)."""
    config = small_config(train={"steps": 2, "checkpoint_every": 1})
    with jax.set_mesh(sharding.mesh_of(config)):
        abstract = abstract_state(config, recipe_of(config, []).init, jax.sharding.get_mesh())
        found = checkpoints.Checkpoints(epath.Path(workdir / "checkpoints"), config.train)
        try:
            result = found.restore_newest(abstract, lambda metadata: None)
        finally:
            found.close()
    assert result
    return result[0], jax.tree.map(np.asarray, result[1])


def test_whatever_is_damaged_a_run_goes_on_from_one_checkpoint_as_it_was_saved(
    saved_twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file of the newest checkpoint in turn is cut, emptied, deleted, or has a flipped bit, at random places."""
    rng = np.random.default_rng(0)
    sound = {2: restored(saved_twice)[1]}
    older = tmp_path / "older"
    shutil.copytree(saved_twice / "checkpoints" / "1", older / "checkpoints" / "1")
    sound[1] = restored(older)[1]
    files = [path for path in sorted((saved_twice / "checkpoints" / "2").rglob("*")) if path.is_file()]
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(saved_twice / "checkpoints", workdir / "checkpoints")
        broken = workdir / file.relative_to(saved_twice)
        data = bytearray(file.read_bytes())
        kind = number % 4
        if kind == 0 and data:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        broken.write_bytes(data if kind == 0 else data[: rng.integers(len(data))] if kind == 1 and data else b"")
        if kind == 3:
            broken.unlink()
        step, state = restored(workdir)
        jax.tree.map(np.testing.assert_array_equal, state, sound[step])
        said = capsys.readouterr().err
        assert (said.count("\n"), "2.damaged; going on from 1" in said) == ((1, True) if step == 1 else (0, False))
