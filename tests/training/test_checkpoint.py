"""Checkpoints of parameters alone, which one of a workdir is meant, and that the best of a run is kept."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from spanbert_jax.errors import UserError
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import loop
from spanbert_jax.training.checkpoint import (
    find_checkpoint,
    newest_step,
    read_metadata,
    read_params,
    read_shapes,
    write_params,
)
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.step import BatchSize
from tests.support.recipes import recipe_of
from tests.support.synthetic import VOCAB, random_batch, small_config


def params_of(value: float) -> dict[str, Any]:
    return {"a": {"b": np.full((3, 2), value, np.float32)}, "c": np.full(4, value, np.float32)}


def at(step: int) -> Metadata:
    return Metadata("x", step, small_config())


def test_parameters_and_what_belongs_to_them_are_read_back(tmp_path: Path) -> None:
    metadata = Metadata("x", 7, small_config(), labels=("x",), special={"a": 1}, evaluation={"held_out/score": 3.0})
    write_params(epath.Path(tmp_path), params_of(2.0), metadata)
    checkpoint = find_checkpoint(epath.Path(tmp_path))
    assert checkpoint.name == "7" and read_metadata(checkpoint) == metadata
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
    assert newest_step(workdir / "best") is None
    assert find_checkpoint(workdir) == workdir / "checkpoints" / "9"
    write_params(workdir / "best", params_of(2.0), at(5))
    assert find_checkpoint(workdir) == workdir / "best" / "5"


def test_the_best_evaluation_is_kept_and_one_that_is_no_number_never_is(tmp_path: Path) -> None:
    config = small_config(train={"steps": 5, "eval_every": 1, "checkpoint_every": 100})
    model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
    values = iter([1.0, math.nan, 3.0, 2.0, math.nan])

    def batches(layout: Any, first: int, last: int) -> Iterator[Any]:
        return (random_batch(config, step) for step in range(first, last))

    recipe = loop.Recipe(
        init=lambda key: pretraining_heads.init_params(model, key),
        objective=objective(model, 5),
        train_batches=batches,
        evaluate=lambda params, layout: {"held_out/score": next(values)},
        metrics=lambda totals: {},
        describe=lambda values: "",
        batch_size=lambda batch: BatchSize(1, 1.0, ""),
        metadata=at(0),
        best="held_out/score",
    )
    assert loop.run(config, recipe, epath.Path(tmp_path)).finished
    best = find_checkpoint(epath.Path(tmp_path))
    assert (best.parent.name, best.name) == ("best", "3")
    assert read_metadata(best).evaluation == {"held_out/score": 3.0}


DAMAGE = {
    "a cut array": ("state/ocdbt.process_0/d/*", True),
    "a cut index": ("state/manifest.ocdbt", True),
    "cut metadata": ("metadata/metadata", True),
    "no metadata": ("metadata/metadata", False),
    "no state": ("state", False),
}


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the checkpoints 1 and 2 of a run that ended."""
    workdir = tmp_path_factory.mktemp("run")
    config = small_config(train={"steps": 2, "checkpoint_every": 1})
    assert loop.run(config, recipe_of(config, []), epath.Path(workdir)).finished
    return workdir


def damage(checkpoint: Path, files: str, cut: bool) -> None:
    largest = max(checkpoint.glob(files), key=lambda path: path.stat().st_size)
    if cut:
        os.truncate(largest, largest.stat().st_size // 2)
    elif largest.is_dir():
        shutil.rmtree(largest)
    else:
        largest.unlink()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    kind: str, saved_twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, asked = tmp_path / "run", list[int]()
    shutil.copytree(saved_twice, workdir)
    damage(workdir / "checkpoints" / "2", *DAMAGE[kind])
    config = small_config(train={"steps": 2, "checkpoint_every": 1})
    assert loop.run(config, recipe_of(config, asked), epath.Path(workdir)).finished
    said = capsys.readouterr().err
    assert asked == [1] and said.count("\n") == 1
    assert said.startswith(f"warning: {workdir}/checkpoints/2 is damaged (")
    assert said.endswith("): kept as 2.damaged; going on from 1\n")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "2.damaged"]
    again, before = (read_params(epath.Path(run) / "checkpoints" / "2") for run in (workdir, saved_twice))
    jax.tree.map(np.testing.assert_array_equal, again, before)


def test_where_no_checkpoint_is_whole_nothing_is_touched_and_the_user_decides(
    saved_twice: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved_twice, workdir)
    for step in "12":
        damage(workdir / "checkpoints" / step, *DAMAGE["no state"])
    config = small_config(train={"steps": 2, "checkpoint_every": 1})
    with pytest.raises(UserError, match=r"checkpoints/2: this checkpoint is damaged .* move that directory away"):
        loop.run(config, recipe_of(config, []), epath.Path(workdir))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_whole_checkpoint_of_another_model_is_refused_and_not_set_aside(saved_twice: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved_twice, workdir)
    config = small_config(train={"steps": 2, "checkpoint_every": 1}, model={"mlp": 48})
    with pytest.raises(UserError, match=r"checkpoints/2: its parameters are not those of this configuration's model"):
        loop.run(config, recipe_of(config, []), epath.Path(workdir))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]
