"""The extensions of the encoder: optional parts beyond the paper, a row of `EXTENSIONS` each.

Invariant: every extension begins as the identity. Its parameters that match `zero` are 0 in a fresh model. While they
are 0, the hidden states are those of the encoder without the extension, but the gradient of these parameters is not 0.
So any checkpoint goes on with a fresh extension and gives the same outputs at step 0. The table serves the axes, FLOPs,
Muon, the start from weights that lack an extension, and the export to formats that have none.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from spanbert_jax.config import EXTENSIONS as FIELDS
from spanbert_jax.config import ModelConfig
from spanbert_jax.errors import UserError
from spanbert_jax.model import attention_composition, context_encoder, head_scales, span_attention, span_embedding
from spanbert_jax.model.axes import ParameterAxes

Paths = dict[str, Any]  # the path of a parameter ("a/b/c") -> its values


class Extension(NamedTuple):
    """An optional part of the encoder.

    axes: a row for each of its parameters, with patterns of whole paths.
    zero: a pattern of the paths of the parameters that are 0 at the start.
    matrices: its hidden matrices, written as in `Family.matrices`.
    flops: the configuration and a length -> FLOPs of one row's forward pass, as in `Family.flops`.
    """

    axes: ParameterAxes
    zero: str
    matrices: tuple[tuple[str, str], ...]
    flops: Callable[[ModelConfig, int], float]

    def owns(self, path: str) -> bool:
        """Whether the parameter at `path` ("a/b/c") is one of this extension's."""
        return any(re.fullmatch(pattern, path) for pattern, _ in self.axes)


def _row(module: Any) -> Extension:
    return Extension(module.AXES, module.ZERO, module.MATRICES, module.flops)


# The field of ModelConfig that turns an extension on -> the extension.
EXTENSIONS: dict[str, Extension] = {
    "head_scales": _row(head_scales),
    "attention_composition": _row(attention_composition),
    "context_encoder": _row(context_encoder),
    "span_embedding": _row(span_embedding),
    "span_attention": _row(span_attention),
}


def chosen(model: ModelConfig) -> dict[str, Extension]:
    """The rows of `EXTENSIONS` whose fields are not their defaults."""
    default = ModelConfig()
    return {name: row for name, row in EXTENSIONS.items() if getattr(model, name) != getattr(default, name)}


def flops(model: ModelConfig, length: int) -> float:
    """FLOPs of one row's forward pass through all extensions."""
    return sum(row.flops(model, length) for row in chosen(model).values())


def adopted(wanted: ModelConfig, there: ModelConfig, source: str) -> dict[str, Any]:
    """The fields of all extensions for a run with the configuration `wanted` that starts from weights with `there`.

    The run has the extensions of the weights, and fresh ones that `wanted` alone names. Raises UserError where the two
    have different values for one extension. source: the weights, for the message.
    """
    default = ModelConfig()
    fields: dict[str, Any] = {}
    for name, settings in FIELDS.items():
        here, known = getattr(wanted, name), getattr(there, name)
        fresh = known == getattr(default, name)
        group = (name, *settings)
        if not fresh and here != getattr(default, name):
            for field in group:
                if getattr(wanted, field) != getattr(there, field):
                    raise UserError(
                        f"config.model.{field} is {getattr(wanted, field)!r}, and the weights in {source} have "
                        f"{getattr(there, field)!r}; leave config.model.{name} out, which keeps the weights' extension"
                    )
        fields |= {field: getattr(wanted if fresh else there, field) for field in group}
    return fields


def without(params: Any, model: ModelConfig) -> tuple[Any, ModelConfig]:
    """The parameters and the configuration of the same function without extensions.

    params: nested dicts of NumPy arrays. Raises UserError, naming the field, where an extension has left the identity.
    """
    rows = chosen(model)
    for name, row in rows.items():
        moved = [path for path, value in paths(params).items() if re.fullmatch(row.zero, path) and np.any(value)]
        if moved:
            raise UserError(
                f"model.{name} is {getattr(model, name)!r}, and its parameter {moved[0]} is not 0 any more, so the "
                "encoder computes what no class of transformers does; export such a model with tools/export_serving.py"
            )
    default = ModelConfig()
    fields = {field: getattr(default, field) for name in rows for field in (name, *FIELDS[name])}
    return stripped(params, rows), dataclasses.replace(model, **fields)


def missing(model: ModelConfig, params: Any) -> dict[str, Extension]:
    """The extensions of `model` of which the nested dicts `params` have no parameter."""
    known = paths(params)
    return {name: row for name, row in chosen(model).items() if not any(map(row.owns, known))}


def paths(tree: Any) -> Paths:
    """The leaves of nested dicts under their paths, "a/b/c"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def stripped(params: Any, rows: dict[str, Extension], prefix: str = "") -> Any:
    """The nested dicts without the parameters of `rows`, and without dicts that have no others."""
    kept = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            below = stripped(value, rows, f"{path}/")
            if below:
                kept[name] = below
        elif not any(row.owns(path) for row in rows.values()):
            kept[name] = value
    return kept
