"""The parts that all families' readers and writers of config.json share.

Invariant: every error is one line with the file, the field, its value and the values that are expected.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from spanbert_jax.errors import UserError, quoted

Fields = Mapping[str, Any]
_LARGEST = 2**31 - 1  # of a size; sizes become int32

_MOST = 1e30  # no rate, scale or base of wavelengths is as large; NaN is refused with it


class SpecialIds(NamedTuple):
    """The ids of the special pieces that a config.json names."""

    pad: int
    cls: int
    sep: int


def check_fixed(fields: Fields, fixed: Mapping[str, tuple[Any, ...]], models: str, source: str) -> None:
    """Raises UserError where a field has none of the values that the encoder computes.

    fixed: the field -> its values, the default of a missing field first. models: the supported models, for people.
    """
    for name, supported in fixed.items():
        if fields.get(name, supported[0]) not in supported:
            expected = " or ".join(map(repr, supported))
            raise UserError(f"{source}: {name} is {quoted(fields[name])}; only {expected} is supported: {models}")


def sizes(fields: Fields, names: Mapping[str, str], source: str) -> dict[str, int]:
    """Our field -> the value of the field that `names` gives for it. Raises UserError unless each is a number >= 1."""
    return {ours: size(fields.get(theirs), theirs, source) for ours, theirs in names.items()}


def size(value: Any, name: str, source: str, largest: int = _LARGEST) -> int:
    """The value of the field `name`; raises UserError unless it is a whole number from 1 to `largest`."""
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{source}: {name} is {quoted(value)}; expected a whole number greater than 0")
    if value > largest:
        raise UserError(f"{source}: {name} is {quoted(value)}; expected at most {largest:,}")
    return value


def number(value: Any, name: str, source: str) -> float:
    """The value of the field `name`; raises UserError where it is no number."""
    if not isinstance(value, int | float) or not abs(value) < _MOST:
        raise UserError(f"{source}: {name} is {quoted(value)}; expected a number below 1e30")
    return float(value)


def check_heads(embed: int, heads: int, source: str) -> None:
    """Raises UserError where attention heads do not divide the width."""
    if embed % heads:
        raise UserError(f"{source}: hidden_size {embed} is not divisible by {heads} heads")
