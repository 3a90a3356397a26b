"""The weights with which infilling mixes the heads' scores, and the law of the lengths of gaps, beside a checkpoint.

Invariant: a file is used only for the checkpoint that it was fitted for. A weight depends on a masked piece's place in
its span alone.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from spanbert_jax import json_files
from spanbert_jax.config import MaskingConfig
from spanbert_jax.errors import UserError, quoted, reason
from spanbert_jax.files import written_aside

FILE = "infilling.json"  # in the directory of a checkpoint
# The places of a masked piece that have a weight each: the only piece of its span; at an end of a span of up to four
# pieces; at an end of a longer one; farther inside.
BUCKETS = ("one piece", "at an end, up to 4 pieces", "at an end, longer", "inside")
_SHORT = 4
LONGEST = 20  # pieces of a gap of open length
EQUAL = 0.5  # the weight of each head in a mixture that was not fitted


@dataclasses.dataclass(frozen=True)
class Mixture:
    """s = (1 - weight) log p_MLM + weight log p_SBO.

    weights: SBO's weight of each bucket. lengths: the probability that a gap has 1, 2, ... LONGEST pieces. alpha: the
    power of its number of pieces by which the log-probability of a filling is divided, before fillings of different
    lengths are compared. fitted: whether the numbers come from held-out blocks.
    """

    weights: tuple[float, ...]
    lengths: tuple[float, ...]
    alpha: float = 1.0
    fitted: bool = False

    def weight(self, offset: np.ndarray, length: np.ndarray) -> np.ndarray:
        """float32: SBO's weight for pieces at places `offset` (from 0) in spans of `length` pieces; int [...] each."""
        return np.array(self.weights, np.float32)[buckets(offset, length)]

    def log_length(self, pieces: int) -> float:
        """The log-probability that a gap has so many pieces."""
        return math.log(self.lengths[pieces - 1])

    def rank(self, log_prob: float, pieces: int, is_open: bool) -> float:
        """The score of a filling of so many pieces: log_prob / pieces^alpha, and for a gap whose length is open + the
        log-probability of that length."""
        return log_prob / pieces**self.alpha + (self.log_length(pieces) if is_open else 0.0)


def buckets(offset: np.ndarray, length: np.ndarray) -> np.ndarray:
    """int [...]: the index in BUCKETS of pieces at places `offset` (from 0) in spans of `length` pieces."""
    nearer = np.minimum(offset, length - 1 - offset)
    return np.where(length == 1, 0, np.where(nearer > 0, 3, np.where(length <= _SHORT, 1, 2)))


def default_mixture(masking: MaskingConfig) -> Mixture:
    """Equal weights, and the law of the lengths of pre-training's spans, read as one of pieces."""
    law = (1 - masking.span_p) ** np.arange(LONGEST)
    return Mixture((EQUAL,) * len(BUCKETS), tuple((law / law.sum()).tolist()))


def uniform_mixture(weight: float) -> Mixture:
    """The mixture with one weight of SBO everywhere, and no preference for a length."""
    return Mixture((weight,) * len(BUCKETS), (1 / LONGEST,) * LONGEST)


def write_mixture(mixture: Mixture, checkpoint: str, made_for: dict[str, Any], measured: dict[str, Any]) -> None:
    """Writes the mixture into the checkpoint's directory.

    made_for: what must be equal when the file is read. measured: numbers for people.
    """
    numbers = {name: getattr(mixture, name) for name in ("weights", "lengths", "alpha")} | {"buckets": BUCKETS}
    with written_aside(epath.Path(checkpoint) / FILE) as aside:
        aside.write_text(json.dumps({"made_for": made_for, **numbers, "measured": measured}, indent=2) + "\n")


def read_mixture(checkpoint: str, made_for: dict[str, Any]) -> Mixture | None:
    """The mixture in a checkpoint's directory; None where there is none.

    Raises UserError where the file is damaged, or was fitted for another checkpoint.
    """
    path = epath.Path(checkpoint) / FILE
    if not path.exists():
        return None
    again = "fit it again (tools/fit_mixture.py), or delete it"
    try:
        fields = json_files.read(path)
        found, weights = dict(fields["made_for"]), _numbers(fields["weights"], len(BUCKETS))
        lengths, (alpha,) = _numbers(fields["lengths"], LONGEST), _numbers([fields["alpha"]], 1)
        if min(lengths) <= 0:
            raise ValueError("a length without a probability")
    except json_files.OTHER_SHAPE as error:
        raise UserError(f"{path} is damaged ({reason(error)}); {again}") from error
    differing = [
        f"{name} {quoted(found.get(name))}, not {value!r}"
        for name, value in made_for.items()
        if found.get(name) != value
    ]
    if differing:
        raise UserError(f"{path} was fitted for another checkpoint ({'; '.join(differing)}); {again}")
    return Mixture(weights, lengths, alpha, True)


def _numbers(values: Sequence[float], count: int) -> tuple[float, ...]:
    found = tuple(map(float, values))
    if len(found) != count or not all(0 <= value <= 1 for value in found):
        raise ValueError(f"{values} are not {count} numbers from 0 to 1")
    return found
