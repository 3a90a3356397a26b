"""Facts about the parameters of every model: the names of their axes.

Invariant: each parameter matches exactly one row of the tables below; `parameter_axes` refuses any other, so a run with
a parameter that nobody described fails at its start.
"""

import re

from spanbert_jax.model import encoder, linear_heads, pretraining_heads, span_head
from spanbert_jax.model.axes import Names, ParameterAxes
from spanbert_jax.model.families import FAMILIES


def rows(family: str) -> ParameterAxes:
    """The rows for the parameters of the encoder with layers of `family`, and of every head."""
    heads = (*pretraining_heads.parameter_axes(), *linear_heads.AXES, *span_head.AXES)
    return (*encoder.AXES, *FAMILIES[family].axes, *heads)


def parameter_axes(path: str, family: str) -> Names:
    """The names of the axes of the parameter at "a/b/c" in a model with layers of `family`; None: never divided.

    Raises ValueError unless exactly one row matches.
    """
    found = [axes for pattern, axes in rows(family) if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"parameter {path} matches {len(found)} rows of axes; it must match exactly one")
    return found[0]
