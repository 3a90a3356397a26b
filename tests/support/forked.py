"""Processes of spanbert_jax that a server forks, once the server has imported the libraries.

Invariant: a forked process is a process of its own, with its own pid, signals, environment, files and JAX backend. A
forked process shares with the others only the imports, which cost a new process five CPU seconds. JAX has started
nothing in the server, so forking the server is safe (JAX warns of os.fork once a backend is there).

What a library reads from the environment when it is imported, such as the variables JAX_*, is the server's own: the
environment of the process that called `start` first.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
# Not spanbert_jax.main: a forked process runs that module as its program, and the module's flags can be defined once.
_IMPORTED = ("spanbert_jax.runs.pretraining", "spanbert_jax.runs.finetuning", "spanbert_jax.tasks.registry")


class Forked:
    """A forked process, with the part of subprocess.Popen's interface that tests use.

    Standard output and standard error go to one file, and standard input is empty.
    """

    def __init__(self, pid: int, output: Path):
        self.pid, self.output = pid, output
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while the process runs."""
        if self.returncode is None:
            status = _ask("poll", self.pid)
            self.returncode = None if status is None else os.waitstatus_to_exitcode(status)
        return self.returncode

    def communicate(self, timeout: float = 1800) -> tuple[str, None]:
        """Waits for the end. Returns what the process printed, and None."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < until, f"no end after {timeout:g} s: {self.output.read_text()}"
            time.sleep(0.05)
        return self.output.read_text(), None

    def send_signal(self, number: int) -> None:
        """Sends the signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(module: str, *arguments: str, **variables: str) -> Forked:
    """A process of `python -m MODULE ARGUMENTS`, in the environment of this process and with more variables."""
    descriptor, output = tempfile.mkstemp(prefix="forked_")
    os.close(descriptor)
    atexit.register(os.unlink, output)
    pid = _ask("start", [module, *arguments], {**os.environ, **variables}, output)
    assert pid is not None
    return Forked(pid, Path(output))


def _ask(*request: object) -> int | None:
    """The server's answer."""
    server = _server()
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer: int | None = json.loads(server.stdout.readline())
    return answer


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The server, which ends with this process."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # closes the server's standard input, and waits for its end
    return server


def _serve(requests: IO[str]) -> list[str]:
    """Forks a process for each "start", and answers a "poll" with a process's status, or null while the process runs.

    Returns the module and its arguments in a forked process. Ends the server where there are no more requests.
    """
    for line in requests:
        what, *details = json.loads(line)
        if what == "poll":
            ended, status = os.waitpid(details[0], os.WNOHANG)
            print(status if ended else "null", flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            arguments, environment, output = details
            _enter(environment, output)
            return list(arguments)
        print(pid, flush=True)
    raise SystemExit


def _enter(environment: dict[str, str], output: str) -> None:
    """Gives a forked process its environment, its standard input and its standard output, and the usual reaction to
    signals, which a test runner in the background or under nohup ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    with open(os.devnull) as nothing, open(output, "wb") as file:
        os.dup2(nothing.fileno(), 0)
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)


if __name__ == "__main__":
    for _name in _IMPORTED:
        importlib.import_module(_name)
    # As in tests/conftest.py: the collector finds next to nothing, and took a fifth of a forked process's CPU seconds.
    gc.set_threshold(50_000, 20, 20)
    gc.freeze()
    _module, *sys.argv[1:] = _serve(sys.stdin)
    runpy.run_module(_module, run_name="__main__", alter_sys=True)
