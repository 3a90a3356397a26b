"""A small configuration and random pre-training batches, for tests of what does not depend on real text."""

import dataclasses
from typing import Any

import numpy as np

from spanbert_jax.batch import empty_batch, slots
from spanbert_jax.config import Config
from spanbert_jax.config_check import check

VOCAB = 131


def small_config(init_from: str = "", **sections: dict[str, Any]) -> Config:
    """Two layers of width 24 over rows of 32 pieces; each keyword changes fields of a section."""
    small: dict[str, dict[str, Any]] = {
        "corpus": {"name": "docstrings"},
        "data": {"block_length": 32},
        "model": {"layers": 2, "embed": 24, "heads": 2, "mlp": 40, "max_length": 32, "span_offset_embed": 8},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
        "train": {"batch_size": 8, "steps": 10},
    }
    config = Config(init_from=init_from)
    for name in {**small, **sections}:
        section = dataclasses.replace(getattr(config, name), **{**small.get(name, {}), **sections.get(name, {})})
        config = dataclasses.replace(config, **{name: section})
    check(config)
    return config


def random_batch(config: Config, seed: int, rows: int | None = None) -> dict[str, np.ndarray]:
    """Rows of different lengths (one of them empty), with different numbers of masked pieces and of SBO rows."""
    rng = np.random.default_rng(seed)
    length = config.data.block_length
    batch = empty_batch(config, rows or config.train.batch_size, length, slots(config))
    rows, held = batch["masked_ids"].shape
    lengths = rng.integers(8, length + 1, rows)
    lengths[-1] = 0
    positions = rng.integers(1, np.maximum(lengths - 1, 2)[:, None], (rows, held))
    masked = rng.integers(1, held + 1, rows) * (lengths > 0)
    weights = np.arange(held) < masked[:, None]
    values = {
        "input_ids": rng.integers(5, VOCAB, (rows, length)) * (np.arange(length) < lengths[:, None]),
        "lengths": lengths,
        "masked_positions": positions,
        "masked_ids": rng.integers(5, VOCAB, (rows, held)),
        "masked_weights": weights,
        "span_left": positions - 1,
        "span_right": np.minimum(positions + 1, length - 1),
        "span_offset": rng.integers(0, 15, (rows, held)),
        "span_weights": weights * rng.integers(0, 2, (rows, held)),
        "replacement": rng.integers(1, 4, (rows, held)) * weights,
    }
    if config.corpus.pairs:
        second = np.arange(length) >= lengths[:, None] // 2
        values["token_type_ids"] = second & (np.arange(length) < lengths[:, None])
        values["next_labels"] = rng.integers(0, 2, rows) * (lengths > 0)
        values["next_weights"] = lengths > 0
    if "span_tags" in batch:
        kinds = rng.integers(0, 3, (rows, length)) * (np.arange(length) < lengths[:, None])
        first = kinds != np.pad(kinds[:, :-1], [(0, 0), (1, 0)])
        values["span_tags"] = 2 * kinds + (first & (kinds > 0))
    for name, value in values.items():
        batch[name][:] = value
    return batch
