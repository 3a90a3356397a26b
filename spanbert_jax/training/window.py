"""The metrics of the steps between two lines of a run's log.

Invariant: no window counts the time of compilation, and reading a window's sums never makes the device wait.
"""

import collections
import time
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from spanbert_jax.training.flops import peak_flops
from spanbert_jax.training.step import BatchSize, Sums

STEPS_AHEAD = 3  # steps dispatched and not yet finished: the device is never idle, and few batches are held


class Window:
    """The steps since the last metrics, and the time they took.

    The first step is a window of its own, without speeds. No window counts the time of compilation. A full window is
    handed out a few steps later, when the device has finished its steps.
    """

    def __init__(self, log_every: int, metrics: Callable[[Mapping[str, float]], dict[str, float]], mesh: Mesh):
        """log_every: steps in a window. metrics: the sums of a window's steps, added up -> metrics."""
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._log_every, self._of_sums = log_every, metrics
        self._peak = peak * mesh.size if peak else None
        self._first = True
        self._full: list[tuple[int, list[Sums], list[BatchSize], float, float]] = []
        self.start()

    def start(self) -> None:
        """Begins a window."""
        self._sums: list[Sums] = []
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
        if self._first:
            self._first = False
            metrics = self._metrics([sums], [size], None, 0.0)
            self.start()
            return [(step, metrics)]
        if step % self._log_every == 0:
            self._close(step)
        ready = [full for full in self._full if full[0] + STEPS_AHEAD <= step]
        self._full = self._full[len(ready) :]
        return [(full[0], self._metrics(*full[1:])) for full in ready]

    def finish(self, step: int) -> list[tuple[int, dict[str, float]]]:
        """Ends the window under way at `step`, waits for its steps, and returns (step, metrics) of the windows that
        are not yet handed out."""
        if self._sums:
            jax.block_until_ready(self._sums[-1])
            self._close(step)
        ready, self._full = self._full, []
        return [(full[0], self._metrics(*full[1:])) for full in ready]

    def _close(self, step: int) -> None:
        self._full.append((step, self._sums, self._sizes, time.monotonic() - self._began, self.waited))
        self.start()

    def _metrics(
        self, sums: list[Sums], sizes: list[BatchSize], seconds: float | None, waited: float
    ) -> dict[str, float]:
        totals: collections.Counter[str] = collections.Counter()
        for one in sums:
            add_sums(totals, one)
        norm, rate = totals.pop("gradient_norm") / len(sums), float(sums[-1]["learning_rate"])
        del totals["learning_rate"]
        metrics = {**self._of_sums(totals), "gradient_norm": norm, "learning_rate": rate}
        if seconds:
            metrics["pieces_per_second"] = totals["pieces"] / seconds
            metrics["sequences_per_second"] = sum(size.rows for size in sizes) / seconds
            metrics["seconds_per_step"] = seconds / len(sums)
            metrics["input_wait"] = waited / seconds
            if self._peak:
                metrics["mfu"] = sum(size.flops for size in sizes) / seconds / self._peak
        return {f"train/{name}": value for name, value in metrics.items()}


def add_sums(totals: collections.Counter[str], sums: Sums) -> None:
    """Adds the sums of a step or a batch to the totals."""
    for name, value in sums.items():
        totals[name] += float(value)  # type: ignore[assignment]  # a Counter of floats
