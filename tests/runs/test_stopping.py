"""A pre-training run that is stopped by a signal in each of its phases: real processes on real text."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from spanbert_jax import signals
from tests.support import pids, runs

SOON = 60.0  # seconds: far more than the time of grace, because a loaded machine is slow


def stopped(
    workdir: Path,
    fields: dict[str, object],
    said: str,
    *numbers: int,
    meanwhile: Callable[[int], None] = lambda pid: None,
) -> str:
    """Starts a run, sends the signals once the run has said this, and returns what the run printed.

    Checks that the run ends soon, with status 75 and one line that says so, without a traceback, and leaves no process.
    meanwhile: is called with the run's process id before the signals, while the process stands still.
    """
    process = runs.start(runs.command(workdir, **fields))
    metrics = workdir / "metrics.jsonl"
    while said not in process.output.read_text() + (metrics.read_text() if metrics.exists() else ""):
        assert process.poll() is None, process.output.read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    meanwhile(process.pid)
    started = pids.children(process.pid)
    process.send_signal(signal.SIGCONT)
    for number in numbers:
        process.send_signal(number)
        time.sleep(2 * signals.SAME_SECONDS)
    printed, _ = process.communicate(timeout=SOON)
    assert process.returncode == 75 and "Traceback" not in printed and "xception" not in printed, printed
    *before, last = printed.splitlines()
    assert last.endswith("; the same command goes on") or last.endswith("; the same command goes on."), printed
    assert not [line for line in before if "goes on" in line], printed
    pids.wait_for_the_end_of(started, SOON)
    return printed


def test_a_run_that_is_stopped_in_every_phase_ends_as_one_that_is_not_and_runs_alone(
    longer: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    uninterrupted, fields = longer
    fields = {name: value for name, value in fields.items() if name != "data__dir"} | {"corpus__workers": 2}
    workdir = tmp_path / "run"

    def second_run(pid: int) -> None:
        files = sorted(path.name for path in workdir.rglob("*"))
        refused = runs.call(workdir, 1, **fields).stderr
        assert f"error: {workdir}: another run is at work there, process {pid} on " in refused
        assert refused.count("\n") == 1 and sorted(path.name for path in workdir.rglob("*")) == files

    stopped(workdir, fields, "Training a vocabulary", signal.SIGHUP)
    assert not (workdir / "data" / "tokenizer").exists()
    stopped(workdir, fields, "Building blocks", signal.SIGTERM, meanwhile=second_run)
    stopped(workdir, fields, "Building blocks", signal.SIGINT, signal.SIGINT)
    assert not (workdir / "data" / "blocks").exists()
    stopped(workdir, fields, "compiling", signal.SIGINT)
    printed = stopped(workdir, fields, "mlm_loss", signal.SIGTERM)  # the first step is done
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert f"Asked to stop: ending at step {saved}\n" in printed and 0 < saved < 60
    assert f"Stopped at step {saved} of 60; the same command goes on." in printed
    runs.call(workdir, **fields)
    ours, theirs = (runs.params(place, 60) for place in (workdir, uninterrupted))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
