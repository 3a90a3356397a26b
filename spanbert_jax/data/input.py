"""Global batches from blocks: step -> rows -> masks -> `jax.Array`s.

Invariant: a batch is a pure function of (seed, step). Row r of step s is example g = s * batch + r; its epoch is
g // N, its block permutation(seed, epoch)[g % N], and its masks come from (seed, epoch, block). So resuming is going on
from a step, neither the number of processes nor the mesh changes a batch, and each block comes once an epoch. A process
computes the rows that its own devices hold, as the sharding says, and no others.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from spanbert_jax.config import Config
from spanbert_jax.data.blocks import Blocks
from spanbert_jax.data.masking import Masker, mask_rate, row_keys
from spanbert_jax.text.tokenizer import Tokenizer

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's

EVAL_SEED = 0  # held-out masks are the same for every training seed, so that runs compare
EVAL_EPOCH = 2**31 - 1  # an epoch that no training run reaches
_PREFETCH = 4  # batches that wait ready

_MakeBatch = Callable[[tf.Tensor], dict[str, tf.Tensor]]  # of a step, int64 scalar


def train_batches(
    config: Config,
    blocks: Blocks,
    tokenizer: Tokenizer,
    sharding: jax.sharding.Sharding,
    start_step: int,
    stop_step: int,
) -> Iterator[dict[str, jax.Array]]:
    """The batches of steps start_step .. stop_step - 1, as `Masker.mask_batch` describes them.

    Every value is a global array of config.train.batch_size rows, laid out by `sharding` (of the first axis), for
    instance NamedSharding(mesh, P(("data", "fsdp"))), which must divide the batch.
    """
    rows = _rows_held(sharding, config.train.batch_size)
    batch = _train_batch(config, blocks, tokenizer, rows, describe=False)
    return _global_batches(batch, start_step, stop_step, sharding, rows, config.train.batch_size)


def described_batches(
    config: Config, blocks: Blocks, tokenizer: Tokenizer, start_step: int, stop_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """What `train_batches` gives, as NumPy, with what `Masker.mask_batch` adds to describe it."""
    rows = np.arange(config.train.batch_size, dtype=np.int64)
    return _local_batches(_train_batch(config, blocks, tokenizer, rows, describe=True), start_step, stop_step)


def eval_batches(
    config: Config, blocks: Blocks, tokenizer: Tokenizer, sharding: jax.sharding.Sharding, limit: int
) -> Iterator[dict[str, jax.Array]]:
    """Each held-out block exactly once (the first `limit` of a fixed order; 0: all), always with the same masks.

    Batches are like `train_batches`'; what is left of the last one is empty rows, with length 0 and weights 0.
    """
    rows = _rows_held(sharding, config.train.batch_size)
    masker = Masker(config, tokenizer, blocks.metadata.piece_counts)
    count = min(limit or len(blocks), len(blocks))
    rate = tf.constant(config.masking.rate, tf.float64)

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        examples = step * config.train.batch_size + rows
        epochs = tf.fill(tf.shape(examples), tf.constant(EVAL_EPOCH, tf.int64))
        indices = _shuffled(tf.minimum(examples, count - 1), EVAL_SEED, epochs, len(blocks))
        pieces, lengths = _read(blocks, indices, masker)
        lengths = tf.where(examples < count, lengths, 0)
        return masker.mask_batch(pieces, lengths, row_keys(EVAL_SEED, epochs, indices), rate)

    steps = -(-count // config.train.batch_size)
    return _global_batches(batch, 0, steps, sharding, rows, config.train.batch_size)


def _train_batch(config: Config, blocks: Blocks, tokenizer: Tokenizer, rows: np.ndarray, describe: bool) -> _MakeBatch:
    masker = Masker(config, tokenizer, blocks.metadata.piece_counts)
    seed = config.train.seed

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        examples = step * config.train.batch_size + rows  # int64 [rows]
        epochs = examples // len(blocks)
        indices = _shuffled(examples % len(blocks), seed, epochs, len(blocks))
        pieces, lengths = _read(blocks, indices, masker)
        rate = mask_rate(config.masking, step)
        return masker.mask_batch(pieces, lengths, row_keys(seed, epochs, indices), rate, describe)

    return batch


def _shuffled(indices: tf.Tensor, seed: int, epochs: tf.Tensor, count: int) -> tf.Tensor:
    """int64 [rows]: the block at place `indices` (below `count`) of each row's epoch's permutation.

    The op under tf.random.experimental.index_shuffle, which itself pads the wrong axis of a seed per row.
    """
    seeds = tf.stack([tf.fill(tf.shape(epochs), tf.constant(seed, tf.int64)), epochs, tf.zeros_like(epochs)], axis=1)
    last = tf.fill(tf.shape(indices), tf.constant(count - 1, tf.int64))
    return tf.raw_ops.RandomIndexShuffle(index=indices, seed=seeds, max_index=last, rounds=4)


def _read(blocks: Blocks, indices: tf.Tensor, masker: Masker) -> tuple[tf.Tensor, tf.Tensor]:
    """Blocks at `indices` (int64 [rows]): pieces int32 [rows, block_length - 2], padded, and lengths int32 [rows]."""

    def read(wanted: np.ndarray) -> np.ndarray:
        return np.array(blocks.read(wanted), dtype=object)

    records = tf.numpy_function(read, [indices], tf.string, stateful=False)
    records.set_shape(indices.shape)
    feature = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True, default_value=-1)
    parsed = tf.io.parse_example(records, {"input_ids": feature})["input_ids"]  # [rows, longest of them]
    parsed = tf.pad(parsed, [[0, 0], [0, masker.row_length - 2 - tf.shape(parsed)[1]]], constant_values=-1)
    pieces = tf.ensure_shape(tf.cast(parsed, tf.int32), [indices.shape[0], masker.row_length - 2])
    present = pieces >= 0
    return tf.where(present, pieces, masker.pad_id), tf.reduce_sum(tf.cast(present, tf.int32), axis=1)


def _rows_held(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """int64 [rows], ascending: the rows of the global batch that this process's devices hold."""
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size, dtype=np.int64)[index] for index in held]))


def _local_batches(batch: _MakeBatch, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """`batch` of each step, in order, computed ahead in the background."""
    graph = tf.autograph.experimental.do_not_convert(batch)  # no Python in it to convert; tracing takes half the time
    dataset = tf.data.Dataset.range(start, stop).map(graph, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(_PREFETCH).as_numpy_iterator()


def _global_batches(
    batch: _MakeBatch, start: int, stop: int, sharding: jax.sharding.Sharding, rows: np.ndarray, batch_size: int
) -> Iterator[dict[str, jax.Array]]:
    """`_local_batches`, its rows given to this process's devices."""

    def to_global(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            place = np.searchsorted(rows, first)
            return local[place : place + last - first]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    for local in _local_batches(batch, start, stop):
        yield {name: to_global(value) for name, value in local.items()}
