"""How a run is asked to stop.

Invariant: once there is a step to save, a request interrupts neither a step nor a save: the loop reads the request
between two steps. A request ends an evaluation, which the next start makes up for. Before there is a step to save, a
signal ends the run as it ends any command (spanbert_jax/signals.py).
"""

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import jax

from spanbert_jax import signals

_T = TypeVar("_T")


class _Asked(KeyboardInterrupt):
    """A request, where it ends the work under way."""


class StopSignals:
    """Turns SIGTERM, SIGHUP and Ctrl-C into a request to stop at the next step.

    With several processes the signals are the lifeline's (training/lifeline.py), which stops all at the same step.
    """

    def __init__(self) -> None:
        self.asked = False
        self._stack = contextlib.ExitStack()
        self._waits = self._interrupts = False

    def __enter__(self) -> "StopSignals":
        return self

    def wait_for_saves(self) -> None:
        """From now on there is something to save, and a signal is a request. (A second call does nothing.)"""
        if self._waits:
            return
        self._waits = True
        self._stack.enter_context(signals.patience())
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in signals.not_ignored():
                self._stack.callback(signal.signal, number, signal.signal(number, self._ask))

    def unless_asked(self, work: Callable[[], _T]) -> _T | None:
        """The result of work that the next start can do again; None where a request came before, or ends it. (With
        several processes a request waits for the work.)"""
        if self.asked:
            return None
        self._interrupts = True
        try:
            return work()
        except _Asked:
            return None
        finally:
            self._interrupts = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        interrupts, self.asked = self._interrupts and not self.asked, True
        if not signals.handled():  # a notebook: a second Ctrl-C interrupts it
            self._stack.close()
        if interrupts:
            raise _Asked

    def __exit__(self, *_: object) -> None:
        self._stack.close()
