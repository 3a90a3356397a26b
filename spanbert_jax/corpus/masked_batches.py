"""Global batches from blocks: step -> rows -> masks -> `jax.Array`s.

Invariant: a batch is a pure function of (seed, step). `BucketedOrder` says which blocks a batch holds, each block once
an epoch, and the masks come from (seed, epoch, block). So a run resumes from nothing but its step. Neither the number
of processes nor the mesh changes a batch, except for empty rows that fill the devices evenly. A process computes the
rows that its own devices hold, as the sharding says, and no others.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import tensorflow as tf

from spanbert_jax.batch import Batch, NumpyBatch, specials
from spanbert_jax.batches.feed import HeldRows, feed
from spanbert_jax.batches.lengths import BucketedOrder, choose_lengths, equal_sizes, sorted_batches
from spanbert_jax.config import Config
from spanbert_jax.corpus.blocks import Blocks, parse_records
from spanbert_jax.corpus.masking import Masker, mask_rate, row_keys
from spanbert_jax.text.packing import FEATURE, SPANS_FEATURE
from spanbert_jax.text.pairs import PAIR
from spanbert_jax.text.tokenizer import Tokenizer

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's

EVAL_SEED = 0  # held-out masks are the same for every training seed, so that runs compare
EVAL_EPOCH = 2**31 - 1  # an epoch that no training run reaches
_PREFETCH = 4  # batches that are ready, in NumPy, before they are asked for

_Order = Callable[[int], tuple[np.ndarray, int]]  # step -> (int64 block numbers, -1: an empty row; length of the rows)
_MakeBatch = Callable[[tf.Tensor], dict[str, tf.Tensor]]  # step, an int64 scalar -> its batch


def row_lengths(config: Config, blocks: Blocks) -> tuple[int, ...]:
    """The lengths, ascending, that rows of these blocks are padded to; the last is config.data.block_length."""
    longest = config.data.block_length
    return (*choose_lengths(blocks.lengths + specials(config), config.data.lengths, longest)[:-1], longest)


def train_order(config: Config, blocks: Blocks) -> BucketedOrder:
    """Which blocks the batch of each step holds."""
    lengths = row_lengths(config, blocks)
    sizes = equal_sizes(lengths, config.train.batch_size, config.data.block_length)
    return BucketedOrder(blocks.lengths + specials(config), lengths, sizes, config.train.seed)


def train_batches(
    config: Config,
    blocks: Blocks,
    tokenizer: Tokenizer,
    sharding: jax.sharding.Sharding,
    start_step: int,
    stop_step: int,
) -> Iterator[Batch]:
    """The batches of steps start_step .. stop_step - 1: arrays of `batch.fields`.

    Every value is a global array with its first axis laid out by `sharding`, for instance
    NamedSharding(mesh, P(("data", "fsdp"))). A batch's rows are padded to one of `row_lengths`. A batch has as many
    positions as config.train.batch_size rows of block_length, or somewhat fewer (`equal_sizes`).
    """
    held = HeldRows(sharding, config.train.accumulation)
    batch = _train_batch(config, blocks, tokenizer, held.rows)
    return feed(_local_batches(batch, start_step, stop_step), sharding, held)


def described_batches(
    config: Config, blocks: Blocks, tokenizer: Tokenizer, start_step: int, stop_step: int
) -> Iterator[NumpyBatch]:
    """The batches of `train_batches` on one device, in NumPy, with the field that `Masker.mask_batch` adds for
    `describe`."""
    return _local_batches(_train_batch(config, blocks, tokenizer, describe=True), start_step, stop_step)


def eval_batches(
    config: Config, blocks: Blocks, tokenizer: Tokenizer, sharding: jax.sharding.Sharding, limit: int
) -> Iterator[Batch]:
    """Each held-out block exactly once, always with the same masks, as arrays of `batch.fields`.

    limit: the number of blocks, always the same ones; 0: all. A batch has about the positions of a microbatch of
    `train_batches`; the shortest rows come first. The last batch of a length is filled up with empty rows, whose length
    and weights are 0.
    """
    where = sharding if sharding.num_devices > 1 else None
    dataset = _eval_dataset(config, blocks, tokenizer, evaluated_rows(blocks, limit), where)
    return feed(dataset.as_numpy_iterator(), sharding, HeldRows(sharding))


def local_eval_batches(config: Config, blocks: Blocks, tokenizer: Tokenizer, limit: int) -> Iterator[NumpyBatch]:
    """The batches of `eval_batches` on one device, in NumPy."""
    return _eval_dataset(config, blocks, tokenizer, evaluated_rows(blocks, limit), None).as_numpy_iterator()


def evaluated_rows(blocks: Blocks, limit: int) -> int:
    """The number of rows of `eval_batches` that are not empty. Limits with the same number share a dataset."""
    return min(limit or len(blocks), len(blocks))


# The evaluations of a run, and the guess beside them, take the same dataset. Tracing it anew would cost half a second.
@functools.lru_cache(maxsize=1)
def _eval_dataset(
    config: Config, blocks: Blocks, tokenizer: Tokenizer, count: int, sharding: jax.sharding.Sharding | None
) -> tf.data.Dataset:
    """The rows of `eval_batches` that this process holds, of `count` blocks. sharding: None for one device."""
    if sharding is None:
        return _local_dataset(*_eval_batch(config, blocks, tokenizer, count))
    held = HeldRows(sharding)
    return _local_dataset(*_eval_batch(config, blocks, tokenizer, count, held.rows, held.unit))


def _train_batch(
    config: Config,
    blocks: Blocks,
    tokenizer: Tokenizer,
    held: Callable[[np.ndarray], np.ndarray] = lambda indices: indices,
    describe: bool = False,
) -> _MakeBatch:
    order = train_order(config, blocks)
    masker = Masker(config, tokenizer, blocks.metadata.piece_counts, kinds=blocks.metadata.kinds)

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = _read(config, blocks, order.batch, held, step)
        keys = row_keys(config.train.seed, tf.fill(tf.shape(rows.blocks), step // order.steps_per_epoch), rows.blocks)
        rate = mask_rate(config.masking, step)
        return masker.mask_batch(rows.pieces, rows.lengths, keys, rate, rows.pairs, rows.tags, describe)

    return batch


def _eval_batch(
    config: Config,
    blocks: Blocks,
    tokenizer: Tokenizer,
    count: int,
    held: Callable[[np.ndarray], np.ndarray] = lambda indices: indices,
    unit: int = 1,
) -> tuple[_MakeBatch, int]:
    """The function that makes the held rows of a batch of an evaluation, and the number of batches."""
    chosen = np.random.default_rng(EVAL_SEED).permutation(len(blocks))[:count]
    positions = config.train.batch_size // config.train.accumulation * config.data.block_length
    lengths = blocks.lengths[chosen] + specials(config)
    batches = sorted_batches(lengths, row_lengths(config, blocks), positions, unit)
    masker = Masker(config, tokenizer, blocks.metadata.piece_counts, kinds=blocks.metadata.kinds)
    rate = tf.constant(config.masking.rate, tf.float64)

    def order(step: int) -> tuple[np.ndarray, int]:
        places, length = batches[step]
        return np.where(places >= 0, chosen[places], -1), length

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = _read(config, blocks, order, held, step)
        epochs = tf.fill(tf.shape(rows.blocks), tf.constant(EVAL_EPOCH, tf.int64))
        keys = row_keys(EVAL_SEED, epochs, rows.blocks)
        return masker.mask_batch(rows.pieces, rows.lengths, keys, rate, rows.pairs, rows.tags)

    return batch, len(batches)


class _Rows(NamedTuple):
    """The held rows of a step, as tensors; `Masker.mask_batch` says more."""

    blocks: tf.Tensor  # int64 [rows], their numbers; -1: an empty row
    pieces: tf.Tensor  # int32 [rows, length - 2], or - 3 with pairs; any values beyond a block's end
    lengths: tf.Tensor  # int32 [rows]; 0: an empty row
    pairs: tf.Tensor | None  # int32 [rows, 2], with config.corpus.pairs
    tags: tf.Tensor | None  # int32, the shape of `pieces`, with config.corpus.spans


def _read(
    config: Config, blocks: Blocks, order: _Order, held: Callable[[np.ndarray], np.ndarray], step: tf.Tensor
) -> _Rows:
    """The held rows of a step, whose blocks and length `order` gives."""

    def read(step: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.int64]:
        indices, length = order(int(step))
        rows = held(indices)
        return np.array(blocks.read(np.maximum(rows, 0)), dtype=object), rows, np.int64(length - specials(config))

    records, indices, width = tf.numpy_function(read, [step], (tf.string, tf.int64, tf.int64), stateful=False)
    records, indices, width = (
        tf.ensure_shape(records, [None]),
        tf.ensure_shape(indices, [None]),
        tf.ensure_shape(width, []),
    )
    wanted = {FEATURE: True, PAIR: config.corpus.pairs, SPANS_FEATURE: bool(config.corpus.spans)}
    features = parse_records(records, [name for name, is_wanted in wanted.items() if is_wanted])
    parsed = features[FEATURE]  # [rows, longest of them]
    missing = tf.maximum(width - tf.shape(parsed, tf.int64)[1], 0)
    parsed = tf.pad(parsed, [[0, 0], [0, missing]], constant_values=-1)[:, :width]  # an empty row's block may be longer
    present = (parsed >= 0) & (indices >= 0)[:, None]
    pieces, lengths = tf.cast(tf.maximum(parsed, 0), tf.int32), tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
    pairs = tf.cast(features[PAIR], tf.int32) if config.corpus.pairs else None
    tags = None
    if config.corpus.spans:
        tags = tf.where(present, tf.pad(features[SPANS_FEATURE], [[0, 0], [0, missing]])[:, :width], 0)
    return _Rows(indices, pieces, lengths, pairs, tags)


def _local_batches(batch: _MakeBatch, start: int, stop: int) -> Iterator[NumpyBatch]:
    return _local_dataset(batch, stop, start).as_numpy_iterator()


def _local_dataset(batch: _MakeBatch, stop: int, start: int = 0) -> tf.data.Dataset:
    """The batch of each step, in order, computed ahead in the background."""
    graph = tf.autograph.experimental.do_not_convert(batch)  # has no Python to convert; tracing takes half the time
    dataset = tf.data.Dataset.range(start, stop).map(graph, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(_PREFETCH)
