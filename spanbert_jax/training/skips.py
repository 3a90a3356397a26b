"""Which steps were skipped because a number was not finite, whether the state may be saved, and when a run gives up.

Invariant: a flag is read of a step that the device has finished, or before something that waits for the device anyway.
So reading never makes the device wait. All processes read the same flags at the same steps, so they decide alike.
"""

import collections
from typing import Any, NamedTuple

import jax

from spanbert_jax.training.step import Sums, all_finite
from spanbert_jax.training.window import STEPS_AHEAD


class Skipped(NamedTuple):
    """A step that was skipped. Its number is that of its batch."""

    step: int
    reason: float  # "skipped_for" of the step's sums


class Skips:
    """The flags of a run's steps, in order.

    Attributes:
      in_a_row: the skipped steps that end in the newest step whose flag was read, the oldest first.
    """

    def __init__(self, most: int):
        """most: skipped steps in a row that a run goes on after, config.train.max_skipped."""
        self._most = most
        self._in_flight: collections.deque[tuple[int, jax.Array]] = collections.deque()
        self.in_a_row: list[Skipped] = []

    def add(self, step: int, sums: Sums) -> list[Skipped]:
        """Notes the sums of a step that was just dispatched, and waits for the step STEPS_AHEAD before it. Returns that
        step if it was skipped."""
        self._in_flight.append((step, sums["skipped_for"]))
        return self._read(STEPS_AHEAD)

    def finish(self) -> list[Skipped]:
        """Waits for all steps, and returns those that were skipped and were not returned before."""
        return self._read(0)

    def _read(self, left: int) -> list[Skipped]:
        found = []
        while len(self._in_flight) > left:
            step, flag = self._in_flight.popleft()
            reason = float(flag)
            if reason:
                found.append(Skipped(step, reason))
                self.in_a_row.append(found[-1])
            else:
                self.in_a_row = []
        return found

    def too_many(self) -> bool:
        """Whether more steps in a row were skipped than the run goes on after."""
        return len(self.in_a_row) > self._most

    def may_save(self, state: Any, at_end: bool) -> bool:
        """Whether `state`, of which all flags have been read, may become the newest checkpoint.

        The step before must have been taken, because a state that makes every step fail would otherwise push sound
        checkpoints out. At the end of a run, one skipped step does not matter. All numbers of the state must be finite:
        an update by a finite gradient can overflow as well.
        """
        return len(self.in_a_row) <= int(at_end) and bool(all_finite(state))
