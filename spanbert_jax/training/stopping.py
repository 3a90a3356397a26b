"""How a run is asked to stop.

Invariant: a request never interrupts a step or a save. The loop reads it between two steps.
"""

import signal
import threading
from types import FrameType
from typing import Any

import jax


class StopSignals:
    """Turns SIGTERM and the first Ctrl-C into a request to stop at the next step.

    With several processes JAX's preemption service turns SIGTERM into a request to all of them, at the same step.
    """

    def __enter__(self) -> "StopSignals":
        self.asked = False
        self._previous: dict[int, Any] = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._previous[number])

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
