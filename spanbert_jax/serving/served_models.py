"""The models of the engine by which one checkpoint is served.

Invariant: whatever the weights are, texts, pieces and spans can be embedded; only fine-tuned weights have a task.
"""

from typing import NamedTuple

from jax.sharding import NamedSharding

from spanbert_jax.serving.predictor import Params
from spanbert_jax.serving.task_model import TaskModel
from spanbert_jax.serving.text_models import EmbeddingModel, PieceModel, SpanModel
from spanbert_jax.serving.weights import Weights

# Lengths to which pieces and spans are padded, at most. Fewer are asked for them, and each length has programs.
_FEW_LENGTHS = 4


class ServedModels(NamedTuple):
    """The models of one checkpoint."""

    embed: EmbeddingModel
    pieces: PieceModel
    spans: SpanModel
    task: TaskModel | None  # of weights that were fine-tuned


def served_models(
    name: str,
    weights: Weights,
    params: Params,
    layout: NamedSharding,
    longest: int,
    deterministic: bool,
    dtype: str,
) -> ServedModels:
    """The models of trained weights, whose names begin with `name`.

    longest: pieces in a row of the models that embed, special ones included; a task's rows are as long as in training.
    deterministic: whether a row's output is bitwise the same whatever else is in the batch, since each length has one
    shape of batch, that with the fewest rows. dtype: "float32" or "bfloat16", in which texts are encoded; a task
    computes as its run did.
    """
    arguments = (weights, params, layout, longest, deterministic, dtype)
    tuned = weights.metadata is not None and weights.metadata.task not in ("pretraining", "imported")
    return ServedModels(
        EmbeddingModel(f"{name}/embed", *arguments),
        PieceModel(f"{name}/pieces", *arguments, _FEW_LENGTHS),
        SpanModel(f"{name}/spans", *arguments, _FEW_LENGTHS),
        TaskModel(f"{name}/task", weights, params, layout, deterministic) if tuned else None,
    )
