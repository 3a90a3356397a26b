"""Programs for tests of signals, each a function that `cli.run` runs: what its first words say is what it shows.

python -m tests.support.signalled CASE FOLDER
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from spanbert_jax import cli, signals

FOLDER = Path(sys.argv[-1])


def ready() -> None:
    """Tells the test that the program has come to the place in question."""
    (FOLDER / "ready").touch()


@contextlib.contextmanager
def half_a_file(seconds: float = 0) -> Iterator[None]:
    """A file that is removed at the end, as `written_aside` does, and a clean-up that takes so many seconds."""
    (FOLDER / "half").touch()
    try:
        yield
    finally:
        (FOLDER / "half").unlink()
        (FOLDER / "cleaning").touch()
        time.sleep(seconds)


def waits() -> None:
    with half_a_file():
        ready()
        time.sleep(60)


def cleans_up_for_long() -> None:
    signals.GRACE_SECONDS = 1000.0
    with half_a_file(60):
        ready()
        time.sleep(60)


def is_in_c_for_long() -> None:
    """The main thread is in C, and signals go to another thread, so that none ends the sleep."""
    signals.GRACE_SECONDS = 0.5
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    ready()
    ctypes.CDLL(None).sleep(60)


def saves() -> int:
    """As a loop that has something to save: the first signal is a request, twice sent as by `timeout`."""
    signals.GRACE_SECONDS = 0.1
    asked: list[int] = []
    with signals.patience():
        for number in signals.not_ignored():
            signal.signal(number, lambda number, frame: asked.append(number))
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        time.sleep(1.0)
    print("saved" if set(asked) == {signal.SIGTERM, signal.SIGHUP} else asked)
    return cli.STOPPED_EARLY


def saves_for_long() -> None:
    with signals.patience():
        for number in signals.not_ignored():
            signal.signal(number, lambda number, frame: ready())
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.1)


def is_interrupted_after_a_block() -> None:
    with half_a_file():
        with signals.uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            print("the block ended")
        print("the block was left")


def is_done() -> int:
    atexit.register(time.sleep, 60)
    atexit.register(ready)
    return 3


def ignores() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.5)
    print("goes on")


def loses_its_terminal() -> None:
    """As a run in a terminal that is closed: the program may go on to print while it saves."""
    asked: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, frame: asked.append(number))
    with signals.patience():
        ready()
        while not asked:
            time.sleep(0.05)
        time.sleep(0.2)
        print("saving", flush=True)
        (FOLDER / "saved").touch()


if __name__ == "__main__":
    case = sys.argv[-2]
    if case == "ignores":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cli.run(lambda: cli.status(globals()[case]))
