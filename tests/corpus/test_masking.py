"""Masking, exactly: a sequential reference fed with the same draws, and properties that hold for every block."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.batch import FIELDS, KEPT, MASK, RANDOM, slots
from spanbert_jax.config import Config, DataConfig, MaskingConfig, TrainConfig
from spanbert_jax.config_check import check
from spanbert_jax.corpus import masking
from spanbert_jax.corpus.masking import Masker, mask_rate, row_keys
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer, word_starts
from spanbert_jax.text.tokenizer_json import JsonSettings
from tests.support import masking_reference as reference

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = [f"word{i}" for i in range(80)] + [f"##ing{i}" for i in range(40)] + list(".,;:!?")
TOKENIZER = Tokenizer("wordpiece", "\n".join((*SPECIALS, *PIECES)).encode())
COUNTS = np.arange(TOKENIZER.vocab_size, dtype=np.int64) % 7  # some ids never occur
COUNTS[:5] = 0
LENGTH = 510


def make_config(**fields: Any) -> Config:
    sbo_weight = 0.0 if fields.get("scheme") == "subword" else 1.0
    block_length = fields.pop("block_length", LENGTH + 2)
    config = Config(
        masking=MaskingConfig(**fields),
        data=DataConfig(block_length=block_length),
        train=TrainConfig(sbo_weight=sbo_weight),
    )
    check(config)
    return config


@functools.lru_cache
def compiled(config: Config, chunk: int = 0) -> tuple[Masker, Callable[..., dict[str, tf.Tensor]]]:
    masker = Masker(config, TOKENIZER, COUNTS, chunk)

    def mask(pieces: tf.Tensor, lengths: tf.Tensor, keys: tf.Tensor, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        return masker.mask_batch(pieces, lengths, keys, rate, describe=True)

    return masker, tf.function(mask)


def random_blocks(lengths: np.ndarray, seed: int, width: int = LENGTH) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(5, TOKENIZER.vocab_size, (len(lengths), width), dtype=np.int32)
    return np.where(np.arange(width) < lengths[:, None], blocks, TOKENIZER.pad_id).astype(np.int32)


def keys_of(count: int, seed: int = 3, epoch: int = 0) -> tf.Tensor:
    return row_keys(seed, tf.fill([count], tf.constant(epoch, tf.int64)), tf.range(count, dtype=tf.int64))


def run(
    config: Config, blocks: np.ndarray, lengths: np.ndarray, keys: tf.Tensor, rate: float | None = None, chunk: int = 0
) -> dict[str, np.ndarray]:
    share = tf.constant(config.masking.rate if rate is None else rate, tf.float64)
    out = compiled(config, chunk)[1](blocks, lengths.astype(np.int32), keys, share)
    return {name: value.numpy() for name, value in out.items()}


def masks_of(out: dict[str, np.ndarray], lengths: np.ndarray) -> list[list[bool]]:
    masks = []
    for row, length in enumerate(lengths):
        used = out["masked_weights"][row] > 0
        mask = np.zeros(length, bool)
        mask[out["masked_positions"][row][used] - 1] = True
        masks.append(mask.tolist())
    return masks


def check_row(config: Config, block: np.ndarray, length: int, row: dict[str, np.ndarray], rate: float) -> None:
    """Every exact promise of `mask_batch` for one row."""
    settings_, places = config.masking, slots(config)
    budget = math.ceil(rate * length)
    used = np.arange(places) < budget
    positions = row["masked_positions"]
    np.testing.assert_array_equal(row["masked_weights"], used.astype(np.float32))
    assert np.all(np.diff(positions[used]) > 0)
    assert row["lengths"] == (length + 2 if length else 0)
    for name in (name for name, field in FIELDS.items() if field.per == "slot"):
        assert not row[name][~used].any(), name

    clean = np.full(config.data.block_length, TOKENIZER.pad_id)
    if length:
        clean[: length + 2] = [TOKENIZER.cls_id, *block[:length], TOKENIZER.sep_id]
    np.testing.assert_array_equal(row["masked_ids"][used], clean[positions[used]])
    untouched = np.ones(config.data.block_length, bool)
    untouched[positions[used]] = False
    np.testing.assert_array_equal(row["input_ids"][untouched], clean[untouched])

    shown = row["input_ids"][positions[used]]
    kinds = row["replacement"][used]
    assert np.all(shown[kinds == MASK] == TOKENIZER.mask_id)
    assert np.all(shown[kinds == KEPT] == row["masked_ids"][used][kinds == KEPT])
    assert np.all(COUNTS[shown[kinds == RANDOM]] > 0)

    mask = np.zeros(length, bool)
    mask[positions[used] - 1] = True
    runs = reference.merged_runs(mask.tolist())
    kind_at = dict(zip((positions[used] - 1).tolist(), kinds.tolist(), strict=True))
    if settings_.granularity == "span" and settings_.scheme != "subword":
        assert all(len({kind_at[i] for i in range(first, last + 1)}) == 1 for first, last in runs)
    rows = reference.span_rows(runs, length, settings_.max_span_offset, settings_.boundaries == "external")
    if settings_.scheme == "subword":
        rows = {}
    for slot in np.flatnonzero(used):
        left, right, offset = rows.get(positions[slot] - 1, (-1, -1, 0))
        got = [row[name][slot] for name in ("span_left", "span_right", "span_offset", "span_weights")]
        assert got == [left + 1, right + 1, offset, float(positions[slot] - 1 in rows)]
        if row["span_weights"][slot] and settings_.boundaries == "external":
            assert untouched[left + 1] and untouched[right + 1]
            assert left >= 0 and right < length


def replayed(masker: Masker, starts: np.ndarray, lengths: np.ndarray, keys: tf.Tensor, rate: float) -> list[list[bool]]:
    """The sequential algorithm on the implementation's own draws."""
    count = 4096 if masker.masking.scheme != "span" else 1024
    words, anchors = (x.numpy() for x in masker.span_draws(keys, tf.constant(lengths), tf.constant(0, tf.int64), count))
    masks = []
    for row, length in enumerate(lengths):
        draws = zip(words[row].tolist(), anchors[row].tolist(), strict=True)
        masks.append(reference.choose(starts[row, :length].tolist(), rate, functools.partial(next, draws)).mask)
    return masks


