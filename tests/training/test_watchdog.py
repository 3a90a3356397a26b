"""The watchdog: a step that takes too long is reported with all stacks, and ends the run where that is asked for."""

import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from spanbert_jax.training import watchdog
from spanbert_jax.training.watchdog import STALLED, TIMES, Watchdog
from spanbert_jax.training.window import STEPS_AHEAD
from tests.support import forked

MEDIAN = 0.002


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK", 0.01)
    monkeypatch.setattr(watchdog, "STOOD_STILL", 60.0)
    monkeypatch.setattr(watchdog, "LEAST_SECONDS", 0.05)


def steps(dog: Watchdog, first: int, count: int, seconds: float = MEDIAN) -> None:
    for step in range(first, first + count):
        dog.begin(step)
        time.sleep(seconds)
        dog.end()


def wait_for(text: str, capfd: pytest.CaptureFixture[str], also: Callable[[], None] = lambda: None) -> str:
    """Waits until the text was printed; returns all that was printed meanwhile."""
    printed = ""
    for _ in range(6000):
        printed += capfd.readouterr().err
        if text in printed:
            return printed
        also()
        time.sleep(0.01)
    raise AssertionError(f"{text!r} was not printed: {printed!r}")


def test_a_step_of_twenty_times_the_median_is_reported_once_with_the_stack_of_every_thread(
    capfd: pytest.CaptureFixture[str],
) -> None:
    held = threading.Event()

    def waits_in_vain() -> None:
        held.wait()

    other = threading.Thread(target=waits_in_vain)
    other.start()
    with Watchdog(0, "process 1 of 2: ") as dog:
        steps(dog, 0, STEPS_AHEAD + 20)
        dog.begin(1234)
        dog.doing = "the device"
        printed = wait_for("test_a_step_of_twenty_times", capfd)
        time.sleep(0.1)
        dog.end()
    held.set()
    other.join()
    printed += capfd.readouterr().err
    assert printed.count("warning: ") == 1, printed
    assert printed.startswith("process 1 of 2: warning: step 1,234 has taken ") and "waits for the device" in printed
    assert "waits_in_vain" in printed and printed.count("hread 0x") >= 3


def test_compiling_evaluating_and_saving_are_no_step_and_neither_are_steps_that_fill_the_queue(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Watchdog(0, "") as dog:
        for first in range(0, 60, 6):
            steps(dog, first, STEPS_AHEAD, 0.0)  # whose median would be next to nothing
            steps(dog, first + STEPS_AHEAD, 3, 0.01)
            dog.begin(first + 6)
            dog.leave()
            if first == 48:
                time.sleep(2 * TIMES * 0.01)
        dog.begin(60)
        time.sleep(3 * 0.01)
        dog.end()
    assert capfd.readouterr().err == ""


def test_a_process_that_was_suspended_has_not_stalled(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a clock of the test, which jumps by an hour, as it seems to a process after SIGCONT."""
    now = 0.0
    monkeypatch.setattr(watchdog, "time", types.SimpleNamespace(monotonic=lambda: now))
    with Watchdog(50.0, "") as dog:
        dog.begin(7)
        time.sleep(0.1)
        now = 3600.0
        time.sleep(0.2)
        dog.end()
    assert capfd.readouterr().err == ""


def test_a_run_that_hangs_ends_with_a_status_of_its_own_and_the_same_run_goes_on(tmp_path: Path) -> None:
    process = forked.start("tests.support.stalled_run", str(tmp_path), "2")
    printed, _ = process.communicate()
    assert process.returncode == STALLED, printed
    assert "warning: step 2 has taken " in printed and "waits for its batch; the stacks of all threads:" in printed
    assert "stalled_run.py" in printed and "error: step 2 stalled (config.train.stall_seconds)" in printed
    again = forked.start("tests.support.stalled_run", str(tmp_path), "-1")
    printed, _ = again.communicate()
    assert again.returncode == 0 and "went on from step" in printed, printed
