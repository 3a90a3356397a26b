"""Signals that ask a command to stop, sent to real processes (tests/support/signalled.py). Runs are stopped in
tests/runs/test_stopping.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spanbert_jax import signals
from tests.support import forked
from tests.support.runs import ROOT, wait_for

STOPPED, AT_ONCE = "stopped; the same command goes on\n", "stopped at once; the same command goes on\n"


def start(case: str, folder: Path) -> forked.Forked:
    return forked.start("tests.support.signalled", case, str(folder))


def stop(case: str, folder: Path, *numbers: int) -> tuple[int | None, str]:
    """(exit status, output) of a program that gets the signals once it is ready, each long after the one before."""
    process = start(case, folder)
    wait_for(folder / "ready", process)
    for number in numbers:
        process.send_signal(number)
        time.sleep(2 * signals.SAME_SECONDS)
    printed, _ = process.communicate(timeout=30)  # no program ends by itself before
    return process.returncode, printed


@pytest.mark.parametrize("number", signals.SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_cleans_up_and_ends_in_one_line_with_status_75(number: signal.Signals, tmp_path: Path) -> None:
    assert stop("waits", tmp_path, number) == (75, STOPPED)
    assert not (tmp_path / "half").exists()


def test_a_second_signal_does_not_wait_for_the_clean_up(tmp_path: Path) -> None:
    assert stop("cleans_up_for_long", tmp_path, signal.SIGINT, signal.SIGINT) == (75, AT_ONCE)
    assert (tmp_path / "cleaning").exists()


def test_a_second_signal_does_not_wait_for_a_save(tmp_path: Path) -> None:
    process = start("saves_for_long", tmp_path)
    wait_for(tmp_path / "ready", process)  # the program has sent the first signal to itself
    time.sleep(2 * signals.SAME_SECONDS)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == AT_ONCE and process.returncode == 75


def test_a_main_thread_in_c_is_ended_after_the_time_of_grace(tmp_path: Path) -> None:
    assert stop("is_in_c_for_long", tmp_path, signal.SIGTERM) == (75, AT_ONCE)


def test_a_signal_that_is_sent_twice_at_once_is_one_request_and_a_save_has_its_time(tmp_path: Path) -> None:
    process = start("saves", tmp_path)
    assert process.communicate(timeout=30)[0] == "saved\n" and process.returncode == 75


def test_a_block_that_must_not_be_interrupted_ends_before_the_interrupt(tmp_path: Path) -> None:
    process = start("is_interrupted_after_a_block", tmp_path)
    assert process.communicate(timeout=30)[0] == f"the block ended\n{STOPPED}" and process.returncode == 75
    assert not (tmp_path / "half").exists()


def test_a_signal_after_the_work_ends_the_process_at_once_with_the_work_s_status(tmp_path: Path) -> None:
    assert stop("is_done", tmp_path, signal.SIGTERM) == (3, "")


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    """As nohup has it."""
    process = start("ignores", tmp_path)
    assert process.communicate(timeout=30)[0] == "goes on\n" and process.returncode == 0


def test_a_run_whose_terminal_was_closed_saves_although_it_prints(tmp_path: Path) -> None:
    script = f"""
import os, pty, signal, sys, time
pid, terminal = pty.fork()
if pid == 0:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-m", "tests.support.signalled", "loses_its_terminal", {str(tmp_path)!r}])
while not os.path.exists({str(tmp_path / "ready")!r}):
    time.sleep(0.05)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "GLIBC_TUNABLES": ""}, timeout=60
    )
    assert done.returncode == 0 and (tmp_path / "saved").exists()