@pytest.mark.parametrize("scheme", ["span", "whole_word", "subword"])
@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_masks_equal_the_sequential_algorithm_on_the_same_draws_for_every_length(scheme: str, rate: float) -> None:
    config = make_config(scheme=scheme, rate=rate)
    lengths = np.arange(1, LENGTH + 1, dtype=np.int32)
    blocks, keys = random_blocks(lengths, 1), keys_of(LENGTH)
    out = run(config, blocks, lengths, keys)
    starts = np.array([word_starts(TOKENIZER, block) for block in blocks])
    if scheme == "subword":
        starts[:] = True
    assert masks_of(out, lengths) == replayed(compiled(config)[0], starts, lengths, keys, rate)


@pytest.mark.parametrize("shape", ["one word", "pieces", "last word long", "first word long"])
def test_masks_equal_the_sequential_algorithm_for_extreme_words(shape: str) -> None:
    config = make_config()
    lengths = np.arange(1, LENGTH + 1, dtype=np.int32)
    blocks = np.full((LENGTH, LENGTH), TOKENIZER.vocab_size - 20, np.int32)  # a "##" piece
    if shape == "pieces":
        blocks[:] = 10
    elif shape == "last word long":
        blocks[:, :200] = 10
    elif shape == "first word long":
        blocks[:, 100:] = 10
    keys = keys_of(LENGTH)
    starts = np.array([word_starts(TOKENIZER, block) for block in blocks])
    out = run(config, blocks, lengths, keys)
    assert masks_of(out, lengths) == replayed(compiled(config)[0], starts, lengths, keys, 0.15)


@pytest.mark.parametrize("chunk", [1, 7, 62])
def test_masks_do_not_depend_on_how_many_draws_are_made_at_once(chunk: int) -> None:
    lengths = np.full(32, LENGTH, np.int32)
    blocks, keys, config = random_blocks(lengths, 2), keys_of(32), make_config()
    expected, got = run(config, blocks, lengths, keys), run(config, blocks, lengths, keys, chunk=chunk)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"boundaries": "internal"},
        {"granularity": "piece"},
        {"scheme": "whole_word"},
        {"scheme": "subword"},
        {"rate": 0.4, "span_p": 0.1, "span_min": 2, "span_max": 5, "max_span_offset": 3},
        {"mask_share": 0.0, "random_share": 1.0},
        {"mask_share": 1.0, "random_share": 0.0},
    ],
    ids=str,
)
def test_every_promise_holds_for_every_length(fields: dict[str, Any]) -> None:
    config = make_config(**fields)
    lengths = np.arange(LENGTH + 1, dtype=np.int32)  # an empty row too
    blocks = random_blocks(lengths, 4)
    out = run(config, blocks, lengths, keys_of(len(lengths)))
    assert len({value.dtype for value in out.values()}) == 2
    for row, length in enumerate(lengths.tolist()):
        check_row(config, blocks[row], length, {name: value[row] for name, value in out.items()}, config.masking.rate)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 62), min_size=8, max_size=8),
    joined=st.floats(0, 1),
    rate=st.floats(0.01, 0.6),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**31),
    internal=st.booleans(),
)
def test_every_promise_holds_for_any_words_rates_and_seeds(
    lengths: list[int], joined: float, rate: float, seed: int, epoch: int, internal: bool
) -> None:
    config = make_config(block_length=64, rate=0.6, boundaries="internal" if internal else "external")
    rng = np.random.default_rng(seed)
    inside = rng.random((8, 62)) < joined
    blocks = np.where(inside, rng.integers(85, 125, inside.shape), rng.integers(5, 85, inside.shape)).astype(np.int32)
    sizes, keys = np.array(lengths, np.int32), keys_of(8, seed, epoch)
    out = run(config, blocks, sizes, keys, rate)
    for row, length in enumerate(lengths):
        check_row(config, blocks[row], length, {name: value[row] for name, value in out.items()}, rate)
    starts = np.array([word_starts(TOKENIZER, block) for block in blocks])
    assert masks_of(out, sizes) == replayed(compiled(config)[0], starts, sizes, keys, rate)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    lengths = np.random.default_rng(5).integers(1, LENGTH + 1, 16).astype(np.int32)
    blocks, keys, config = random_blocks(lengths, 6), keys_of(16), make_config()
    together = run(config, blocks, lengths, keys)
    order = np.random.default_rng(7).permutation(16)
    shuffled = run(config, blocks[order], lengths[order], tf.gather(keys, order))
    alone = run(config, blocks[3:4], lengths[3:4], keys[3:4])
    for name in together:
        np.testing.assert_array_equal(shuffled[name], together[name][order], err_msg=name)
        np.testing.assert_array_equal(alone[name], together[name][3:4], err_msg=name)


