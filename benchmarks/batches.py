"""Sizes of the model, and pre-training batches of random pieces, made with NumPy alone, the same for every side.

Invariant: a batch is a pure function of (configuration, seed). Every row is full, and has the paper's budget of masked
pieces, in spans.
"""

import dataclasses

import numpy as np

from benchmarks.worker import Json
from spanbert_jax.batch import MASK, empty_batch, largest_budget, slots
from spanbert_jax.config import Config, ModelConfig

VOCAB = 28_996  # BERT's cased vocabulary
SIZES = {
    "tiny": ModelConfig(layers=2, embed=128, heads=2, mlp=512),
    "small": ModelConfig(layers=4, embed=256, heads=4, mlp=1024),
    "base": ModelConfig(),
    "large": ModelConfig(layers=24, embed=1024, heads=16, mlp=4096),
}
DROPOUT = {"none": (0.0, 0.0), "hidden": (0.1, 0.0), "both": (0.1, 0.1)}  # of hidden states, of attention


def make_config(spec: Json) -> Config:
    """The configuration of a step.

    spec: "size", "dropout", "length" (pieces), "batch" (rows over all devices), "precision" ("fp32" or "bf16"), and
    optionally "attention", "unroll", "remat" and "model" (fields of config.model).
    """
    hidden, attention = DROPOUT[spec["dropout"]]
    config = Config()
    length = spec["length"]
    fields: Json = {"dropout": hidden, "attention_dropout": attention, "max_length": max(length, 512)}
    model = dataclasses.replace(SIZES[spec["size"]], **fields, **spec.get("model", {}))
    compute: Json = {"dtype": {"fp32": "float32", "bf16": "bfloat16"}[spec["precision"]]}
    compute |= {name: spec[name] for name in ("attention", "unroll", "remat") if spec.get(name) is not None}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, block_length=length),
        model=model,
        compute=dataclasses.replace(config.compute, **compute),
        train=dataclasses.replace(config.train, batch_size=spec["batch"], accumulation=1),
    )


def make_batch(config: Config, seed: int) -> dict[str, np.ndarray]:
    """A batch (`spanbert_jax.batch`) of random pieces: rows without padding, spans of 1 to 10 pieces, all [MASK]."""
    random = np.random.default_rng(seed)
    rows, length, budget = config.train.batch_size, config.data.block_length, largest_budget(config)
    batch = empty_batch(config, rows, length, slots(config))
    names = ("masked_positions", "span_left", "span_right", "span_offset")
    positions, left, right, offset = (batch[name] for name in names)
    for row in range(rows):
        masked = _spans(random, length, budget)  # bool [length]
        places = np.flatnonzero(masked)
        first = np.maximum.accumulate(np.where(np.diff(places, prepend=-2) > 1, places, 0))  # of the piece's span
        end = np.minimum.accumulate(np.where(np.diff(places, append=length + 1) > 1, places, length)[::-1])[::-1]
        positions[row, :budget], left[row, :budget], right[row, :budget] = places, first - 1, end + 1
        offset[row, :budget] = np.minimum(places - first, config.masking.max_span_offset - 1)
    batch["input_ids"][:] = random.integers(5, VOCAB, (rows, length))
    batch["lengths"][:] = length
    batch["masked_ids"][:, :budget] = random.integers(5, VOCAB, batch["masked_ids"].shape)[:, :budget]
    batch["masked_weights"][:, :budget] = batch["span_weights"][:, :budget] = 1
    batch["replacement"][:, :budget] = MASK
    return batch


def _spans(random: np.random.Generator, length: int, budget: int) -> np.ndarray:
    """bool [length]: exactly `budget` pieces, none of them the first or the last of the row."""
    masked = np.zeros(length, bool)
    while (room := budget - masked.sum()) > 0:
        start = random.integers(1, length - 1)
        free = np.flatnonzero(~masked[start : min(start + random.integers(1, 11), length - 1)])[:room]
        masked[start + free] = True
    return masked
