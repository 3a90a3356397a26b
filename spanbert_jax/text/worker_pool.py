"""A pool of worker processes.

Invariant: results come back in the order of the tasks, whatever the number of processes, and at most a few tasks per
process are under way at any time. A worker process imports only the modules of the functions it runs: no TensorFlow and
no JAX.
"""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

from spanbert_jax.errors import UserError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
AHEAD = 3  # the most tasks under way, for each process


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
        self._pool = ProcessPoolExecutor(
            self.count, multiprocessing.get_context("spawn"), initializer=_start, initargs=(function,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """Yields `function(task)` for every task, in order.

        A task is taken only when a result is taken. Raises a task's own error, and a UserError where a process was
        killed.
        """
        under_way: collections.deque[Future[_Result]] = collections.deque()
        try:
            for task in tasks:
                with _no_main_module():
                    under_way.append(self._pool.submit(function, task))
                if len(under_way) >= AHEAD * self.count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of the {self.count} processes that tokenise was killed, most likely for want of memory; "
                "try fewer: --config.corpus.workers=1"
            ) from error


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Hides the main module while processes start: they would import it, and with it JAX and TensorFlow."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_function: Callable[[Any], Any] | None = None  # in a worker process, the `function` of its `Workers`


def _start(function: Callable[[Any], Any] | None) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles Ctrl-C, and ends its processes.
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
