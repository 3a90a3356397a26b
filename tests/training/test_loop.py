"""The loop where a test can see it: what a request to stop and a full disk do, and what the display says."""

import itertools
import json
import os
import re
import signal
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from spanbert_jax.training import loop, progress
from spanbert_jax.training.checkpoint import find_checkpoint
from spanbert_jax.training.window import SPEEDS
from tests.support import forked
from tests.support.recipes import config_of, recipe_of
from tests.support.synthetic import random_batch


def rows(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the speeds."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that nobody stopped, with windows of two steps."""
    workdir = tmp_path_factory.mktemp("runs")
    config = config_of(checkpoint_every=100, log_every=2)
    assert loop.run(config, recipe_of(config, []), epath.Path(workdir)).finished
    return workdir


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_request_to_stop_ends_after_the_step_under_way_with_a_checkpoint(
    number: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    config = config_of(checkpoint_every=100, log_every=2)
    workdir, asked = epath.Path(tmp_path), list[int]()
    before = signal.getsignal(number)

    def stop(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), number)

    result = loop.run(config, recipe_of(config, asked, stop), workdir)
    assert (result.step, result.finished) == (3, False) and asked == [0, 1, 2]
    assert find_checkpoint(workdir).name == "3" and signal.getsignal(number) is before
    assert loop.run(config, recipe_of(config, asked), workdir).finished
    assert asked == [0, 1, 2, 3]
    assert rows(tmp_path) == rows(uninterrupted) and [row["step"] for row in rows(tmp_path)] == [1, 2, 4, 4]


def test_a_request_ends_an_evaluation_and_the_next_start_makes_up_for_it(tmp_path: Path) -> None:
    """A request comes just before the first evaluation, and within the last one; each is a start of the run."""
    config = config_of(checkpoint_every=100, eval_every=2, log_every=3)
    evaluated = 0

    def stop(wanted: bool) -> None:
        if wanted:
            os.kill(os.getpid(), signal.SIGTERM)

    def run(workdir: Path, step: int, evaluation: int) -> tuple[int, bool]:
        """A start that is asked to stop in the step and the evaluation of these numbers."""

        def evaluate(params: Any, layout: Any, show: Any) -> dict[str, float]:
            nonlocal evaluated
            evaluated += 1
            stop(evaluated == evaluation)
            return {"held_out/loss": float(np.mean(jax.tree.leaves(params)[0]))}

        recipe = recipe_of(config, [], lambda asked: stop(asked == step))
        return loop.run(config, recipe._replace(evaluate=evaluate), epath.Path(workdir))[:2]

    assert run(tmp_path / "stopped", 1, 0) == (2, False) and evaluated == 0
    assert run(tmp_path / "stopped", -1, 2) == (4, False) and evaluated == 2
    assert find_checkpoint(epath.Path(tmp_path / "stopped")).name == "4"
    for workdir in ("stopped", "stopped", "other"):  # the second one as after a kill at the very end
        assert run(tmp_path / workdir, -1, 0) == (4, True)
    stopped, other = (rows(tmp_path / workdir) for workdir in ("stopped", "other"))
    assert stopped == other and [row["step"] for row in stopped if "held_out/loss" in row] == [2, 4]


def test_the_time_left_counts_neither_compiling_nor_the_wait_for_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a clock of the test: an hour for the first batch and for each of two compilations, 10 s for any later batch.

    A window is shown three steps after its last step, so the first estimate is twice what the run takes.
    """
    config, now = config_of(steps=20, log_every=2), 0.0
    for module in (loop, progress):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now, time=time.time))
    recipe = recipe_of(config, [])

    def totals(batch: Any) -> Any:
        nonlocal now
        now += 3600
        return recipe.objective.totals(batch)

    def batches(layout: Any, first: int, last: int) -> Iterator[Any]:
        nonlocal now
        for step in range(first, last):
            now += 10 if step else 3600
            yield random_batch(config, step, rows=8 if step < 12 else 4)

    slow = recipe._replace(objective=recipe.objective._replace(totals=totals), train_batches=batches)
    loop.run(config, slow, epath.Path(tmp_path))
    shown = re.findall(r"(\d+)% .* ([\d:]+) left", capsys.readouterr().out)
    assert now == 3600 * 3 + 190 and len(shown) > 5
    for done, left in shown:
        minutes, seconds = map(int, left.split(":"))  # no hours
        assert 60 * minutes + seconds <= 2.5 * 2 * (100 - int(done)), (done, left)


def test_the_time_left_does_not_count_an_evaluation_that_an_earlier_start_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a clock of the test: a step takes 10 s, and an evaluation an hour. A request to stop comes before the one of
    step 10."""
    config, now = config_of(steps=20, log_every=2, eval_every=10, checkpoint_every=100), 0.0
    for module in (loop, progress):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now, time=time.time))

    def wait(step: int) -> None:
        nonlocal now
        now += 10
        if step == 9 and now < 3600:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluate(params: Any, layout: Any, show: Any) -> dict[str, float]:
        nonlocal now
        now += 3600
        return {}

    recipe = recipe_of(config, [], wait)._replace(evaluate=evaluate)
    assert loop.run(config, recipe, epath.Path(tmp_path))[:2] == (10, False)
    capsys.readouterr()
    assert loop.run(config, recipe, epath.Path(tmp_path))[:2] == (20, True)
    shown = re.findall(r"step (1[1-9]) .* ([\d:]+) left", capsys.readouterr().out)
    assert len(shown) > 5
    for step, left in shown:
        minutes, seconds = map(int, left.split(":"))  # no hours
        assert 60 * minutes + seconds <= 2 * 10 * (20 - int(step)), (step, left)


