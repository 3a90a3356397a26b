"""Counts and distributions of what a server does, in the text format that Prometheus reads.

Invariant: every metric stands in one table, `METRICS`, with its kind and its meaning. Any thread may count at any time.
No text of a request becomes a label.
"""

import threading
from bisect import bisect_left
from collections.abc import Mapping
from typing import Literal, NamedTuple

_SECONDS = tuple(1e-4 * 2**k for k in range(20))  # up to 52 s
_SIZES = tuple(float(2**k) for k in range(14))  # up to 8,192


class Metric(NamedTuple):
    """A row of the table. buckets: upper bounds of a histogram's buckets, in the metric's unit."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    buckets: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {
    "spanbert_requests_total": Metric("counter", "Responses by route and status."),
    "spanbert_request_seconds": Metric("histogram", "Seconds of answered requests by phase.", _SECONDS),
    "spanbert_input_pieces": Metric("histogram", "Pieces of an input, in all of its rows.", _SIZES),
    "spanbert_batch_rows": Metric("histogram", "Rows of a batch.", _SIZES),
    "spanbert_batch_pieces_total": Metric("counter", "Pieces of batches: real ones, and padded: rows x length."),
    "spanbert_queue_inputs": Metric("gauge", "Inputs in flight."),
    "spanbert_queue_pieces": Metric("gauge", "Pieces in flight, with their padding."),
    "spanbert_rejected_total": Metric("counter", "Requests that the engine refused or gave up, by reason."),
    "spanbert_truncated_total": Metric("counter", "Inputs that lost text because they were too long."),
    "spanbert_compiled_shapes": Metric("gauge", "Shapes of batch whose programs are compiled."),
    "spanbert_device_busy_seconds_total": Metric("counter", "Seconds in which the device had a batch to compute."),
    "spanbert_model_info": Metric("gauge", "1 for each checkpoint that is served."),
}

Labels = tuple[tuple[str, str], ...]  # sorted


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Counters:
    """The values of all metrics since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Adds to a counter."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            values = self._values.setdefault(name, {})
            values[key] = values.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Counts a value in a histogram."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            found = self._histograms.setdefault(name, {})
            if key not in found:
                found[key] = _Histogram(METRICS[name].buckets)
            found[key].observe(value)

    def value(self, name: str, **labels: str) -> float:
        """The value of a counter or a gauge, 0 before it was first counted."""
        with self._lock:
            return self._values.get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def text(self) -> str:
        """All metrics in Prometheus's text format."""
        lines = []
        with self._lock:
            for name, metric in METRICS.items():
                lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
                lines += [f"{name}{_labels(key)} {value:.10g}" for key, value in self._values.get(name, {}).items()]
                for key, found in self._histograms.get(name, {}).items():
                    lines += _histogram_lines(name, dict(key), found)
        return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: Mapping[str, str], found: _Histogram) -> list[str]:
    lines, total = [], 0
    for bound, count in zip([*found.bounds, float("inf")], found.counts, strict=True):
        total += count
        le = "+Inf" if bound == float("inf") else f"{bound:.6g}"
        lines.append(f"{name}_bucket{_labels([*labels.items(), ('le', le)])} {total}")
    shown = _labels(list(labels.items()))
    return [*lines, f"{name}_sum{shown} {found.sum:.10g}", f"{name}_count{shown} {total}"]


def _labels(labels: "Labels | list[tuple[str, str]]") -> str:
    escaped = [(key, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for key, value in labels]
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}" if escaped else ""
