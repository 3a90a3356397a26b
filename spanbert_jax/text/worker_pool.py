"""A pool of worker processes.

Invariant: results come back in the order of the tasks, whatever the number of processes, and at most a few tasks per
process are under way at any time. A worker process imports only the modules of the functions it runs: no TensorFlow and
no JAX. It ends with its parent, which alone acts on signals to stop.
"""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

from spanbert_jax import signals
from spanbert_jax.errors import UserError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
AHEAD = 3  # the most tasks under way, for each process
_SIGNAL_SECONDS = 1.0
# Multiprocessing's process that removes the semaphores of a process that ended at once does so with a warning.
_NO_LEAKS = "ignore:resource_tracker"


class Workers:
    """A pool of processes; use as a context manager."""

    def __init__(self, count: int, function: Callable[[Any], Any] | None = None) -> None:
        """Starts processes.

        Args:
          count: of processes; 0 for one per core.
          function: the function that `call` calls. It is sent to each process once, so it may hold much data.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.count = count or cores or 1
        if _NO_LEAKS not in sys.warnoptions:
            sys.warnoptions.append(_NO_LEAKS)
        self._pool = ProcessPoolExecutor(
            self.count, multiprocessing.get_context("spawn"), initializer=_start, initargs=(function,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an interrupt nobody waits for the tasks under way: the processes end with this one.
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._pool.shutdown(wait=not interrupted, cancel_futures=True)

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """Yields `function(task)` for every task, in order.

        A task is taken only when a result is taken. Raises a task's own error, and a UserError where a process was
        killed.
        """
        under_way: collections.deque[Future[_Result]] = collections.deque()
        try:
            for task in tasks:
                with _starting():
                    under_way.append(self._pool.submit(function, task))
                if len(under_way) >= AHEAD * self.count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            # A launcher's SIGTERM to every process of a job may end a worker before this process has got it.
            time.sleep(_SIGNAL_SECONDS)
            raise UserError(
                f"one of the {self.count} processes that tokenise was killed, most likely for want of memory; "
                "try fewer: --config.corpus.workers=1"
            ) from error


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """For the moment in which processes start. Hides the main module: the processes would import it, and with it JAX
    and TensorFlow. Blocks signals: the processes inherit the block, which `_start` ends. No interrupt cuts off what a
    process reads from this one at its start."""
    main = sys.modules["__main__"]
    with signals.uninterrupted():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


_function: Callable[[Any], Any] | None = None  # in a worker process, the `function` of its `Workers`


def _start(function: Callable[[Any], Any] | None) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.setpgrp()  # Ctrl-C and a launcher's SIGTERM go to the parent's whole group
    for number in (signal.SIGINT, signal.SIGHUP):  # those that came during the start
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent has ended: a killed parent cannot stop its processes, which would wait on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def call(task: Any) -> Any:
    """Calls the `function` of this process's `Workers`; to be given to `Workers.map`."""
    assert _function is not None
    return _function(task)
