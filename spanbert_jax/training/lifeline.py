"""The line that holds the processes of a run together: a lost process ends them all, and they stop at one step.

Invariant: where one process of a run ends before the run is done, every other process ends too, with one line that
names it. A request to stop reaches every process, whatever the main thread of that process is doing, and all of them
save the same step or none does. This module needs neither JAX nor a working main thread.

Each process keeps a TCP connection to process 0 open for the whole run. The kernel closes the connection when a process
ends, and finds within LOST_SECONDS a host that no longer answers. Process 0 has a `Hub`, which hears every process and
decides, and every process, process 0 included, has a `_Line`, which obeys. Lines of text that they exchange:

    to the hub      stop                      this process was asked to stop
                    missed                    this process has left its loop, which ended before the step to stop at
                    quit                      this process was asked again, and ends at once
                    text JSON                 a text, of which the hub tells all the first that is not empty
                    at [STEP DONE]            the last step that began, and the steps done before it; bare: no step yet
                    bye STATUS                this process ends by itself
    from the hub    text PROCESS JSON         that text, once every process has sent one
                    where                     asks for "at"; the process begins no step until the hub's next line
                    on                        the process goes on: whether to stop is asked again soon
                    until STEP                the process stops before STEP, as every process does
                    stop                      the process ends now: nothing has been computed that a save could keep
                    end STATUS SECONDS TEXT   the process prints TEXT and ends, unless it ends by itself in SECONDS

Signals come from a thread of spanbert_jax/signals.py, which sees them while the main thread waits in XLA for another
process, maybe for ever.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, NoReturn

from spanbert_jax import signals
from spanbert_jax.training.channel import Channel, Peer
from spanbert_jax.training.lifeline_hub import END_SECONDS, STOPPED, Hub

_PATIENCE = 5.0  # seconds that an error waits for the news of a lost process, which may be its cause
_LAST = 2.0  # seconds that process 0 waits for the end of the others: JAX aborts a process that loses process 0


class _Order(NamedTuple):
    """An order to end."""

    deadline: float  # by time.monotonic()
    status: int
    text: str


class _Line(threading.Thread):
    """In every process: obeys the hub, and passes signals on to it."""

    def __init__(self, hub: Channel, lost: str, own: Hub | None):
        """hub: the connection. lost: the line to print where it breaks. own: the hub itself, in process 0."""
        super().__init__(daemon=True, name="lifeline")
        self._hub, self._lost, self._own = hub, lost, own
        self._changed = threading.Condition()
        self._held = False  # no step may begin
        self._first: int | None = None  # of the loop's steps that began; None outside of the loop
        self._step: int | None = None  # the last of them
        self._until: int | None = None  # the step before which every process stops
        self._stopped = False  # the loop has come to it
        self._bye: int | None = None  # the status with which this process ends by itself
        self._order: _Order | None = None
        self._texts: list[tuple[int, str]] = []  # the one for which `first` waits
        self._ending = False  # one of the two threads ends the process

    # ----- in the main thread

    def stop_at(self, step: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: not self._held)
            if step == self._until:
                self._stopped = True
                return True
            self._first, self._step = step if self._first is None else self._first, step
            return False

    def leave_loop(self) -> None:
        with self._changed:
            if self._until is not None and not self._stopped:
                self._hub.send("missed")
            self._first = self._step = self._until = None

    def first(self, text: str) -> tuple[int, str]:
        with self._changed:
            self._hub.send(f"text {json.dumps(text)}")
            self._changed.wait_for(lambda: self._texts)
            return self._texts.pop()

    def wait_for_order(self) -> None:
        """Ends the process where the hub tells it to, within some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._order is not None, _PATIENCE)
        if self._order:
            self._end(self._order)

    def leave(self, status: int) -> None:
        """Tells the hub that this process ends by itself. Ends it here where the status is not 0. Process 0 waits for
        the others, which would take its end for its loss."""
        if status:
            self.farewell(status)
            os._exit(status)
        with self._changed:
            self._bye = 0
        self._hub.send("bye 0")
        if self._own:
            self._own.others_done.wait(END_SECONDS)

    # ----- in the thread of the signals, or the main thread

    def asked(self, again: bool) -> None:
        self._hub.send("quit" if again else "stop")

    def farewell(self, status: int) -> None:
        """Tells the hub that this process ends by itself with an error or on a request. Process 0 ends last."""
        with self._changed:
            self._bye, self._order = status, None
        self._hub.send(f"bye {status}")
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        if self._own:
            with signals.patience():
                self._own.others_gone.wait(END_SECONDS + _LAST)

    # ----- in the line's own thread

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._hub, selectors.EVENT_READ)
            while selector.get_map() or self._order:
                wait = None if self._order is None else max(self._order.deadline - time.monotonic(), 0)
                for key, _ in selector.select(wait):
                    lines = self._hub.receive()
                    for line in lines or ():
                        self._obey(*line.split(" ", 1))
                    if lines is None:
                        selector.unregister(key.fileobj)
                        self._break()
                order = self._order
                if order and time.monotonic() >= order.deadline:
                    self._end(order)

    def _obey(self, word: str, details: str = "") -> None:
        with self._changed:
            match word:
                case "where" if self._bye is None:
                    self._held = True
                    done = (self._step or 0) - (self._first or 0)
                    self._hub.send("at" if self._step is None else f"at {self._step} {done}")
                case "on":
                    self._held = False
                case "until":
                    self._held, self._until = False, int(details)
                case "text":
                    process, _, text = details.partition(" ")
                    self._texts.append((int(process), json.loads(text)))
                case "stop" if self._bye is None:
                    self._take(_Order(time.monotonic() + END_SECONDS, STOPPED, "stopped; the same command goes on"))
                    signals.interrupt()
                case "end":
                    status, seconds, why = details.split(" ", 2)
                    self._take(_Order(time.monotonic() + float(seconds), int(status), why))
            self._changed.notify_all()

    def _take(self, order: _Order) -> None:
        """Keeps the order, unless another one is due before, or this process ends by itself with an error."""
        if not self._bye and (self._order is None or order.deadline < self._order.deadline):
            self._order = order

    def _break(self) -> None:
        """The connection to process 0 has ended."""
        with self._changed:
            if self._bye is None:
                self._take(_Order(time.monotonic(), STOPPED, self._lost))
            self._changed.notify_all()

    def _end(self, order: _Order) -> NoReturn:
        with self._changed:
            first, self._ending = not self._ending, True
        if not first:  # the other thread ends the process
            threading.Event().wait()
        self._hub.send(f"bye {order.status}")
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), f"{order.text}\n".encode())
            sys.stdout.flush()
        if self._own:
            self._own.others_gone.wait(_LAST)
        os._exit(order.status)


