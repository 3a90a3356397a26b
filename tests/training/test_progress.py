"""The display of a run's progress, with a clock that the test sets, and the files of its metrics."""

import json
import shutil
import types
from pathlib import Path

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from spanbert_jax.training import progress
from spanbert_jax.training.progress import MetricsWriter


def test_the_time_left_counts_no_second_that_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now))
    with progress.Stage("Training", start=0.2) as stage:
        now = 100.0
        stage.skip(100)
        stage.update(0.3, "compiled")  # no estimate yet
        now = 120.0
        stage.update(0.4, "two tenths in 20 s")
    assert capsys.readouterr().out.splitlines() == [
        "Training ...",
        "Training:  30% · compiled · 1:40",
        "Training:  40% · two tenths in 20 s · 1:00 left",
        "Training: 2:00 · two tenths in 20 s",
    ]


def steps_shown(workdir: Path) -> list[int]:
    """The steps that TensorBoard shows."""
    events = EventAccumulator(str(workdir / "tensorboard"), {SCALARS: 0})
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_a_kill_after_a_save_loses_no_step_before_it_and_repeats_none_after_it(tmp_path: Path) -> None:
    """The files are copied as they are on the disk at the time of the kill, behind the back of the writer."""
    (tmp_path / "first").mkdir()
    writer = MetricsWriter(epath.Path(tmp_path / "first"), 0)
    for step in range(1, 40):
        writer.write(step, {"train/loss": 1 / step})
        if step in (30, 35):
            writer.flush()  # before a save, of which the second is not finished
    killed = shutil.copytree(tmp_path / "first", tmp_path / "killed")
    writer.close()
    (events,) = (killed / "tensorboard").iterdir()
    with events.open("ab") as file:
        file.write(events.read_bytes()[:7])  # a record that is cut off
    with (killed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 40, "train/lo')
    resumed = MetricsWriter(epath.Path(killed), 30)
    for step in range(31, 51):
        resumed.write(step, {"train/loss": 1 / step})
    resumed.close()
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "train/loss": 1 / step} for step in range(1, 51)]
    assert steps_shown(killed) == list(range(1, 51))


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 3, "l',
        b"\xff\xfe{",
        b'{"step": 2, "\xe4": 1}',
        b"[" * 100_000,
        b"[1, 2]",
        b"null",
        b"\0" * 4096,
        b'{"step": "2"}',
        b'{"step": true}',
        b'{"loss": 1}',
        b'{"step": ' + b"9" * 5000 + b"}",
        b"",
    ],
    ids=lambda damage: repr(damage[:12]),
)
def test_damaged_lines_of_metrics_are_dropped_and_the_others_kept(damage: bytes, tmp_path: Path) -> None:
    path = epath.Path(tmp_path / "metrics.jsonl")
    kept = ['{"step": 1, "loss": 3.5}', '{"step": 2, "loss": NaN, "blocks": [1]}']
    path.write_bytes(b"\n".join([kept[0].encode(), damage, kept[1].encode(), b'{"step": 9}', damage]))
    writer = progress.MetricsWriter(epath.Path(tmp_path), 2)
    writer.write(3, {"loss": 2.0})
    writer.close()
    assert path.read_text().splitlines() == [*kept, '{"step": 3, "loss": 2.0}']
