"""The guess from visible neighbours, against a dense computation of the same in plain NumPy."""

import itertools
from collections import Counter

import numpy as np
import pytest

from spanbert_jax.batch import KEPT, MASK, RANDOM
from spanbert_jax.corpus import neighbours as module
from spanbert_jax.corpus.masked_batches import local_eval_batches
from spanbert_jax.corpus.neighbours import count_neighbours, evaluated_blocks, guess_masked, visible_neighbours
from tests.support.fake_blocks import TOKENIZER, FakeBlocks, make_config

VOCAB = TOKENIZER.vocab_size


def pieces_of(blocks: FakeBlocks) -> list[list[int]]:
    import tensorflow as tf

    found = []
    for record in blocks.records:
        example = tf.train.Example.FromString(record)
        found.append(list(example.features.feature["input_ids"].int64_list.value))
    return found


def dense_counts(blocks: FakeBlocks) -> np.ndarray:
    """int [vocab, vocab] by a walk over every row."""
    pairs: Counter[tuple[int, int]] = Counter()
    for pieces in pieces_of(blocks):
        row = [TOKENIZER.cls_id, *pieces, TOKENIZER.sep_id]
        pairs.update(itertools.pairwise(row))
    counts = np.zeros((VOCAB, VOCAB), int)
    for pair, count in pairs.items():
        counts[pair] = count
    return counts


def dense_guess(blocks: FakeBlocks, counts: np.ndarray, left: int, right: int) -> np.ndarray:
    """The distribution over the vocabulary; -1 for a neighbour that is not seen."""
    frequency = (blocks.metadata.piece_counts + 1) / (blocks.metadata.piece_counts + 1).sum()
    law = frequency.copy()
    for seen, beside in ((left >= 0, counts[left]), (right >= 0, counts[:, right])):
        if seen:
            law *= (beside + 5 * frequency) / (beside.sum() + 5) / frequency
    return law / law.sum()


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_the_guess_has_a_factor_for_each_neighbour_that_is_seen(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = FakeBlocks(40)
    monkeypatch.setattr(module, "PAIRS", chunk)
    monkeypatch.setattr(module, "RECORDS", 16)
    counts, neighbours = dense_counts(blocks), count_neighbours(blocks, TOKENIZER)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    pieces = rng.integers(0, VOCAB, 300)
    left, right = rng.integers(-1, VOCAB, (2, 300))  # [PAD] and [UNK] too, which no block has
    left[:40], right[20:60] = -1, -1
    guess = neighbours.guess(left, right, pieces)
    for place in range(300):
        law = dense_guess(blocks, counts, left[place], right[place])
        assert guess.probability[place] == pytest.approx(law[pieces[place]], rel=1e-9)
        if guess.right[place]:
            assert law[pieces[place]] == pytest.approx(law.max(), rel=1e-9)
    likeliest = [dense_guess(blocks, counts, *pair).argmax() for pair in zip(left, right, strict=True)]
    certain = neighbours.guess(left, right, np.array(likeliest))
    assert certain.right.mean() > 0.9  # the others are ties


def test_a_neighbour_that_is_masked_too_is_not_seen() -> None:
    batch = {
        "input_ids": np.array([[2, 4, 11, 4, 4, 4, 12, 3, 0], [2, 10, 4, 4, 3, 0, 0, 0, 0], [0] * 9]),
        "masked_positions": np.array([[1, 3, 4, 5], [2, 3, 0, 0], [0] * 4]),
    }
    left, right = visible_neighbours(batch)
    assert left[0].tolist() == [2, 11, -1, -1] and right[0].tolist() == [11, -1, -1, 12]
    assert left[1, :2].tolist() == [10, -1] and right[1, :2].tolist() == [-1, 3]


@pytest.mark.parametrize("granularity", ["span", "piece"])
def test_accuracy_and_nats_on_held_out_masks_equal_a_walk_over_their_rows(granularity: str) -> None:
    blocks, held_out = FakeBlocks(60), FakeBlocks(21)
    config = make_config(lengths=3, granularity=granularity)
    batches = list(local_eval_batches(config, held_out, TOKENIZER, 0))  # type: ignore[arg-type]
    neighbours = count_neighbours(blocks, TOKENIZER)  # type: ignore[arg-type]
    found = guess_masked(neighbours, batches, ("masked_weights", "span_weights"))
    counts = dense_counts(blocks)
    sums = {name: np.zeros(3) for name in found}
    kinds: Counter[int] = Counter()
    for batch in batches:
        for row in range(len(batch["lengths"])):
            masked = set(batch["masked_positions"][row][batch["masked_weights"][row] > 0].tolist())
            for slot, position in enumerate(batch["masked_positions"][row]):
                kinds[int(batch["replacement"][row, slot])] += 1
                if batch["replacement"][row, slot] != MASK:
                    continue
                ids = batch["input_ids"][row]
                seen = [-1 if place in masked else ids[place] for place in (position - 1, position + 1)]
                law = dense_guess(blocks, counts, *seen)
                piece = batch["masked_ids"][row, slot]
                for name, total in sums.items():
                    weight = batch[name][row, slot]
                    total += weight * np.array([1, law[piece] >= law.max() * (1 - 1e-12), -np.log(law[piece])])
    assert {KEPT, RANDOM, MASK} <= set(kinds)
    for name, (count, right, nats) in sums.items():
        accuracy, mean = found[name]
        assert accuracy == pytest.approx(right / count, abs=2 / count)  # ties of probabilities
        assert mean == pytest.approx(nats / count, rel=1e-9)
    assert sums["span_weights"][0] < sums["masked_weights"][0]


def test_of_many_blocks_a_sample_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = FakeBlocks(100)
    monkeypatch.setattr(module, "MOST_COUNTED", int(blocks.lengths.sum()) // 10)
    count_neighbours(blocks, TOKENIZER)  # type: ignore[arg-type]
    assert len(blocks.reads) == 10 and len(set(blocks.reads)) == 10


def test_of_many_held_out_blocks_a_few_are_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = FakeBlocks(100)
    assert [evaluated_blocks(blocks, limit) for limit in (0, 7)] == [100, 7]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "MOST_GUESSED", int(blocks.lengths.sum()) // 10)
    assert [evaluated_blocks(blocks, limit) for limit in (0, 50, 7)] == [10, 10, 7]  # type: ignore[arg-type]
