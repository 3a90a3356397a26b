"""Small pre-trained weights that nobody trained: an encoder with MLM and SBO of random parameters."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from spanbert_jax.convert.huggingface import Coverage
from spanbert_jax.convert.names import Params
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.serving.weights import Weights
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.checkpoint import CHECKPOINTS, TOKENIZER, write_params
from spanbert_jax.training.metadata import Metadata
from tests.support.synthetic import small_config

OFFSETS = 4  # of SBO's table
MODERN = {"family": "modern", "dropout": 0.0, "attention_dropout": 0.0, "norm_bias": False}
_MODEL = {"layers": 1, "embed": 16, "heads": 2, "mlp": 16, "max_length": 40, "span_offset_embed": 8}


def random_weights(tokenizer: Tokenizer, heads: tuple[str, ...] = ("mlm", "sbo"), **model: Any) -> Weights:
    """Weights with rows of up to 40 pieces; keywords are fields of config.model."""
    sizes = {**_MODEL, **model}
    data, masking = {"block_length": sizes["max_length"], "lengths": 2}, {"max_span_offset": OFFSETS}
    config = small_config(data=data, masking=masking, model=sizes)
    shapes = parameter_shapes(config.model, tokenizer.vocab_size, dict.fromkeys(heads, OFFSETS))
    rng = np.random.default_rng(0)

    def draw(path: Any, shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(float(path[-1].key == "scale"), 0.5, shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    boundary = (OFFSETS, config.model.span_offset_embed) if "sbo" in heads else None
    coverage = Coverage(tuple(params), (), ())
    metadata = Metadata(task="pretraining", step=3, config=config, tokenizer_fingerprint=tokenizer.fingerprint)
    return Weights(
        source="random weights",
        kind="random weights",
        config=config,
        tokenizer=tokenizer,
        load=lambda: (params, coverage),
        span_boundary=boundary,
        metadata=metadata,
    )


def params_of(weights: Weights) -> Params:
    return weights.load()[0]


def write_pretrained(workdir: Path, weights: Weights) -> Path:
    """The workdir of a run with one checkpoint of the weights; returns the checkpoint."""
    assert weights.metadata is not None
    weights.tokenizer.save(workdir / TOKENIZER)
    write_params(epath.Path(workdir / CHECKPOINTS), params_of(weights), weights.metadata)
    return workdir / CHECKPOINTS / str(weights.metadata.step)


def renamed(weights: Weights, source: Path) -> Weights:
    """The same weights, as those of a checkpoint."""
    return dataclasses.replace(weights, source=str(source))
