"""Masking of units, by a sequential reference fed with the same draws, and the tags that the encoder may see."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.batch import FIELDS, fields
from spanbert_jax.config import Config, CorpusConfig, DataConfig, MaskingConfig, ModelConfig
from spanbert_jax.config_check import check
from spanbert_jax.corpus.masking import Masker, row_keys
from spanbert_jax.corpus.units import check_kinds, visible_tags
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer, word_starts
from tests.support import masking_reference as reference

PIECES = [*(f"word{i}" for i in range(40)), *(f"##s{i}" for i in range(20))]
TOKENIZER = Tokenizer("wordpiece", "\n".join((*SPECIALS, *PIECES)).encode())
COUNTS = np.array([0] * 5 + [1] * len(PIECES), np.int64)
KINDS = ("NAME", "NP", "YEAR")
LENGTH = 126


def make_config(length: int = LENGTH, pairs: bool = False, **masking: Any) -> Config:
    config = Config(
        corpus=CorpusConfig(spans="capitals", pairs=pairs),
        masking=MaskingConfig(**{"scheme": "unit", **masking}),
        data=DataConfig(block_length=length + (3 if pairs else 2)),
        model=ModelConfig(span_attention="own"),
    )
    check(config)
    return config


@functools.lru_cache
def compiled(config: Config, chunk: int = 0) -> tuple[Masker, Callable[..., dict[str, tf.Tensor]]]:
    masker = Masker(config, TOKENIZER, COUNTS, chunk, KINDS)

    def mask(*given: tf.Tensor) -> dict[str, tf.Tensor]:
        pieces, tags, lengths, keys, rate = given
        return masker.mask_batch(pieces, lengths, keys, rate, None, tags, describe=True)

    return masker, tf.function(mask)


def random_tags(rng: np.random.Generator, lengths: np.ndarray, width: int, share: float = 0.4) -> np.ndarray:
    """int32 [rows, width]: spans of 1 to 5 pieces, some of which touch."""
    tags = np.zeros((len(lengths), width), np.int32)
    for row, length in zip(tags, lengths, strict=True):
        at = 0
        while at < length:
            size, kind = int(rng.integers(1, 6)), int(rng.integers(1, 4))
            if rng.random() < share:
                row[at : min(at + size, length)] = 2 * kind
                row[at] += 1
            at += size
    return tags


def run(
    config: Config, lengths: np.ndarray, seed: int, rate: float | None = None, chunk: int = 0, share: float = 0.4
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(outputs, pieces, tags) of random rows."""
    rng, width = np.random.default_rng(seed), config.data.block_length - 2
    pieces = rng.integers(5, TOKENIZER.vocab_size, (len(lengths), width), dtype=np.int32)
    tags = random_tags(rng, lengths, width, share)
    rate = config.masking.rate if rate is None else rate
    given = pieces, tags, lengths.astype(np.int32), keys_of(len(lengths), seed), tf.constant(rate, tf.float64)
    out = compiled(config, chunk)[1](*given)
    return {name: value.numpy() for name, value in out.items()}, pieces, tags


def keys_of(count: int, seed: int) -> tf.Tensor:
    return row_keys(seed, tf.zeros([count], tf.int64), tf.range(count, dtype=tf.int64))


def masks_of(out: dict[str, np.ndarray], lengths: np.ndarray) -> list[list[bool]]:
    masks = []
    for row, length in enumerate(lengths):
        mask = np.zeros(length + 2, bool)
        mask[out["masked_positions"][row][out["masked_weights"][row] > 0]] = True
        masks.append(mask[1 : length + 1].tolist())
    return masks


