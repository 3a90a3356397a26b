"""Muon: the update of a hidden matrix is its gradient's momentum, orthogonalised.

Invariant: a parameter of a pre-training head is a hidden matrix where the head's row of `HEADS` says so. Every other
parameter is described by exactly one row of `MATRICES` or of the `matrices` of its family or extension, or named by
`OTHERS`; a parameter that is neither is refused at the start of a run. An array that holds several matrices is updated
as the matrices would be one by one. Sources: Keller Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon); for
the scale, Liu et al. 2025 (arXiv:2502.16982).
"""

import re
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from spanbert_jax.config import OptimizerConfig
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.extensions import EXTENSIONS
from spanbert_jax.model.families import FAMILIES

# The hidden matrices of tasks' heads, written as in `Family.matrices`. A layer between the encoder and a head's last
# one maps hidden states to hidden states, so its matrix is a hidden one.
MATRICES = (
    (r"(transform/dense|pooler)/kernel", "io"),
    (r"spans/kernel", "iio"),
)
# The parameters that Adam updates: vectors, tables, and the last layers of tasks' heads.
OTHERS = (
    r".*/(bias|scale)",
    r"embeddings/(word|position|token_type)",
    r"(qa_outputs|classifier)/kernel",
    r"spans/(width|attention)",
    r"encoder/attention/heads/composition/(mix_in|mix_out|diagonal)",
    r"embeddings/spans/(kind|place)",
    r"span_attention/width",
)


def dimension_numbers(path: str, ndim: int) -> MuonDimensionNumbers | None:
    """The axes of the matrices in the parameter at `path` ("a/b/c"), which has `ndim` axes; None where Adam updates it.

    Raises ValueError where neither the matrices of families and extensions and `MATRICES` nor `OTHERS` describe the
    parameter, or both.
    """
    group, _, below = path.partition("/")
    for head in pretraining_heads.HEADS:
        if group == head.name:
            return MuonDimensionNumbers((0,), (1,)) if re.fullmatch(head.hidden_matrices, below) else None
    of_families = (row for family in FAMILIES.values() for row in family.matrices)
    of_extensions = (row for extension in EXTENSIONS.values() for row in extension.matrices)
    rows = {*MATRICES, *of_families, *of_extensions}
    found = [axes for pattern, axes in rows if len(axes) == ndim and re.fullmatch(pattern, path)]
    other = any(re.fullmatch(pattern, path) for pattern in OTHERS)
    if len(found) + other != 1:
        raise ValueError(
            f"parameter {path} with {ndim} axes is described by {len(found)} rows of MATRICES and is "
            f"{'' if other else 'not '}among OTHERS (training/muon.py); exactly one must describe it"
        )
    if other:
        return None
    return MuonDimensionNumbers(*(tuple(i for i, axis in enumerate(found[0]) if axis == kind) for kind in "io"))


def _numbers(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
    return dimension_numbers(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.ndim)


def _of_matrices(tree: Any) -> Any:
    """The dimension numbers of a tree that has hidden matrices alone."""
    return jax.tree_util.tree_map_with_path(_numbers, tree)


def _scale_by_shape(rms: float) -> optax.GradientTransformation:
    """Gives the update of every matrix a root mean square of about `rms`, which is that of an orthogonal matrix times
    sqrt(max(rows, columns)) rms."""

    def scaled(updates: Any, params: Any) -> Any:
        def scale(update: jax.Array, numbers: MuonDimensionNumbers) -> jax.Array:
            sizes = [np.prod([update.shape[axis] for axis in axes]) for axes in numbers]
            return update * float(np.sqrt(max(sizes)) * rms)

        return jax.tree.map(scale, updates, _of_matrices(updates))

    return optax.stateless(scaled)


def muon(config: OptimizerConfig, others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon for the hidden matrices, with Nesterov momentum, and `others` for the other parameters.

    The rest of the chain sets the sign and the learning rate. Five Newton-Schulz iterations bring most singular values
    of a matrix to between 0.7 and 1.2. Jordan's code does not correct the bias of the momentum; optax does, which makes
    a difference in the first 100 steps or so.
    """

    def label(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "others" if _numbers(path, leaf) is None else "matrices", tree
        )

    orthogonal = scale_by_muon(beta=config.muon_momentum, nesterov=True, weight_dimension_numbers=_of_matrices)
    matrices = optax.chain(orthogonal, _scale_by_shape(config.muon_rms))
    return optax.partition({"matrices": matrices, "others": others}, label)
