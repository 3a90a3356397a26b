"""The metrics of the steps between two lines of a run's log.

Invariant: a window's metrics depend on its steps alone, its speeds apart: a run that goes on from a checkpoint begins
with the sums of the window that was open there. No window counts the time of compilation, and reading a window's sums
never makes the device wait.
"""

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from spanbert_jax.training.flops import peak_flops
from spanbert_jax.training.step import BatchSize, Sums

# The metrics that depend on the machine and on its load, as they stand in metrics.jsonl.
SPEEDS = tuple(
    f"train/{name}" for name in ("pieces_per_second", "sequences_per_second", "seconds_per_step", "input_wait", "mfu")
)
STEPS_AHEAD = 3  # steps dispatched and not yet finished: the device is never idle, and few batches are held


class _Full(NamedTuple):
    """A window whose steps the device may still be computing."""

    step: int  # to which its last step led
    before: Mapping[str, float]  # as `Window.open_sums`: the part that an earlier start of the run computed
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
        before: Mapping[str, float],
    ):
        """first: the step that this start of the run begins with. log_every: steps in a window. metrics: the sums of a
        window's steps, added up -> metrics. before: `open_sums` at the step `first`, {} where nothing is known."""
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._log_every, self._of_sums = log_every, metrics
        self._peak = peak * mesh.size if peak else None
        self._first = first
        self._full: list[_Full] = []
        self.start()
        self._before = before

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

    def add(self, step: int, sums: Sums, size: BatchSize) -> list[tuple[int, dict[str, float]]]:
        """Adds the sums of the step that led to `step`, on a batch of that size; returns (step, metrics) of the windows
        that are ready."""
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
        return [(full.step, self._metrics(full)) for full in ready]

    def finish(self, step: int) -> list[tuple[int, dict[str, float]]]:
        """Ends the window under way at `step`, waits for its steps, and returns (step, metrics) of the windows that
        are not yet handed out."""
        if self._sums:
            jax.block_until_ready(self._sums[-1])
            self._close(step)
        return self.full()

    def full(self) -> list[tuple[int, dict[str, float]]]:
        """Waits for the full windows that are not yet handed out, and returns their (step, metrics)."""
        ready, self._full = self._full, []
        return [(full.step, self._metrics(full)) for full in ready]

    def open_sums(self) -> dict[str, float]:
        """Waits for the steps of the window under way. Returns their sums, added up, and their number as "steps"; {}
        where the window has no step."""
        return _added(self._before, self._sums) if self._sums or self._before else {}

    def _close(self, step: int) -> None:
        seconds = time.monotonic() - self._began
        self._full.append(_Full(step, self._before, self._sums, self._sizes, seconds, self.waited))
        self.start()

    def _metrics(self, full: _Full) -> dict[str, float]:
        totals = _added(full.before, full.sums)
        norm, rate = totals.pop("gradient_norm") / totals.pop("steps"), float(full.sums[-1]["learning_rate"])
        del totals["learning_rate"]
        metrics = {**self._of_sums(totals), "gradient_norm": norm, "learning_rate": rate}
        if full.sizes and full.seconds:
            timed, seconds = full.sums[-len(full.sizes) :], full.seconds
            metrics["pieces_per_second"] = sum(float(sums["pieces"]) for sums in timed) / seconds
            metrics["sequences_per_second"] = sum(size.rows for size in full.sizes) / seconds
            metrics["seconds_per_step"] = seconds / len(timed)
            metrics["input_wait"] = full.waited / seconds
            if self._peak:
                metrics["mfu"] = sum(size.flops for size in full.sizes) / seconds / self._peak
        return {f"train/{name}": value for name, value in metrics.items()}


def _added(before: Mapping[str, float], sums: list[Sums]) -> dict[str, float]:
    """The sums of `before` and of the steps after it, and "steps", their number."""
    totals: collections.Counter[str] = collections.Counter()
    for one in (before, *sums):
        add_sums(totals, one)
    totals["steps"] += len(sums)
    return {**totals}


def add_sums(totals: collections.Counter[str], sums: Mapping[str, Any]) -> None:
    """Adds the sums of a step or a batch to the totals."""
    for name, value in sums.items():
        totals[name] += float(value)  # type: ignore[assignment]  # a Counter of floats
