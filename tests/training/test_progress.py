"""The display of a run's progress, with a clock that the test sets."""

import types

import pytest

from spanbert_jax.training import progress


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
