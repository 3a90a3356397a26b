"""The interface between the encoder and a family of transformer layers.

Invariant: the encoder knows a family by the fields of `Family` alone, so a new family is one file, `layer_NAME.py`, and
one row of `families.FAMILIES`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from spanbert_jax.config import ModelConfig
from spanbert_jax.model.axes import ParameterAxes
from spanbert_jax.model.dropout import Dropout


class Context(NamedTuple):
    """The inputs that all layers of one forward pass share."""

    lengths: jax.Array  # int32 [batch]; positions from there on are padding
    dropout: Dropout | None  # None for no dropout
    tables: Any  # the result of the family's `tables`


class Family(NamedTuple):
    """What a family of layers provides.

    layers: the configuration -> constructors of its layers' modules, which take turns: constructor i % n makes layer i
        of n constructors. A constructor takes (ModelConfig, ComputeConfig, the dtype of activations, parent=None). Its
        module is called with (x [batch, length, embed], Context, the layer's number) and returns the next x. The
        modules of all constructors have parameters of the same names and shapes, because the encoder stacks them.
    tables: the configuration and a length -> arrays that are computed once and given to every layer, or None.
    norm: the configuration -> the module that normalises the sum of the embeddings.
    final_norm: the configuration -> whether a module of `norm` normalises the last layer's output too, under the name
        "final_norm".
    position_table, token_types: whether the embeddings have a table of positions, and one of token types.
    transforms: whether a task's head reads the states through a linear map, GELU and a norm (`linear_heads.Transform`),
        as the masked language model's head does. Otherwise the heads are those of BERT.
    axes: a row for each parameter of a layer, under "encoder/" and with the axis of layers first, and for those of
        "final_norm" where there is one.
    matrices: the hidden matrices, for Muon: a pattern of a parameter's whole path, and a letter for each of the array's
        axes. The axes "i" are the rows of a matrix, its inputs, and the axes "o" its columns, its outputs. Along the
        axes "-" lie matrices that are orthogonalised one by one: layers, the queries', keys' and values' matrices, the
        two halves of a gated network.
    flops: the configuration and a length -> FLOPs of one row's forward pass through all layers: matrix products alone,
        a multiplication with its addition counted as 2.
    """

    layers: Callable[[ModelConfig], tuple[Callable[..., nn.Module], ...]]
    tables: Callable[[ModelConfig, int], Any]
    norm: Callable[[ModelConfig], nn.Module]
    final_norm: Callable[[ModelConfig], bool]
    position_table: bool
    token_types: bool
    transforms: bool
    axes: ParameterAxes
    matrices: tuple[tuple[str, str], ...]
    flops: Callable[[ModelConfig, int], float]