def test_seed_epoch_and_block_each_change_the_masks() -> None:
    lengths = np.full(1, LENGTH, np.int32)
    blocks, config = random_blocks(lengths, 8), make_config()

    def positions(seed: int, epoch: int, block: int) -> bytes:
        keys = row_keys(seed, tf.constant([epoch], tf.int64), tf.constant([block], tf.int64))
        return run(config, blocks, lengths, keys)["masked_positions"].tobytes()

    cases = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)]
    assert len({positions(*case) for case in cases}) == len(cases)
    assert positions(1, 2, 3) == positions(1, 2, 3)


def test_keys_are_splitmix64() -> None:
    """Against the first outputs of the generator's published C code from state 1234567 (Vigna, splitmix64.c)."""
    gamma = masking.GAMMA
    states = [(1234567 + gamma * i) % 2**64 for i in range(1, 4)]
    got = masking.splitmix64(tf.constant(states, tf.uint64)).numpy().tolist()
    assert got == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("kind", ["wordpiece", "boundaries"])
def test_word_starts_are_the_tokenizers(kind: str) -> None:
    config, rng = make_config(), np.random.default_rng(9)
    tokenizer = Tokenizer("wordpiece", "\n".join((*SPECIALS, *PIECES)).encode())
    if kind == "boundaries":
        for table in ("starts_word", "ends_word", "joins_next"):
            setattr(tokenizer, table, rng.random(tokenizer.vocab_size) < 0.4)
    blocks = random_blocks(np.full(20, LENGTH), 10)
    got = Masker(config, tokenizer, COUNTS).word_starts(tf.constant(blocks)).numpy()
    np.testing.assert_array_equal(got, [word_starts(tokenizer, block) for block in blocks])


def test_a_vocabulary_that_does_not_show_where_words_begin_masks_pieces_alone() -> None:
    engine = tokenizers.Tokenizer(tokenizers.models.BPE({name: i for i, name in enumerate((*SPECIALS, *"abc"))}, []))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer("tokenizer_json", engine.to_str().encode(), settings=JsonSettings(SPECIALS))
    assert not tokenizer.marks_words
    with pytest.raises(UserError, match=r"do not show where words begin.*--config.masking.scheme=subword"):
        Masker(make_config(), tokenizer, COUNTS)
    Masker(make_config(scheme="subword"), tokenizer, COUNTS)


def test_mask_rate_is_a_straight_line_then_constant() -> None:
    line = MaskingConfig(rate=0.3, final_rate=0.15, rate_steps=100)
    steps = [0, 1, 50, 99, 100, 101, 10**12]
    got = [float(mask_rate(line, tf.constant(step, tf.int64))) for step in steps]
    assert got == [0.3 + (0.15 - 0.3) * min(step / 100, 1.0) for step in steps]
    rising = MaskingConfig(rate=0.15, final_rate=0.45, rate_steps=100)  # 0.15 + (0.45 - 0.15) is above 0.45
    assert [float(mask_rate(rising, tf.constant(step, tf.int64))) for step in (100, 1000)] == [0.45, 0.45]
    constant = dataclasses.replace(line, rate_steps=0)
    assert float(mask_rate(constant, tf.constant(50, tf.int64))) == 0.3
