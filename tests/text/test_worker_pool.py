"""Results in order, tasks bounded, errors and deaths told, and no TensorFlow or JAX in a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.text import worker_pool
from spanbert_jax.text.documents import find_files
from spanbert_jax.text.worker_pool import Workers
from tests.support import pids

# What processes run below are functions of installed modules: this file has no module name to import again.


def test_results_come_in_order_and_tasks_are_taken_as_results_are() -> None:
    taken = 0

    def naps() -> Iterator[float]:
        nonlocal taken
        for i in range(40):
            taken += 1
            yield 0.02 if i % 4 == 0 else 0.0

    with Workers(2) as pool:
        for done, _ in enumerate(pool.map(time.sleep, naps()), start=1):
            assert taken - done <= 2 * worker_pool.AHEAD
        assert list(pool.map(abs, range(-9, 0))) == list(range(9, 0, -1))


def test_processes_import_neither_tensorflow_nor_jax() -> None:
    main = sys.modules["__main__"]
    with Workers(1) as pool:
        command = "[m for m in __import__('sys').modules if m in ('tensorflow', 'jax', 'google.protobuf', 'pytest')]"
        assert list(pool.map(eval, [command])) == [[]]
    assert sys.modules["__main__"] is main


def test_a_users_mistake_comes_through() -> None:
    with Workers(1) as pool, pytest.raises(UserError, match="names no file"):
        list(pool.map(find_files, [","]))


def test_a_killed_process_is_a_clear_error() -> None:
    with Workers(1) as pool, pytest.raises(UserError, match=r"was killed.*config.corpus.workers=1"):
        list(pool.map(signal.raise_signal, [signal.SIGKILL]))


def test_processes_end_with_a_killed_parent() -> None:
    program = (
        "import os, signal; from spanbert_jax.text.worker_pool import Workers\n"
        "print(next(Workers(1).map(eval, [\"__import__('os').getpid()\"])), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.returncode == -signal.SIGKILL
    pids.wait_for_the_end_of([int(parent.stdout)])


def ended(*numbers: tuple[signal.Signals, bool]) -> tuple[int, str]:
    """(exit status, errors) of a program that starts two worker processes and gets the signals: by itself with its
    group, where True, or only its workers. Checks that no process is left."""
    program = (
        "import signal, time; from spanbert_jax import cli; from spanbert_jax.text.worker_pool import Workers\n"
        "def work():\n"
        "    with Workers(2) as pool:\n"
        "        print('starting', flush=True)\n"
        "        list(pool.map(time.sleep, [60, 60]))\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.run(lambda: cli.status(work))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout and parent.stdout.readline() == "starting\n"
        while len(started := pids.children(parent.pid)) < 3:  # multiprocessing's own, which ignores signals, and two
            time.sleep(0.001)
        for number, to_the_group in numbers:
            if to_the_group:
                os.killpg(parent.pid, number)
            else:
                while os.getpgid(started[-1]) == parent.pid:  # a process that still starts keeps the signal for later
                    time.sleep(0.001)
                os.kill(started[-1], number)
                time.sleep(0.2)
        said = parent.communicate(timeout=60)[1]
    pids.wait_for_the_end_of(started)
    return parent.returncode, said


def test_ctrl_c_while_processes_start_ends_them_and_their_parent_in_one_line() -> None:
    """Ctrl-C is sent to the group, to processes too that have not come to this program's code yet."""
    assert ended((signal.SIGINT, True)) == (75, "stopped; the same command goes on\n")


def test_a_signal_to_every_process_of_a_job_that_ends_a_worker_first_is_no_lack_of_memory() -> None:
    assert ended((signal.SIGTERM, False), (signal.SIGTERM, True)) == (75, "stopped; the same command goes on\n")
