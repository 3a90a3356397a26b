"""tools/replay.py: a step that is run again has the run's numbers, and the rows that are to blame are those found."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from spanbert_jax.errors import UserError
from spanbert_jax.training import loop
from spanbert_jax.training.replaying import replay
from tests.support import runs, spoilt_objective
from tests.support.recipes import config_of, recipe_of
from tests.support.synthetic import random_batch


def files(workdir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_a_replayed_step_has_the_losses_that_the_run_logged_for_it(finished: tuple[Path, str]) -> None:
    """The first step is logged by itself."""
    workdir, before = finished[0], files(finished[0])
    printed = runs.tool("replay", "--workdir", workdir, "--step", 0, "--rows", 2).stdout
    assert "Step 0, run again from the run's first state\n" in printed
    logged = {name: runs.metrics(workdir, f"train/{name}")[1] for name in ("mlm_loss", "sbo_loss", "gradient_norm")}
    assert f": MLM {logged['mlm_loss']:.3f} " in printed and f"SBO {logged['sbo_loss']:.3f} " in printed
    assert "Every row's loss and gradient is finite" in printed
    norms = re.findall(r"^ *[a-z_/]+ +[\d.]+ +([\d.]+) +0 *$", printed, re.MULTILINE)
    assert np.sqrt(sum(float(norm) ** 2 for norm in norms)) == pytest.approx(logged["gradient_norm"], rel=1e-3)
    assert len(re.findall(r"^block \d+: \S.{50}", printed, re.MULTILINE)) == 2
    assert files(workdir) == before


def test_the_steps_from_the_nearest_checkpoint_on_are_run_again(finished: tuple[Path, str]) -> None:
    printed = runs.tool("replay", "--workdir", finished[0], "--step", 10).stdout
    assert "Step 10, run again from checkpoint 8\n" in printed
    again = runs.tool("replay", "--workdir", finished[0], "--step", 12, expect=1).stderr
    assert again == f"error: --step 12: the run in {finished[0]} has the steps 0 to 11\n"
    absent = runs.tool("replay", "--workdir", finished[0] / "data", "--step", 1, expect=1).stderr
    assert absent.startswith(f"error: {finished[0]}/data: no run there (config.json is missing)")


def test_a_run_may_be_called_as_a_trial_of_fine_tuning_is(finished: tuple[Path, str], tmp_path: Path) -> None:
    workdir = tmp_path / "trial_1"
    shutil.copytree(finished[0], workdir)
    again = runs.tool("replay", "--workdir", workdir, "--step", 12, expect=1).stderr
    assert again == f"error: --step 12: the run in {workdir} has the steps 0 to 11\n"


def test_a_run_whose_data_are_gone_is_not_replayed_on_others(finished: tuple[Path, str], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "data" / "blocks")
    before = files(workdir)
    done = runs.tool("replay", "--workdir", workdir, "--step", 10, expect=1)
    assert (
        done.stderr
        == f"error: {workdir}/data/blocks: the run's blocks are not there; bring them back to replay a step\n"
    )
    assert files(workdir) == before


def test_a_checkpoint_of_other_data_is_not_replayed(tmp_path: Path) -> None:
    config = config_of(steps=2, checkpoint_every=1)
    recipe = recipe_of(config, [])
    loop.run(config, recipe, epath.Path(tmp_path))
    others = recipe._replace(metadata=dataclasses.replace(recipe.metadata, data_fingerprint="others"))
    with pytest.raises(UserError, match="these checkpoints were trained on other data"):
        replay(config, others, epath.Path(tmp_path), 1, lambda words: None)


def test_the_rows_and_the_operation_that_are_to_blame_are_named(tmp_path: Path) -> None:
    """Ids beyond the word table have the embedding NaN."""
    config = config_of()

    def batch_of(step: int) -> Any:
        batch = random_batch(config, step)
        if step:
            batch["input_ids"][[2, 5], [3, 0]] = 5000
        return batch

    recipe = recipe_of(config, [])._replace(
        train_batches=lambda layout, first, last: map(batch_of, range(first, last)),
        metrics=lambda sums: {"loss": sums["mlm_loss"] / sums["mlm_count"]},
    )
    found = replay(config, recipe, epath.Path(tmp_path), 2, lambda words: None)
    assert (found.start, found.skipped, found.overflowed) == (None, [1], None) and np.isnan(found.loss)
    assert [row.row for row in found.rows if not row.is_finite] == [2, 5]
    assert [row.block for row in found.rows] == [16 + row.row for row in found.rows]
    assert {group.name for group in found.groups if group.not_finite} >= {"embeddings", "mlm", "encoder/mlp"}
    place = r"invalid value \(nan\) encountered in \w+, of the loss, in spanbert_jax/model/encoder.py, line \d+: "
    assert re.match(place, found.first_operation), found.first_operation
    assert "jnp.take(self.word, input_ids" in found.first_operation


def test_a_gradient_that_is_not_finite_where_the_loss_is_finite_is_found_too(tmp_path: Path) -> None:
    config, roots = config_of(), np.full(8, 4.0)
    roots[5] = 0
    recipe = recipe_of(config, [])._replace(
        init=spoilt_objective.init,
        objective=spoilt_objective.OBJECTIVE,
        train_batches=lambda *_: iter([spoilt_objective.batch(roots=roots)]),
    )
    found = replay(config, recipe, epath.Path(tmp_path), 0, lambda words: None)
    assert [row.row for row in found.rows if not row.is_finite] == [5] and np.isfinite(found.loss)
    assert [group.name for group in found.groups if group.not_finite] == ["mlm"]
    assert re.match(r"invalid value \(nan\) encountered in \w+, of the gradients", found.first_operation)
