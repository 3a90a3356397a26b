"""The metrics of the steps between two lines of a run's log.

Invariant: a window's metrics depend on its steps alone, its speeds apart: a run that goes on from a checkpoint begins
with the sums of the window that was open there. Means leave out steps that were skipped. No window counts the time of
compilation, and reading a window's sums never makes the device wait.
"""

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from spanbert_jax.training.flops import peak_flops
from spanbert_jax.training.spikes import SpikeFinder
from spanbert_jax.training.step import BatchSize, Sums

_NOT_ADDED = ("objective", "learning_rate", "skipped_for")  # sums of a step that have no sum over steps
# The metrics that depend on the machine and on its load, as they stand in metrics.jsonl.
SPEEDS = tuple(
    f"train/{name}" for name in ("pieces_per_second", "sequences_per_second", "seconds_per_step", "input_wait", "mfu")
)
STEPS_AHEAD = 3  # steps dispatched and not yet finished: the device is never idle, and few batches are held


class Event(NamedTuple):
    """A step that was skipped, or whose loss is a spike. Its number is that of its batch."""

    step: int
    skipped_for: float  # as in `step.make_train_step`; 0: the loss is a spike
    loss: float = 0.0  # of a spike, as are z and the median of `spikes.Spike`
    z: float = 0.0
    median: float = 0.0


class Row(NamedTuple):
    """A window that has ended."""

    step: int  # to which its last step led
    metrics: dict[str, float]
    events: list[Event]


class _Full(NamedTuple):
    """A window whose steps the device may still be computing."""

    step: int  # to which its last step led
    before: Mapping[str, Any]  # as `Window.state`: the part that an earlier start of the run computed
    sums: list[Sums]  # of each step of this start
    sizes: list[BatchSize]  # of the batches of the timed steps, which are the last ones
    seconds: float  # of the timed steps
    waited: float  # for batches, of these seconds


class Window:
    """The steps since the last metrics, and the time they took.

    The first step of a run is a window of its own, without speeds. No window counts the time of compilation, and the
    speeds leave out the steps before a checkpoint that the run went on from, and the first one after it. A full window
    is handed out a few steps later, when the device has finished its steps.
    """

    def __init__(
        self,
        first: int,
        log_every: int,
        metrics: Callable[[Mapping[str, float]], dict[str, float]],
        mesh: Mesh,
        before: Mapping[str, Any],
    ):
        """first: the step that this start of the run begins with. log_every: steps in a window. metrics: the sums of a
        window's steps, added up -> metrics. before: `state` at the step `first`, {} where nothing is known."""
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._log_every, self._of_sums = log_every, metrics
        self._peak = peak * mesh.size if peak else None
        self._first = first
        self._full: list[_Full] = []
        self._spikes = SpikeFinder(before.get("losses", ()))
        self.start()
        self._before: Mapping[str, Any] = before

    def start(self) -> None:
        """Begins a window."""
        self._before = {}
        self._sums: list[Sums] = []
        self._start_clock()

    def _start_clock(self) -> None:
        self._sizes: list[BatchSize] = []
        self._began, self.waited = time.monotonic(), 0.0

    def skip(self, seconds: float) -> None:
        """Leaves the last `seconds` out of the window's time."""
        self._began += seconds

    def add(self, step: int, sums: Sums, size: BatchSize) -> list[Row]:
        """Adds the sums of the step that led to `step`, on a batch of that size; returns the windows that are ready."""
        self._sums.append(sums)
        self._sizes.append(size)
        if step == self._first + 1:
            self._start_clock()
        if step == 1:
            return self.finish(step)
        if step % self._log_every == 0:
            self._close(step)
        ready = [full for full in self._full if full.step + STEPS_AHEAD <= step]
        self._full = self._full[len(ready) :]
        return [self._row(full) for full in ready]

    def finish(self, step: int) -> list[Row]:
        """Ends the window under way at `step`, waits for its steps, and returns the windows that are not yet handed
        out."""
        if self._sums:
            jax.block_until_ready(self._sums[-1])
            self._close(step)
        return self.full()

    def full(self) -> list[Row]:
        """Waits for the full windows that are not yet handed out, and returns them."""
        ready, self._full = self._full, []
        return [self._row(full) for full in ready]

    def state(self) -> dict[str, Any]:
        """What a run that goes on from here needs to log the same, as JSON: the "sums" of the window under way, added
        up, with the number of "steps" in them; [skipped_for, loss] of "each" of its steps; and the "losses" before the
        window, by which spikes are found. Waits for the steps; full windows must have been handed out."""
        return {
            "sums": _added(self._before, self._sums),
            "each": _each(self._before, self._sums),
            "losses": self._spikes.losses,
        }

    def _close(self, step: int) -> None:
        seconds = time.monotonic() - self._began
        self._full.append(_Full(step, self._before, self._sums, self._sizes, seconds, self.waited))
        self.start()

    def _row(self, full: _Full) -> Row:
        totals, each = _added(full.before, full.sums), _each(full.before, full.sums)
        taken = totals.pop("steps")
        metrics = {"skipped": len(each) - taken, "learning_rate": float(full.sums[-1]["learning_rate"])}
        if taken:
            norm = totals.pop("gradient_norm") / taken
            metrics = {**self._of_sums(totals), "gradient_norm": norm, **metrics}
        if full.sizes and full.seconds:
            timed, seconds = full.sums[-len(full.sizes) :], full.seconds
            metrics["pieces_per_second"] = sum(float(sums["pieces"]) for sums in timed) / seconds
            metrics["sequences_per_second"] = sum(size.rows for size in full.sizes) / seconds
            metrics["seconds_per_step"] = seconds / len(timed)
            metrics["input_wait"] = full.waited / seconds
            if self._peak:
                metrics["mfu"] = sum(size.flops for size in full.sizes) / seconds / self._peak
        named = {f"train/{name}": value for name, value in metrics.items()}
        return Row(full.step, named, self._events(full.step - len(each), each))

    def _events(self, first: int, each: list[tuple[float, float]]) -> list[Event]:
        """The skipped steps and the spikes, in order. first: the number of the window's first batch."""
        taken = [place for place, (reason, _) in enumerate(each) if not reason]
        events = [Event(first + place, reason) for place, (reason, _) in enumerate(each) if reason]
        for spike in self._spikes.find([each[place][1] for place in taken]):
            place = taken[spike.place]
            events.append(Event(first + place, 0.0, each[place][1], spike.z, spike.median))
        return sorted(events)


def _added(before: Mapping[str, Any], sums: list[Sums]) -> dict[str, float]:
    """The sums of `before` and of the steps after it that were not skipped, and "steps", their number."""
    totals: collections.Counter[str] = collections.Counter(before.get("sums", {}))
    taken = [one for one in sums if not float(one["skipped_for"])]
    for one in taken:
        add_sums(totals, {name: value for name, value in one.items() if name not in _NOT_ADDED})
    totals["steps"] += len(taken)
    return {**totals}


def _each(before: Mapping[str, Any], sums: list[Sums]) -> list[tuple[float, float]]:
    """(skipped_for, loss) of each step of `before` and after it. The loss of a skipped step is 0."""
    found = [(float(one["skipped_for"]), float(one["objective"])) for one in sums]
    return [*map(tuple, before.get("each", ())), *((reason, 0.0 if reason else loss) for reason, loss in found)]


def add_sums(totals: collections.Counter[str], sums: Mapping[str, Any]) -> None:
    """Adds the sums of a step or a batch to the totals."""
    for name, value in sums.items():
        totals[name] += float(value)  # type: ignore[assignment]  # a Counter of floats
