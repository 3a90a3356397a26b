"""Rows of two texts: each is masked as the sequential algorithm masks a row of its own, and no span crosses a [SEP]."""

import functools
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from spanbert_jax.batch import empty_batch, largest_budget, slots
from spanbert_jax.config import Config, CorpusConfig, DataConfig, MaskingConfig, TrainConfig
from spanbert_jax.corpus import segments
from spanbert_jax.corpus.masking import Masker, keys_of_texts, row_keys
from spanbert_jax.text.tokenizer import Tokenizer, word_starts
from tests.support import masking_reference as reference

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = [f"word{i}" for i in range(60)] + [f"##ing{i}" for i in range(60)]
TOKENIZER = Tokenizer("wordpiece", "\n".join((*SPECIALS, *PIECES)).encode())
COUNTS = np.arange(TOKENIZER.vocab_size) * (np.arange(TOKENIZER.vocab_size) >= 5)
LENGTH = 64


def make_config(**masking: Any) -> Config:
    return Config(
        corpus=CorpusConfig(pairs=True),
        data=DataConfig(block_length=LENGTH),
        masking=MaskingConfig(**masking),
        train=TrainConfig(sbo_weight=0.0 if masking.get("scheme") == "subword" else 1.0),
    )


def random_rows(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pieces, lengths, pairs) as `Masker.mask_batch` takes them, of every length; the last row is empty."""
    rng = np.random.default_rng(0)
    pieces = rng.integers(5, TOKENIZER.vocab_size, (count, LENGTH - 3), dtype=np.int32)
    lengths = 2 + np.arange(count, dtype=np.int32) % (LENGTH - 4)
    pairs = np.stack([rng.integers(1, lengths), rng.integers(0, 2, count)], axis=1).astype(np.int32)
    lengths[-1] = 0
    return pieces, lengths, pairs


def run(config: Config, count: int) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
    """(the batch, for each row and text the mask of the sequential algorithm on the same draws)."""
    masker = Masker(config, TOKENIZER, COUNTS)
    pieces, lengths, pairs = random_rows(count)
    keys = row_keys(1, tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64))
    rate = config.masking.rate
    batch = tf.function(masker.mask_batch)(pieces, lengths, keys, tf.constant(rate, tf.float64), pairs)
    sizes = np.concatenate([pairs[:, 0], lengths - pairs[:, 0]])
    draws = masker.span_draws(keys_of_texts(keys), tf.constant(np.maximum(sizes, 1)), tf.constant(0, tf.int64), 512)
    words, anchors = (draw.numpy() for draw in draws)
    expected: list[list[Any]] = []
    for row in np.flatnonzero(lengths):
        first = pairs[row, 0]
        found = []
        for text, ids in enumerate((pieces[row, :first], pieces[row, first : lengths[row]])):
            drawn = zip(words[text * count + row].tolist(), anchors[text * count + row].tolist(), strict=True)
            starts = word_starts(TOKENIZER, ids).tolist() if config.masking.scheme != "subword" else [True] * len(ids)
            found.append(reference.choose(starts, rate, functools.partial(next, drawn)).mask)
        expected.append(found)
    return {name: value.numpy() for name, value in batch.items()}, expected


@pytest.mark.parametrize(
    "masking", [{}, {"scheme": "whole_word", "rate": 0.4}, {"scheme": "subword"}, {"boundaries": "internal"}]
)
def test_each_text_is_masked_as_a_row_of_its_own(masking: dict[str, Any]) -> None:
    config, count = make_config(**masking), 124
    batch, masks = run(config, count)
    empty = empty_batch(config, count, LENGTH, slots(config))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in empty.items()
    }
    assert all((value[-1] == empty[name][-1]).all() for name, value in batch.items())  # [PAD] is 0 here
    pieces, lengths, pairs = random_rows(count)
    limit, external = config.masking.max_span_offset, config.masking.boundaries == "external"
    for row, texts in enumerate(masks):
        first = pairs[row, 0]
        a, b = pieces[row, :first], pieces[row, first : lengths[row]]
        clean = np.array([2, *a, 3, *b, 3])
        assert batch["lengths"][row] == len(clean)
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (LENGTH - len(clean))
        assert batch["token_type_ids"][row].tolist() == types
        assert (batch["next_labels"][row], batch["next_weights"][row]) == (pairs[row, 1], 1)

        places, rows = [], {}
        for mask, start in zip(texts, (1, len(a) + 2), strict=True):
            assert sum(mask) == math.ceil(config.masking.rate * len(mask))
            places += [start + place for place, masked in enumerate(mask) if masked]
            found = reference.span_rows(reference.merged_runs(mask), len(mask), limit, external)
            for place, (left, right, offset) in found.items():
                rows[start + place] = (start + left, start + right, offset, 1)
        used = batch["masked_weights"][row] > 0
        assert batch["masked_positions"][row][used].tolist() == places
        assert used[: len(places)].all() and batch["masked_ids"][row][used].tolist() == clean[places].tolist()
        untouched = np.setdiff1d(np.arange(len(clean)), places)
        assert (batch["input_ids"][row][untouched] == clean[untouched]).all()
        assert not batch["input_ids"][row][len(clean) :].any()
        if config.masking.scheme == "subword":
            rows = {}
        names = ("span_left", "span_right", "span_offset", "span_weights")
        for slot, place in enumerate(places):
            assert tuple(batch[name][row][slot] for name in names) == rows.get(place, (0, 0, 0, 0))


def test_the_masks_of_the_two_texts_are_drawn_independently() -> None:
    """Two texts of the same pieces: their masks agree at as few places as chance lets them."""
    count, size = 400, 30
    pieces = np.tile(np.random.default_rng(1).integers(5, 65, (count, size), dtype=np.int32), (1, 2))
    pieces = np.pad(pieces, [(0, 0), (0, LENGTH - 3 - 2 * size)])
    lengths, pairs = np.full(count, 2 * size, np.int32), np.tile(np.array([[size, 0]], np.int32), (count, 1))
    keys = row_keys(1, tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64))
    masker = Masker(make_config(), TOKENIZER, COUNTS)
    batch = masker.mask_batch(pieces, lengths, keys, tf.constant(0.15, tf.float64), pairs)
    mask = np.zeros((count, LENGTH), bool)
    np.put_along_axis(mask, batch["masked_positions"].numpy(), batch["masked_weights"].numpy() > 0, axis=1)
    both = (mask[:, 1 : size + 1] & mask[:, size + 2 : 2 * size + 2]).sum() / mask[:, 1 : size + 1].sum()
    assert abs(both - 5 / size) < 0.05


def test_texts_are_taken_apart_and_put_together_again() -> None:
    pieces, first = np.arange(12).reshape(2, 6), np.array([2, 5])
    apart = segments.apart(pieces, first).numpy()
    assert apart[:, 0].tolist() == [0, 6, 2, 11] and apart[2, :4].tolist() == [2, 3, 4, 5]
    together = segments.together(apart, first, 99).numpy()
    assert together.tolist() == [[0, 1, 99, 2, 3, 4, 5], [6, 7, 8, 9, 10, 99, 11]]


@pytest.mark.parametrize("rate", [0.15, 0.2, 0.5])
def test_a_row_has_slots_for_the_budgets_of_any_two_texts(rate: float) -> None:
    config = make_config(rate=rate)
    for length in range(5, 130):
        budgets = [math.ceil(rate * a) + math.ceil(rate * (length - 3 - a)) for a in range(1, length - 3)]
        assert largest_budget(config, length) == max(budgets)
        assert 0 <= slots(config, length) - max(budgets) < 8
