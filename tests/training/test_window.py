"""The metrics of a window: those of its steps, however often the run was stopped in the middle of one."""

import json
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from spanbert_jax.config import MeshConfig
from spanbert_jax.training import sharding, window
from spanbert_jax.training.step import BatchSize
from spanbert_jax.training.window import SPEEDS, Row, Window

STEPS, EVERY, EVALUATED = 20, 4, (6, 12, 20)
SKIPPED = (3, 4, 5, 13)  # all steps of a window among them
SIZE = BatchSize(8, 1e9, "")


def sums_of_steps() -> list[dict[str, Any]]:
    """fp32 sums whose total depends on the order of the additions."""
    rng = np.random.default_rng(0)
    return [
        {
            "loss": np.float32(rng.normal() * 10.0 ** rng.integers(-3, 6)),
            "pieces": np.float32(rng.integers(100, 200)),
            "gradient_norm": np.float32(rng.random()),
            "learning_rate": np.float32(step / STEPS),
            "objective": np.float32(rng.random()),
            "skipped_for": np.float32(step in SKIPPED),
        }
        for step in range(STEPS)
    ]


def lines(sums: list[dict[str, Any]], cuts: tuple[int, ...]) -> list[tuple[int, dict[str, float], list[int]]]:
    """What a run writes that is stopped and goes on at the steps `cuts`, each time from the JSON of a checkpoint: the
    step, the metrics and the skipped steps of each window."""
    mesh = sharding.make_mesh(MeshConfig())
    before: Mapping[str, Any] = {}
    written: list[Row] = []
    for first, end in zip((0, *cuts), (*cuts, STEPS), strict=True):
        open_window = Window(first, EVERY, lambda totals: {"loss": totals["loss"]}, mesh, before)
        for step in range(first, end):
            if step in EVALUATED and step > first:
                written += open_window.finish(step)
                open_window.start()
            written += open_window.add(step + 1, sums[step], SIZE)
        written += open_window.finish(end) if end in EVALUATED else open_window.full()
        before = json.loads(json.dumps(open_window.state()))
    return [
        (
            row.step,
            {name: value for name, value in row.metrics.items() if name not in SPEEDS},
            [event.step for event in row.events],
        )
        for row in written
    ]


def test_the_metrics_are_those_of_the_steps_bit_for_bit_wherever_the_run_was_cut() -> None:
    sums = sums_of_steps()
    ends = sorted({1, *range(EVERY, STEPS + 1, EVERY), *EVALUATED})
    expected = []
    for begin, end in zip((0, *ends), ends, strict=False):
        loss = norm = 0.0
        taken = [step for step in range(begin, end) if step not in SKIPPED]
        for step in taken:
            loss, norm = loss + float(sums[step]["loss"]), norm + float(sums[step]["gradient_norm"])
        row = {"train/learning_rate": float(sums[end - 1]["learning_rate"]), "train/skipped": end - begin - len(taken)}
        if taken:
            row |= {"train/loss": loss, "train/gradient_norm": norm / len(taken)}
        expected.append((end, row, [step for step in range(begin, end) if step in SKIPPED]))
    for cuts in ((), *((cut,) for cut in range(1, STEPS)), (2, 3, 9, 10, 11, 17), (5, 6, 7)):
        assert lines(sums, cuts) == expected, cuts


def test_the_speeds_of_a_window_that_was_cut_are_those_of_the_steps_that_were_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, sums = 0.0, sums_of_steps()
    monkeypatch.setattr(window, "time", types.SimpleNamespace(monotonic=lambda: now))
    cut = Window(5, 8, lambda totals: {}, sharding.make_mesh(MeshConfig()), {"sums": {"steps": 5.0, **sums[0]}})
    for step in (5, 6, 7):
        now += 2 if step > 5 else 1000  # the first step waits for the restore, the data and the compiler
        cut.add(step + 1, sums[step], SIZE)
    ((end, row, _),) = cut.full()
    timed = float(sums[6]["pieces"] + sums[7]["pieces"])
    assert end == 8 and row["train/pieces_per_second"] == timed / 4
    assert (row["train/seconds_per_step"], row["train/sequences_per_second"]) == (2, 4)
    alone = Window(7, 8, lambda totals: {}, sharding.make_mesh(MeshConfig()), {"sums": {"steps": 3.0, **sums[0]}})
    alone.add(8, sums[7], SIZE)
    assert not set(SPEEDS).intersection(alone.full()[0].metrics)