def test_slow_steps_and_evaluations_are_shown_as_they_go_on_with_the_metrics_of_the_last_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a clock of the test, on which a step takes 10 s, and half an evaluation too."""
    config, now = config_of(steps=12, log_every=5), 0.0
    for module in (loop, progress):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now, time=time.time))

    def wait(step: int) -> None:
        nonlocal now
        now += 10

    def evaluate(params: Any, layout: Any, show: Callable[[float], None]) -> dict[str, float]:
        for half in (1, 2):
            wait(12)
            show(half / 2)
        return {}

    recipe = recipe_of(config, [], wait)._replace(
        evaluate=evaluate, describe=lambda metrics: f"gradient {metrics.get('train/gradient_norm')}"
    )
    loop.run(config, recipe, epath.Path(tmp_path))
    said = capsys.readouterr().out
    norms = [str(row["train/gradient_norm"]) for row in rows(tmp_path)[:2]]  # of the first step, and of steps 2 to 5
    shown = re.findall(r"% · step (\d+)(?: · gradient ([\d.]+))? · ", said)
    assert shown[:12] == [(str(step), norms[step >= 8]) for step in range(1, 13)]
    assert re.findall(r"step 12 · evaluating, (\d+)% done", said) == ["50", "100"]


def test_a_full_disk_is_one_line_with_the_path_and_the_same_run_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    process = forked.start("tests.support.full_disk", str(tmp_path))
    said, _ = process.communicate()
    assert process.returncode == 1 and said.count("\n") == 1, said
    assert said.startswith(f"error: {tmp_path}/checkpoints: cannot be written (File too large; ")
    assert f"GB are free in {tmp_path}); make room and start again" in said
    config = config_of(checkpoint_every=1, log_every=1)
    assert loop.run(config, recipe_of(config, []), epath.Path(tmp_path)).finished
    assert find_checkpoint(epath.Path(tmp_path)).name == "4"


def test_a_clock_that_jumps_by_days_breaks_no_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is days before or after the one before."""
    seconds, jumps = time.time, itertools.cycle([0, 3, -9, 400, 1])  # days

    def jumping() -> float:
        return seconds() + 86_400 * next(jumps)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jumping()))
    config = config_of(checkpoint_every=1)
    assert loop.run(config, recipe_of(config, []), epath.Path(tmp_path)).finished
    asked: list[int] = []
    assert loop.run(config_of(checkpoint_every=1), recipe_of(config, asked), epath.Path(tmp_path)).finished
    assert asked == [] and find_checkpoint(epath.Path(tmp_path)).name == "4"
