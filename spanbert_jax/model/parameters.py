"""Facts about the parameters of every model: their shapes, and the names of their axes.

Invariant: each parameter matches exactly one row of `described_axes`. `parameter_axes` refuses any other parameter, so
a run with a parameter that nobody described fails at its start.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from spanbert_jax.config import ComputeConfig, Config, MaskingConfig, ModelConfig
from spanbert_jax.model import encoder, extensions, linear_heads, pretraining_heads, span_head
from spanbert_jax.model.axes import Names, ParameterAxes
from spanbert_jax.model.families import FAMILIES


def described_axes(family: str) -> ParameterAxes:
    """The rows for the parameters of the encoder with layers of `family`, of every extension and of every head."""
    heads = (*pretraining_heads.parameter_axes(), *linear_heads.AXES, *span_head.AXES)
    of_extensions = [row for extension in extensions.EXTENSIONS.values() for row in extension.axes]
    return (*encoder.AXES, *FAMILIES[family].axes, *of_extensions, *heads)


def parameter_axes(path: str, family: str) -> Names:
    """The names of the axes of the parameter at `path` ("a/b/c") in a model with layers of `family`. None stands for an
    axis that is never divided.

    Raises ValueError unless exactly one row matches.
    """
    found = [axes for pattern, axes in described_axes(family) if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"parameter {path} matches {len(found)} rows of axes; it must match exactly one")
    return found[0]


def parameter_shapes(model: ModelConfig, vocab_size: int, heads: Mapping[str, int]) -> dict[str, Any]:
    """The shape of every parameter of the encoder and of `heads`, for a tokenizer of `vocab_size` pieces: nested dicts
    of tuples.

    heads: a head's name -> the head's own size: labels of "classifier", offsets of "sbo"; any number for the others.
    """
    masking = MaskingConfig(max_span_offset=heads.get(pretraining_heads.SBO.name, 1))
    config = Config(model=model, masking=masking, compute=ComputeConfig(dtype="float32"))
    trained = pretraining_heads.pretraining_model(config, vocab_size, "cpu", pretraining_heads.HEADS)
    labels = heads.get("classifier", 1)
    tasks = ("question_answering", "sequence_classification")
    others = [linear_heads.task_model(task, config, vocab_size, labels, "cpu") for task in tasks]

    def every_parameter() -> dict[str, Any]:
        key = jax.random.key(0)
        groups = pretraining_heads.init_params(trained, key)
        for other in others:
            groups |= linear_heads.init_params(other, key)
        return groups

    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(every_parameter))
    known = {head.name for head in pretraining_heads.HEADS} | {"qa_outputs", "pooler", "transform", "classifier"}
    of_encoder = [name for name in shapes if name not in known]
    return {name: shapes[name] for name in (*of_encoder, *heads)}