_line: _Line | None = None  # of this process; None in a run of one process


def begin(process: int, count: int, name: str, peers: Mapping[int, Peer]) -> None:
    """Starts the line of process `process` of `count`, once a process. From now on signals are requests to stop.

    name: this process's, its host and its pid. peers: in process 0 every other process, elsewhere process 0 alone.
    """
    global _line
    lost, hub = "", None
    if process == 0:
        ours, theirs = map(Channel, socket.socketpair())
        hub = Hub({0: Peer(name, theirs), **peers})
        hub.start()
    else:
        ours = peers[0].channel
        lost = f"process 0 of {count} ({peers[0].name}) was lost; every process ends; the same command goes on"
    _line = _Line(ours, lost, hub)
    signals.hand_over(_line.asked, _line.farewell)
    _line.start()


@contextlib.contextmanager
def stepping() -> Iterator[Callable[[int], bool]]:
    """The loop's steps. Yields a function that says whether the run must stop before a step, instead of beginning it.

    The function is called before every step, in every process, and returns True in all of them for the same step. It
    never does in a run of one process.
    """
    if _line is None:
        yield lambda step: False
        return
    try:
        yield _line.stop_at
    finally:
        _line.leave_loop()


def first_text(text: str) -> tuple[int, str]:
    """Waits until every process of the run has called this function, in the main thread. Returns the first process
    whose text is not empty, and its text: (0, "") where all are empty. In a run of one process: (0, text).

    No time limits the wait. A signal or the loss of a process ends it.
    """
    return _line.first(text) if _line else (0, text)


def ended(work: Callable[[], int]) -> int:
    """Does the work of this process. Returns the exit status, a result of `work`, or ends the process with it.

    Where `work` raises an error, the loss of another process may be the cause: this process then says so instead.
    """
    try:
        status = work()
    except Exception:
        if _line is None:
            raise
        _line.wait_for_order()
        traceback.print_exc()
        status = 1
    if _line:
        _line.leave(status)
    return status
