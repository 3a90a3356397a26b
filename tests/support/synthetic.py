"""A small configuration and random pre-training batches, for tests of what does not depend on real text."""

import dataclasses
from typing import Any

import numpy as np

from spanbert_jax import config as configuration
from spanbert_jax.config import Config
from spanbert_jax.config_check import check

VOCAB = 131


def small_config(**sections: dict[str, Any]) -> Config:
    """Two layers of width 24 over rows of 32 pieces; each keyword changes fields of a section."""
    small: dict[str, dict[str, Any]] = {
        "corpus": {"name": "docstrings"},
        "data": {"block_length": 32},
        "model": {"layers": 2, "embed": 24, "heads": 2, "mlp": 40, "max_length": 32, "span_offset_embed": 8},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
        "train": {"batch_size": 8, "steps": 10},
    }
    config = Config()
    for name in {**small, **sections}:
        section = dataclasses.replace(getattr(config, name), **{**small.get(name, {}), **sections.get(name, {})})
        config = dataclasses.replace(config, **{name: section})
    check(config)
    return config


def random_batch(config: Config, seed: int, rows: int | None = None) -> dict[str, np.ndarray]:
    """Rows of different lengths (one of them empty), with different numbers of masked pieces and of SBO rows."""
    rng = np.random.default_rng(seed)
    rows = rows or config.train.batch_size
    length, slots = config.data.block_length, configuration.max_masked(config)
    lengths = rng.integers(8, length + 1, rows).astype(np.int32)
    lengths[-1] = 0
    positions = rng.integers(1, np.maximum(lengths - 1, 2)[:, None], (rows, slots)).astype(np.int32)
    masked = rng.integers(1, slots + 1, rows) * (lengths > 0)
    weights = (np.arange(slots) < masked[:, None]).astype(np.float32)
    return {
        "input_ids": rng.integers(5, VOCAB, (rows, length)).astype(np.int32) * (np.arange(length) < lengths[:, None]),
        "lengths": lengths,
        "masked_positions": positions,
        "masked_ids": rng.integers(5, VOCAB, (rows, slots)).astype(np.int32),
        "masked_weights": weights,
        "span_left": positions - 1,
        "span_right": np.minimum(positions + 1, length - 1),
        "span_offset": rng.integers(0, 15, (rows, slots)).astype(np.int32),
        "span_weights": weights * rng.integers(0, 2, (rows, slots)).astype(np.float32),
    }
