"""Numbers that are not finite: their step is skipped, no save replaces a sound checkpoint, and a run gives up in time.

A NaN in the weight of one masked piece makes the loss NaN, with the compiled step of the other tests of the loop.
"""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from spanbert_jax.errors import UserError
from spanbert_jax.training import loop, sharding
from spanbert_jax.training.checkpoint import Checkpoints, read_params
from spanbert_jax.training.loop import Recipe
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.optimizer import learning_rate, make_optimizer
from spanbert_jax.training.skips import Skips
from spanbert_jax.training.step import abstract_state, choice, init_state, make_train_step, skip_reason
from spanbert_jax.training.window import STEPS_AHEAD
from tests.support import spoilt_objective
from tests.support.recipes import config_of, recipe_of
from tests.support.steps import training_of
from tests.support.synthetic import random_batch, small_config


def spoilt(config: Any, steps: set[int], left_out: bool = False) -> Recipe:
    """A recipe whose batches of these steps have a NaN. left_out: the batches of other steps alone, in their order."""

    def batches(layout: Any, first: int, last: int) -> Iterator[Any]:
        for step in range(first, last):
            batch = random_batch(config, step)
            if step in steps:
                batch["masked_weights"][2, 0] = np.nan
            yield batch

    recipe = recipe_of(config, [])
    return recipe._replace(train_batches=batches, metrics=lambda totals: {"mlm": totals["mlm_loss"]})


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """The windows in metrics.jsonl."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/skipped" in row]


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_a_skipped_step_keeps_parameters_and_moments_and_only_the_step_and_its_learning_rate_go_on() -> None:
    config = small_config(optimizer={"learning_rate": 0.1, "warmup_steps": 2, "clip_norm": 0.5}, train={"steps": 6})
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        abstract = abstract_state(config, spoilt_objective.init, mesh)
        state = init_state(config, spoilt_objective.init, abstract)
        step = make_train_step(config, spoilt_objective.OBJECTIVE, abstract)
        batches = {"sound": {}, "loss": {"factors": np.nan}, "gradient": {"roots": 0.0}}
        reasons = []
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        params = jax.tree.map(np.asarray, state["params"])
        moments = optimizer.init(params)
        for number, kind in enumerate(("sound", "loss", "sound", "gradient", "sound")):
            before = jax.tree.map(np.asarray, state)
            state, sums = step(state, spoilt_objective.batch(**batches[kind]))
            assert int(state["step"]) == number + 1
            assert sums["learning_rate"] == learning_rate(config.optimizer, config.train.steps)(number)
            if kind == "sound":
                # The update by hand. Where steps were skipped, the moments are younger than the schedule.
                moments = (*moments[:-1], moments[-1]._replace(count=jnp.int32(number)))
                updates, moments = optimizer.update(jax.tree.map(lambda x: 2 * x, params), moments, params)
                params = jax.tree.map(lambda x, y: np.asarray(x + y), params, updates)
                jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state["params"], params)
                assert sums["skipped_for"] == 0
            else:
                for part in ("params", "opt_state"):
                    kept = (before[part], state[part]) if part == "params" else (before[part][:-1], state[part][:-1])
                    jax.tree.map(np.testing.assert_array_equal, *kept)
                reasons.append(skip_reason(float(sums["skipped_for"]), abstract["params"]))
    assert reasons == ["the loss", "the gradient of mlm/bias"]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_what_is_not_chosen_leaves_no_trace_whatever_it_holds(platform: str) -> None:
    arrays = {"a": jnp.arange(3.0), "b": jnp.arange(4)}

    def spoil(tree: Any) -> Any:
        return {"a": tree["a"] / 0, "b": tree["b"] + 1}

    def same(tree: Any) -> Any:
        return tree

    chosen = jax.jit(lambda first: choice(platform, first, spoil, same, arrays))
    jax.tree.map(np.testing.assert_array_equal, chosen(False), arrays)
    jax.tree.map(np.testing.assert_array_equal, chosen(True), spoil(arrays))


def test_a_skipped_step_is_counted_left_out_of_the_means_and_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(checkpoint_every=1, log_every=4)
    for name, steps in (("spoilt", {2}), ("sound", set())):
        result = loop.run(config, spoilt(config, steps), epath.Path(tmp_path / name))
        assert result.finished and result.saved == 4
    assert saved(tmp_path / "spoilt") == [1, 2, 4] and saved(tmp_path / "sound") == [2, 3, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert lines[0] == "Step 2: skipped, the loss is not finite; blocks 16, 17, 18, 19, 20, 21, 22, 23"
    assert lines[1].endswith(" · 1 skipped")
    first, window = rows_of(tmp_path / "spoilt")
    whole = rows_of(tmp_path / "sound")[1]
    assert (first["train/skipped"], window["train/skipped"], whole["train/skipped"]) == (0, 1, 0)
    assert window["train/events"] == [
        {"step": 2, "event": "skipped", "not_finite": "the loss", "blocks": list(range(16, 24))}
    ]
    assert "train/events" not in whole and math.isfinite(window["train/gradient_norm"])
    assert 0 < window["train/mlm"] < whole["train/mlm"]  # two steps of three
    assert window["step"] == 4 and window["train/learning_rate"] == whole["train/learning_rate"]


def test_a_run_gives_up_after_more_skipped_steps_in_a_row_than_it_may_and_its_sound_checkpoint_stays(
    tmp_path: Path,
) -> None:
    config = config_of(checkpoint_every=1, max_skipped=1, keep_checkpoints=1)
    with pytest.raises(UserError) as raised:
        loop.run(config, spoilt(config, {1, 2, 3}), epath.Path(tmp_path))
    assert str(raised.value) == (
        f"{tmp_path}: 2 steps in a row were skipped; in step 1, the first, the loss is not finite; blocks 8, 9, 10, "
        "11, 12, 13, 14, 15; the newest checkpoint is 1; to see where the number arises: python tools/replay.py "
        f"--workdir {tmp_path} --step 1"
    )
    assert saved(tmp_path) == [1]
    assert sum(row["train/skipped"] for row in rows_of(tmp_path)) == 2
    finished = loop.run(config, spoilt(config, {2}), epath.Path(tmp_path))  # the same command, with mended data
    assert finished.finished and saved(tmp_path) == [4]


def test_a_run_may_end_in_one_skipped_step_but_not_in_two(tmp_path: Path) -> None:
    config = config_of(checkpoint_every=2)
    assert loop.run(config, spoilt(config, {3}), epath.Path(tmp_path / "one")).saved == 4
    at_end, before = (read_params(epath.Path(tmp_path / "one" / "checkpoints" / step)) for step in ("4", "2"))
    assert not np.array_equal(at_end["embeddings"]["word"], before["embeddings"]["word"])
    with pytest.raises(UserError, match=r"2 steps in a row were skipped; in step 2, .* the newest checkpoint is 2;"):
        loop.run(config, spoilt(config, {2, 3}), epath.Path(tmp_path / "two"))
    assert saved(tmp_path / "two") == [2]


def test_parameters_that_are_not_finite_are_neither_saved_nor_kept_as_best(tmp_path: Path) -> None:
    """As after an update by finite gradients that overflows."""
    config = config_of(checkpoint_every=1)
    recipe = recipe_of(config, [])
    bias = np.zeros(24, np.float32)
    bias[3] = np.inf
    recipe = recipe._replace(
        initial_params=lambda: {"embeddings": {"norm": {"bias": bias}}},
        evaluate=lambda params, layout, show: {"held_out/score": 1.0},
        best="held_out/score",
    )
    with pytest.raises(UserError, match=r"4 steps in a row were skipped; .* there is no checkpoint"):
        loop.run(config, recipe, epath.Path(tmp_path))
    assert saved(tmp_path) == [] and not (tmp_path / "best").exists()


def test_a_run_goes_on_from_the_newest_checkpoint_whose_parameters_are_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, asked = config_of(checkpoint_every=2, steps=2), list[int]()
    assert loop.run(config, recipe_of(config, asked), epath.Path(tmp_path)).saved == 2
    config = config_of()
    state = training_of(config).first()
    norm = state["params"]["embeddings"]["norm"]
    norm["bias"] = norm["bias"].at[3].set(jnp.nan)
    checkpoints = Checkpoints(epath.Path(tmp_path / "checkpoints"), config.train)
    checkpoints.save(3, state, Metadata("synthetic", 3, config))
    checkpoints.close()
    assert loop.run(config, recipe_of(config, asked), epath.Path(tmp_path)).finished and asked == [0, 1, 2, 3]
    said = f"warning: {tmp_path}/checkpoints/3 is damaged (its parameters are not finite): kept as 3.damaged; "
    assert capsys.readouterr().err == f"{said}going on from 2\n"


def test_flags_are_read_of_finished_steps_and_too_many_are_those_in_a_row() -> None:
    skips, finite = Skips(2), {"a": jnp.ones(3)}

    class Flag:
        read = False

        def __init__(self, value: float):
            self.value = value

        def __float__(self) -> float:
            self.read = True
            return self.value

    flags = [Flag(value) for value in (0.0, 1.0, 0.0, 5.0, 1.0, 0.0, 1.0, 1.0, 1.0)]
    for step, flag in enumerate(flags):
        found = skips.add(step, {"skipped_for": flag})  # type: ignore[dict-item]
        place = step - STEPS_AHEAD
        assert [other.read for other in flags] == [number <= place for number in range(len(flags))]
        assert [one.step for one in found] == ([place] if place >= 0 and flags[place].value else [])
    assert not skips.too_many() and skips.may_save(finite, at_end=False)
    assert [(one.step, one.reason) for one in skips.finish()] == [(6, 1.0), (7, 1.0), (8, 1.0)]
    assert skips.too_many() and [one.step for one in skips.in_a_row] == [6, 7, 8]
    assert not skips.may_save(finite, at_end=True)
    assert not Skips(2).may_save({"a": jnp.array([1, -jnp.inf])}, at_end=True)
