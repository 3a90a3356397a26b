"""Results in order, tasks bounded, errors and deaths told, and no TensorFlow or JAX in a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.text import worker_pool
from spanbert_jax.text.documents import find_files
from spanbert_jax.text.worker_pool import Workers

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
    deadline = time.monotonic() + 10
    while is_running(int(parent.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")  # no one may reap it here
