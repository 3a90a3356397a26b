"""Lengths that pad least, each row once an epoch, and batches that depend on seed and step alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.batches.lengths import BucketedOrder, choose_lengths, equal_sizes, sorted_batches

row_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.array)


def padded(rows: np.ndarray, lengths: tuple[int, ...]) -> int:
    return sum(min(length for length in lengths if length >= row) for row in rows)


@settings(deadline=None, max_examples=60)
@given(rows=row_lengths, count=st.integers(1, 3))
def test_the_chosen_lengths_pad_as_little_as_any_choice(rows: np.ndarray, count: int) -> None:
    chosen = choose_lengths(rows, count, 60)
    candidates = sorted({min(-(-int(row) // 8) * 8, 60) for row in rows})
    choices = itertools.chain.from_iterable(itertools.combinations(candidates, n) for n in range(1, count + 1))
    best = min(padded(rows, choice) for choice in choices if choice[-1] >= rows.max())
    assert len(chosen) <= count and padded(rows, chosen) == best


@settings(deadline=None, max_examples=60)
@given(rows=row_lengths, batch_size=st.integers(1, 9), seed=st.integers(0, 3), epoch=st.integers(0, 2))
def test_each_row_comes_once_an_epoch_in_batches_that_fit_it(
    rows: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    lengths = choose_lengths(rows, 4, 60)
    sizes = equal_sizes(lengths, batch_size, 60)
    order = BucketedOrder(rows, lengths, sizes, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    seen: list[int] = []
    for indices, length in map(order.batch, steps):
        assert len(indices) == sizes[lengths.index(length)]
        seen += [int(i) for i in indices if i >= 0]
        assert all(rows[i] <= length for i in indices if i >= 0)
    assert sorted(seen) == list(range(len(rows)))


@given(
    batch_size=st.integers(1, 4096),
    lengths=st.lists(st.integers(1, 64).map(lambda n: 8 * n), min_size=1, max_size=8, unique=True),
)
def test_batches_of_every_length_hold_about_the_same_number_of_positions(batch_size: int, lengths: list[int]) -> None:
    for length, size in zip(lengths, equal_sizes(tuple(lengths), batch_size, 512), strict=True):
        whole = batch_size * 512
        assert size * length <= whole and size >= batch_size
        # What devices or microbatches divide, up to an eighth of the batch in powers of two, divides this too.
        unit = max(2**k for k in range(12) if batch_size % 2**k == 0 and (k == 0 or 2**k <= batch_size / 8))
        assert size % unit == 0 and whole - size * length < unit * length


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    rows = np.random.default_rng(0).integers(3, 100, 203)
    lengths = choose_lengths(rows, 4, 100)
    first, again, other = (BucketedOrder(rows, lengths, (16,) * 4, seed) for seed in (1, 1, 2))
    steps = [25, 3, 14, 0]  # not in order
    for step in steps:
        np.testing.assert_array_equal(first.batch(step)[0], again.batch(step)[0])
    assert any((first.batch(step)[0] != other.batch(step)[0]).any() for step in steps)
    epochs = [np.concatenate([first.batch(e * 13 + i)[0] for i in range(13)]) for e in (0, 1)]
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("multiple", [1, 4])
def test_sorted_batches_have_every_row_once_and_one_size_a_length(multiple: int) -> None:
    rows = np.random.default_rng(0).integers(3, 400, 1000)
    batches = sorted_batches(rows, choose_lengths(rows, 8, 400), 4096, multiple)
    seen = np.concatenate([indices for indices, _ in batches])
    assert sorted(seen[seen >= 0]) == list(range(1000))
    sizes: dict[int, set[int]] = {}
    for indices, length in batches:
        assert (rows[indices[indices >= 0]] <= length).all() and len(indices) % multiple == 0
        sizes.setdefault(length, set()).add(len(indices))
    assert all(len(size) == 1 for size in sizes.values())


@pytest.mark.parametrize("count", [1, 50, 277, 1043, 3250])
def test_few_rows_do_not_pay_for_many(count: int) -> None:
    rows = np.clip(np.random.default_rng(0).normal(60, 25, count), 8, 128).astype(int)
    batches = sorted_batches(rows, choose_lengths(rows, 8, 128), 8192, 1)
    assert rows.sum() / sum(len(indices) * length for indices, length in batches) >= 0.85


def test_a_row_over_the_longest_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 9 pieces"):
        choose_lengths(np.array([3, 9]), 2, 8)


def test_eight_lengths_pad_an_evaluation_of_windows_like_squads_by_at_most_15_percent() -> None:
    # Lengths of windows like SQuAD's: about normal around 170 pieces, a tail up to 384.
    rows = np.clip(np.random.default_rng(0).normal(170, 60, 12_000), 40, 384).astype(int)
    batches = sorted_batches(rows, choose_lengths(rows, 8, 384), 8192, 1)
    assert rows.sum() / sum(len(indices) * length for indices, length in batches) >= 0.85
