"""Rows with one [MASK] for each merged span, against a walk over the positions of the same rows before that."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from spanbert_jax.config import Config, CorpusConfig, DataConfig, MaskingConfig, ModelConfig
from spanbert_jax.config_check import check
from spanbert_jax.corpus.masking import Masker, row_keys
from spanbert_jax.corpus.neighbours import visible_neighbours
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from tests.support import masking_reference as reference

PIECES = [*(f"word{i}" for i in range(40)), *(f"##s{i}" for i in range(20))]
TOKENIZER = Tokenizer("wordpiece", "\n".join((*SPECIALS, *PIECES)).encode())
COUNTS = np.array([0] * 5 + [1] * len(PIECES), np.int64)
ROWS, LENGTH, LIMIT = 64, 48, 6


def make_config(pairs: bool = False, spans: bool = False, rate: float = 0.15) -> Config:
    config = Config(
        corpus=CorpusConfig(pairs=pairs, spans="capitals" if spans else ""),
        masking=MaskingConfig(collapse_spans=True, max_span_offset=LIMIT, rate=rate),
        data=DataConfig(block_length=LENGTH),
        model=ModelConfig(decoder_layers=1, span_attention="own" if spans else "none"),
    )
    check(config)
    return config


@functools.cache
def batches(pairs: bool, spans: bool, rate: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(collapsed, the same rows as they are otherwise): rows of every length, one of them empty."""
    config, rng = make_config(pairs, spans, rate), np.random.default_rng(0)
    plain = dataclasses.replace(config, masking=dataclasses.replace(config.masking, collapse_spans=False))
    width = LENGTH - (3 if pairs else 2)
    lengths = (2 + np.arange(ROWS) % (width - 1)).astype(np.int32)
    pieces = rng.integers(5, TOKENIZER.vocab_size, (ROWS, width), dtype=np.int32)
    of_pairs = np.stack([rng.integers(1, lengths), rng.integers(0, 2, ROWS)], 1).astype(np.int32) if pairs else None
    lengths[-1] = 0
    tags = np.where(np.arange(width) < lengths[:, None], rng.integers(0, 6, (ROWS, width)), 0).astype(np.int32)
    keys = row_keys(1, tf.zeros(ROWS, tf.int64), tf.range(ROWS, dtype=tf.int64))
    given = (pieces, lengths, keys, tf.constant(rate, tf.float64), of_pairs, tags if spans else None)
    make: Callable[[Config], dict[str, tf.Tensor]] = lambda one: tf.function(  # noqa: E731
        Masker(one, TOKENIZER, COUNTS, kinds=("NAME", "NP")).mask_batch
    )(*given)
    one, other = ({name: value.numpy() for name, value in make(which).items()} for which in (config, plain))
    return one, other


@pytest.mark.parametrize(
    ("pairs", "spans", "rate"),
    [(False, False, 0.15), (False, False, 0.6), (True, False, 0.3), (False, True, 0.4)],
)
def test_every_field_of_every_row_is_that_of_a_walk_over_the_row(pairs: bool, spans: bool, rate: float) -> None:
    found, plain = batches(pairs, spans, rate)
    assert found.keys() == plain.keys()
    for number in range(ROWS):
        row = {name: value[number] for name, value in plain.items()}
        expected = reference.collapsed_row(row, TOKENIZER.mask_id, TOKENIZER.pad_id, LIMIT)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name][number], value, f"{name} of row {number}")
            assert found[name].dtype == plain[name].dtype


def test_a_row_holds_as_many_masks_as_spans_and_nothing_of_a_span_s_pieces_or_length() -> None:
    found, plain = batches(False, False, 0.6)
    used = found["masked_weights"] > 0
    spans = [len(set(row[there])) for row, there in zip(found["masked_positions"], used, strict=True)]
    masks = found["input_ids"] == TOKENIZER.mask_id
    assert masks.sum(1).tolist() == spans
    assert not np.any(masks[:, 1:] & masks[:, :-1])  # spans never touch
    shorter = plain["lengths"] - found["lengths"]
    assert shorter.tolist() == (plain["masked_weights"].sum(1) - spans).tolist() and shorter.max() > 10
    # The inputs say nothing of how a span was replaced, which the rows as they are otherwise do.
    assert set(found["replacement"].ravel().tolist()) == {0, 1} < set(plain["replacement"].ravel().tolist())


def test_the_neighbours_of_a_piece_are_those_of_the_row_before_it_was_collapsed() -> None:
    found, plain = batches(False, False, 0.3)
    ours, theirs = visible_neighbours(found), visible_neighbours(plain)
    used = found["masked_weights"] > 0
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one[used], other[used])


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("model", {"decoder_layers": 0}, "decoder_layers is 0, so no head reads such rows"),
        ("masking", {"boundaries": "internal"}, "boundaries is 'internal'"),
        ("masking", {"scheme": "subword"}, "'subword'"),
    ],
)
def test_what_has_no_collapsed_rows_is_refused(section: str, fields: dict[str, object], message: str) -> None:
    config = make_config()
    train = dataclasses.replace(config.train, sbo_weight=0.0)
    changed = dataclasses.replace(getattr(config, section), **fields)
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(config, train=train, **{section: changed}))
