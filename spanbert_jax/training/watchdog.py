"""A thread that watches how long a step of the training loop takes.

Invariant: the watched time of a step begins when the loop asks for the step's batch and ends when the loop has no more
to wait for. Compilation, evaluation and saves lie outside, and so does time in which this whole process stood still.
"""

import collections
import faulthandler
import os
import statistics
import sys
import threading
import time
from types import TracebackType

from spanbert_jax.training.window import STEPS_AHEAD

STALLED = 76  # the exit status of a run that config.train.stall_seconds stopped; the same command goes on
TIMES = 20  # the median, after which a step is reported
LEAST_SECONDS = 10.0  # after which a step is reported at the earliest, so that no hiccup of a fast step is
_FEWEST = 10  # steps that have a median
_KEPT = 100  # steps, the newest, of which the median is taken
TICK = 0.5  # seconds between two looks at the step
STOOD_STILL = 10 * TICK  # seconds between two looks that say that the process, or the machine, was suspended


class Watchdog:
    """Prints every thread's stack when a step takes 20 times the median of those before; may end the process then.

    Attributes:
      doing: what the loop waits for, in words.
    """

    def __init__(self, stall_seconds: float, place: str):
        """stall_seconds: config.train.stall_seconds, of a step after which the process ends with STALLED; 0: never.
        place: the words before every line, such as "process 1 of 4: ", or ""."""
        self._stall_seconds, self._place = stall_seconds, place
        self._seconds: collections.deque[float] = collections.deque(maxlen=_KEPT)
        self._watched: tuple[int, float] | None = None  # the step under way, and when its watched time began
        self._unsettled = STEPS_AHEAD  # steps to come that only fill the device's queue, and so take next to no time
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.doing = ""

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def begin(self, step: int) -> None:
        """The loop asks for the batch of `step`."""
        self._watched, self.doing = (step, time.monotonic()), "its batch"

    def leave(self) -> None:
        """The loop compiles, evaluates or saves: nothing is watched until the next `begin`."""
        self._watched, self._unsettled = None, STEPS_AHEAD

    def end(self) -> None:
        """The loop waits for nothing more in this step."""
        if self._watched and not self._unsettled:
            self._seconds.append(time.monotonic() - self._watched[1])
        self._watched, self._unsettled = None, max(self._unsettled - 1, 0)

    def _watch(self) -> None:
        looked, reported = time.monotonic(), -1
        while not self._ended.wait(TICK):
            now = time.monotonic()
            stood_still, looked = now - looked > STOOD_STILL, now
            watched = self._watched
            if watched is None:
                continue
            step, began = watched
            if stood_still:
                began = now
                if self._watched is watched:
                    self._watched = (step, now)
            stalled = 0 < self._stall_seconds < now - began
            if step != reported and (stalled or now - began > self._limit()):
                reported = step
                self._report(step, now - began)
            if stalled:
                self._say(f"error: step {step:,} stalled (config.train.stall_seconds); the same command goes on")
                os._exit(STALLED)  # the main thread waits for something that may never come

    def _limit(self) -> float:
        """The seconds of a step after which it is reported."""
        seconds = tuple(self._seconds)
        return max(TIMES * statistics.median(seconds), LEAST_SECONDS) if len(seconds) >= _FEWEST else float("inf")

    def _report(self, step: int, seconds: float) -> None:
        median = f"{statistics.median(self._seconds):.3g} s is the median" if self._seconds else "no step before"
        self._say(
            f"warning: step {step:,} has taken {seconds:.0f} s ({median}) and waits for {self.doing}; the stacks of "
            "all threads:"
        )
        faulthandler.dump_traceback(2)  # of the process's standard error, which needs no Python object

    def _say(self, line: str) -> None:
        print(f"{self._place}{line}", file=sys.__stderr__, flush=True)
