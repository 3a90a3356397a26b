"""Loss spikes: steps whose loss lies far above those of the steps before.

Invariant: whether a loss is a spike depends on the losses of the steps before, and on nothing else; a checkpoint keeps
those that count. No step is judged before `FEWEST` losses are known.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# OLMo 2's spike score (arXiv:2501.00656) counts values that are at least 7 standard deviations away from the mean of
# the last 1,000. The median and the median absolute deviation (MAD) stand here for mean and deviation, because spikes
# among the last losses move neither. 200 losses suffice for both, and follow a loss that falls fast at a run's start.
HISTORY = 200
THRESHOLD = 7.0
FEWEST = 100
_NORMAL = 1.4826  # standard deviation over MAD of a normal distribution
# The least deviation, in the logarithm. Without this bound, nearly equal losses would make each difference a spike.
_LEAST = 0.005


class Spike(NamedTuple):
    """A loss that is a spike."""

    place: int  # of the loss among those that were given
    z: float  # deviations above the median
    median: float  # of the losses before


class SpikeFinder:
    """Judges the losses of a run, window by window.

    The logarithm of the loss is judged, and only upwards. With few rows in a batch, as in fine-tuning, losses are
    spread over orders of magnitude; with many they are nearly normal, and so are their logarithms.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        """losses: `losses` of an earlier start of the run."""
        self._losses: collections.deque[float] = collections.deque(losses, maxlen=HISTORY)

    @property
    def losses(self) -> list[float]:
        """The losses that the next ones are compared with."""
        return list(self._losses)

    def find(self, losses: Sequence[float]) -> list[Spike]:
        """The spikes among the finite losses of the next steps, each compared with the steps before these."""
        found = []
        if len(self._losses) >= FEWEST:
            before = _logarithms(self._losses)
            median = np.median(before)
            deviation = max(_NORMAL * np.median(np.abs(before - median)), _LEAST)
            z = (_logarithms(losses) - median) / deviation
            places = np.flatnonzero(z >= THRESHOLD)
            found = [Spike(int(i), float(z[i]), float(np.exp(median))) for i in places]
        self._losses.extend(losses)
        return found


def _logarithms(losses: Iterable[float]) -> np.ndarray:
    """float64; a loss of 0 counts as the smallest float32."""
    return np.log(np.maximum(list(losses), np.finfo(np.float32).tiny))