def replayed(
    config: Config, pieces: np.ndarray, tags: np.ndarray, lengths: np.ndarray, seed: int, rate: float
) -> list[list[bool]]:
    """The sequential algorithm on the implementation's own draws."""
    masker, keys, first = compiled(config)[0], keys_of(len(lengths), seed), tf.constant(0, tf.int64)
    kinds = [number for number, name in enumerate(KINDS, 1) if name in (config.masking.units or KINDS)]
    units = [reference.units_of(row.tolist(), kinds) for row in tags]
    words = masker.span_draws(keys, tf.constant(lengths, tf.int32), first, 2048)
    drawn = masker.unit_draws(keys, tf.constant([len(of) for of in units], tf.int32), first, 2048)
    masks = []
    for row, length in enumerate(lengths):
        starts = word_starts(TOKENIZER, pieces[row])[:length].tolist()
        of_words, of_units = (
            functools.partial(next, zip(*(part[row].numpy().tolist() for part in parts), strict=True))
            for parts in (words, drawn)
        )
        masks.append(reference.choose_units(starts, rate, units[row], of_words, of_units))
    return masks


FEW = {"units": "NP", "unit_share": 0.9}


@pytest.mark.parametrize(("fields", "chunk"), [({}, 0), ({"unit_rest": "span"}, 0), (FEW, 5)], ids=str)
def test_masks_equal_the_references_loop_on_the_same_draws_for_every_length(fields: dict[str, Any], chunk: int) -> None:
    config, lengths = make_config(**fields), np.arange(1, LENGTH + 1)
    out, pieces, tags = run(config, lengths, 1, chunk=chunk)
    assert masks_of(out, lengths) == replayed(config, pieces, tags, lengths, 1, 0.15)
    np.testing.assert_array_equal(out["masked_weights"].sum(1), np.ceil(0.15 * lengths))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=6, max_size=6),
    share=st.floats(0, 1),
    rate=st.floats(0.01, 0.6),
    seed=st.integers(0, 2**32),
)
def test_any_rows_have_exactly_their_budget_as_the_reference_fills_it(
    lengths: list[int], share: float, rate: float, seed: int
) -> None:
    config, sizes = make_config(30, rate=0.6, unit_rest="span"), np.array(lengths)
    out, pieces, tags = run(config, sizes, seed, rate, share=share)
    masks = masks_of(out, sizes)
    assert [sum(mask) for mask in masks] == [math.ceil(rate * length) for length in lengths]
    assert masks == replayed(config, pieces, tags, sizes, seed, rate)
    check_visible(out, masks, tags)


def check_visible(out: dict[str, np.ndarray], masks: list[list[bool]], tags: np.ndarray) -> None:
    """The leak rule by brute force."""
    for row, mask in enumerate(masks):
        expected = tags[row].copy()
        for begin, end in reference.units_of(tags[row].tolist(), range(1, 128)):
            if any(mask[begin:end]):
                expected[begin:end] = 0
        np.testing.assert_array_equal(out["span_tags"][row], [0, *expected, 0])
        np.testing.assert_array_equal(out["block_tags"][row], [0, *tags[row], 0])


def test_nothing_that_the_rules_say_of_masked_pieces_reaches_the_model() -> None:
    """With rules that find other spans where pieces are masked, the batch is the same."""
    config, lengths, rng = make_config(scheme="span"), np.full(40, LENGTH), np.random.default_rng(7)
    out, pieces, tags = run(config, lengths, 7)
    others = 2 * rng.integers(1, 4, tags.shape) + 1  # a unit of its own at each masked piece
    for row, mask in enumerate(masks_of(out, lengths)):
        for begin, end in reference.units_of(tags[row].tolist(), range(1, 128)):
            if any(mask[begin:end]):
                tags[row, begin:end] = np.where(mask[begin:end], others[row, begin:end], 0)
    given = pieces, tags, lengths.astype(np.int32), keys_of(40, 7), tf.constant(config.masking.rate, tf.float64)
    again = {name: value.numpy() for name, value in compiled(config)[1](*given).items()}
    assert not np.array_equal(again["block_tags"], out["block_tags"]) and out["span_tags"].any()
    for name in fields(config):
        np.testing.assert_array_equal(again[name], out[name], err_msg=name)


