"""A pre-training model of two layers with a vocabulary of 131 pieces, and random inputs for it."""

from typing import Any

import numpy as np

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.model.pretraining_heads import PretrainingModel, pretraining_model


def small_model(**model: Any) -> PretrainingModel:
    """In float32; keywords are fields of config.model."""
    fields = {"layers": 2, "embed": 32, "heads": 4, "mlp": 64, "max_length": 16} | model
    return pretraining_model(Config(model=ModelConfig(**fields), compute=ComputeConfig(dtype="float32")), 131, "cpu")


def small_batch(batch: int) -> dict[str, np.ndarray]:
    """`batch` rows of at most 16 pieces with 4 masked positions each: the model's inputs, without targets."""
    rng = np.random.default_rng(2)
    names = ("masked_positions", "span_left", "span_right", "span_offset")
    inputs = {name: rng.integers(0, 12, (batch, 4)) for name in names}
    return inputs | {"input_ids": rng.integers(0, 131, (batch, 16)), "lengths": rng.integers(12, 17, batch)}
