"""SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal): each asks a command to stop, and all three do so alike.

Invariant: the first signal raises KeyboardInterrupt in the main thread, where the code there does not handle signals
itself. A second signal ends the process at once, with STOPPED_EARLY. The first one does so too where the main thread
has not ended after GRACE_SECONDS and has not asked for patience. No half-written file stays behind, because files and
directories are written aside. A signal that is ignored when the program starts, as under nohup, stays ignored.

Python runs a handler in the main thread alone, and only between two of the thread's instructions: not while XLA
compiles a program. A thread therefore watches a pipe, to which Python writes the number of each signal when it comes.
"""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

STOPPED_EARLY = 75  # EX_TEMPFAIL: the program was asked to stop, and the same command goes on from there
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 10.0
# `timeout`, launchers and shells send a signal to a process and to its group, so that the process gets two of them.
SAME_SECONDS = 0.25  # after the first signal: signals that come in this time count as the same one
_BLOCK_SECONDS = 2.0  # that a second signal waits for a block that must not be interrupted


class _Program:
    """What this process knows of its signals."""

    def __init__(self) -> None:
        self.handles = False  # whether `handle` was called: in a program, but not in a notebook or a test
        self.came = False  # whether a signal has come
        self.raised = False  # whether the first signal has interrupted the main thread, or will do so after its block
        self.blocked = self.late = False  # in a block that must not be interrupted; whether the signal came there
        self.block = threading.Lock()  # held in such a block
        self.patient = 0  # blocks that have asked for patience
        self.impatient_since = -math.inf  # when the last of these ended
        self.done: int | None = None  # the exit status of a program whose work is done
        self.asked: Callable[[bool], None] | None = None  # of `hand_over`
        self.farewell: Callable[[int], None] = lambda status: None
        self.own = False  # whether the next signal that `_watch` reads is that of `interrupt`


_program = _Program()


def handle() -> None:
    """Handles signals from now on. Only a program that runs from its own main thread may call this function."""
    terminals = [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, terminals), name="signals", daemon=True).start()
    _program.handles = True
    for number in not_ignored():
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def hand_over(asked: Callable[[bool], None], farewell: Callable[[int], None]) -> None:
    """Lets others decide when this process stops: the processes of a run stop together.

    asked: is called at every signal, in a thread, with whether it is a second one, instead of all that a signal does
    otherwise. `interrupt` then does it. farewell: is called with the exit status before this module ends the process.
    """
    _program.asked, _program.farewell = asked, farewell


def interrupt() -> None:
    """Does in a program that has handed over its signals what the first signal would have done. For other threads than
    the main thread."""
    for number in not_ignored()[:1] if _program.handles else ():
        _program.came, _program.own = True, True
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def not_ignored() -> list[signal.Signals]:
    """The signals of SIGNALS that this process does not ignore."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def handled() -> bool:
    """Whether this process handles signals as this module says."""
    return _program.handles


def came() -> bool:
    """Whether a signal has come to a program that handles signals."""
    return _program.came


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The handler. Only the first signal interrupts: `_watch` acts on a second one, and on any after the work."""
    if _program.raised or _program.done is not None or (_program.asked and not _program.came):
        return
    _program.raised = True
    if _program.blocked:
        _program.late = True
    else:
        raise KeyboardInterrupt


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A short block of the main thread that no signal interrupts. The first signal interrupts the thread at the block's
    end, and a second one waits two seconds for this end. In other threads, which no signal interrupts, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _program.block:
        _program.blocked = True
        try:
            yield
        finally:
            _program.blocked = False
    if _program.late:
        _program.late = False
        raise KeyboardInterrupt


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """A block that may go on after the first signal for as long as it needs, because it has something to save. The time
    of grace begins at the block's end."""
    _program.patient += 1
    try:
        yield
    finally:
        _program.patient -= 1
        _program.impatient_since = time.monotonic()


def done(status: int) -> None:
    """Says that the work of the program is done: a signal that comes now ends the process with this exit status. Ends
    a program that was interrupted, because the usual end would wait for threads, some of which are in C++ for minutes.
    """
    _program.done = status
    if _program.raised:
        leave(status)


def leave(status: int) -> None:
    """Ends a program without waiting for its threads. Does nothing in a notebook or a test."""
    if _program.handles:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        _program.farewell(status)
        os._exit(status)


def _watch(pipe: int, terminals: Sequence[int]) -> None:
    """Acts on a second signal, and on the end of the time of grace. terminals: the descriptors that are terminals."""
    first = math.inf  # when the first signal came
    since = math.inf  # when the time of grace began
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.1 if _program.came else None)
        numbers = set(os.read(pipe, 512)) & set(SIGNALS) if ready else set()
        now = time.monotonic()
        if signal.SIGHUP in numbers:
            _forget_lost(terminals)
        if numbers and _program.own:
            _program.own, since = False, now
        elif numbers and _program.asked:
            _program.asked(now - first > SAME_SECONDS)
            first = min(first, now)
        elif numbers:
            if _program.done is not None or now - first > SAME_SECONDS:
                _leave_at_once()
            first = since = min(first, now)
            _program.came = True
        if not _program.patient and now - max(since, _program.impatient_since) > GRACE_SECONDS:
            _leave_at_once()


def _forget_lost(terminals: Sequence[int]) -> None:
    """Lets writes to a terminal that was closed vanish. They would fail, and with them the save that is still due."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)


def _leave_at_once() -> NoReturn:
    _program.block.acquire(timeout=_BLOCK_SECONDS)
    status = STOPPED_EARLY if _program.done is None else _program.done
    line = "stopped at once; the same command goes on\n" if _program.done is None else ""
    with contextlib.suppress(OSError):
        for descriptor in filter(os.isatty, (1, 2)):
            os.write(descriptor, b"\x1b[?25h\n")  # a progress bar hides the cursor
        os.write(2, line.encode())
    _program.farewell(status)
    os._exit(status)