def test_rows_without_units_are_masked_by_the_other_draws() -> None:
    config, lengths = make_config(**FEW), np.full(LENGTH, LENGTH)
    out, pieces, tags = run(config, lengths, 3, chunk=5, share=0.0)
    assert not tags.any() and (out["masked_weights"].sum(1) == math.ceil(0.15 * LENGTH)).all()
    assert masks_of(out, lengths) == replayed(config, pieces, tags, lengths, 3, 0.15)


def test_units_get_their_share() -> None:
    config, lengths = make_config(), np.full(LENGTH, LENGTH)
    out, _, tags = run(config, lengths, 4, share=0.1)
    inside = np.take_along_axis(np.pad(tags, [(0, 0), (1, 1)]), out["masked_positions"], axis=1) > 0
    masked = out["masked_weights"] > 0
    assert (tags > 0).mean() < 0.12 and 0.4 < inside[masked].mean() < 0.55  # some units are drawn twice


def test_units_of_a_pair_lie_in_their_own_text() -> None:
    config = make_config(60, pairs=True)
    rng = np.random.default_rng(5)
    first, second = rng.integers(1, 30, (2, 50)).astype(np.int32)
    pieces = rng.integers(5, TOKENIZER.vocab_size, (50, 60), dtype=np.int32)
    tags = np.zeros((50, 60), np.int32)
    for row in range(50):  # one unit each, at the end of A and at the beginning of B
        tags[row, first[row] - 1 : first[row] + 1] = 3, 5
    pairs = np.stack([first, np.zeros(50, np.int32)], axis=1)
    masker = Masker(config, TOKENIZER, COUNTS, kinds=KINDS)
    out = masker.mask_batch(pieces, first + second, keys_of(50, 5), tf.constant(0.15, tf.float64), pairs, tags, True)
    for row in range(50):
        expected = np.zeros(63, np.int32)
        expected[first[row]], expected[first[row] + 2] = 3, 5
        np.testing.assert_array_equal(out["block_tags"][row], expected)
        used = out["masked_weights"][row] > 0
        positions = out["masked_positions"][row].numpy()[used]
        assert used.numpy().sum() == math.ceil(0.15 * first[row]) + math.ceil(0.15 * second[row])
        visible = np.where(np.isin(np.arange(63), positions), 0, expected)
        np.testing.assert_array_equal(out["span_tags"][row], visible)


def test_a_span_of_which_any_piece_is_masked_is_not_visible() -> None:
    tags = tf.constant([[0, 3, 2, 2, 5, 4, 0, 3], [3, 3, 3, 2, 0, 0, 0, 0]], tf.int32)
    mask = tf.constant([[1, 0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0, 0, 0]]) > 0
    assert visible_tags(tags, mask).numpy().tolist() == [[0, 0, 0, 0, 5, 4, 0, 3], [3, 0, 3, 2, 0, 0, 0, 0]]


def test_tags_are_in_the_batch_only_where_the_encoder_reads_them() -> None:
    assert "span_tags" in fields(make_config()) and "span_tags" not in fields(Config())
    assert FIELDS["span_tags"].dtype is np.int32


@pytest.mark.parametrize(
    ("fields", "kinds", "message"),
    [
        ({}, (), "the blocks were built without rules for spans; set --config.corpus.spans and another"),
        ({"units": "NP, VP"}, KINDS, "config.masking.units names 'VP', and .* are of the kinds NAME, NP, YEAR; name"),
    ],
)
def test_units_that_the_blocks_lack_are_refused(fields: dict[str, Any], kinds: tuple[str, ...], message: str) -> None:
    config = make_config(**fields)
    with pytest.raises(UserError, match=message):
        check_kinds(config, kinds)
    with pytest.raises(UserError, match=message):
        Masker(config, TOKENIZER, COUNTS, kinds=kinds)


def test_more_kinds_than_the_encoder_has_room_for_are_refused() -> None:
    config = Config(corpus=CorpusConfig(spans="capitals"), model=ModelConfig(span_embedding=True, span_kinds=2))
    check_kinds(config, KINDS[:2])
    with pytest.raises(UserError, match=r"has 3 kinds of spans, and config.model.span_kinds is 2; set --config.mod"):
        check_kinds(config, KINDS)
