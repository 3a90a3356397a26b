"""The table of shapes, and plans that fit rows into it as cheaply as any other would."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.batches.shapes import BATCH_COST, Shape, plan_batches, shape_table


@pytest.mark.parametrize(("longest", "multiple"), [(512, 1), (384, 4), (100, 8), (7, 1)])
def test_the_table_is_small_fits_every_row_and_divides_by_the_devices(longest: int, multiple: int) -> None:
    table = shape_table(longest, 11, multiple)
    assert len(set(table)) == len(table) <= 47
    assert max(shape.length for shape in table) == longest
    assert all(shape.rows % multiple == 0 for shape in table)
    assert all(shape.rows * shape.length <= 8192 or shape.rows == multiple for shape in table)
    assert {shape.length for shape in table if shape.rows == multiple} == {shape.length for shape in table}


def test_fewer_lengths_are_spread_and_keep_the_longest() -> None:
    found = [sorted({shape.length for shape in shape_table(100, lengths, 1)}) for lengths in (1, 2, 4, 20)]
    assert found == [[100], [16, 100], [16, 32, 64, 100], [16, 24, 32, 48, 64, 96, 100]]


def cheapest(row_lengths: tuple[int, ...], table: tuple[Shape, ...]) -> int:
    """The least cost of any way to deal the rows, in any groups, into shapes of the table; every way is tried."""

    @functools.cache
    def cost(rows: tuple[int, ...]) -> int:
        if not rows:
            return 0
        found = []
        for shape in table:
            if shape.length < rows[0]:
                continue
            for others in range(min(shape.rows, len(rows))):
                for group in itertools.combinations(range(1, len(rows)), others):
                    left = tuple(rows[i] for i in range(1, len(rows)) if i not in group)
                    if all(rows[i] <= shape.length for i in group):
                        found.append(shape.rows * shape.length + BATCH_COST + cost(left))
        return min(found)

    return cost(tuple(sorted(row_lengths)))


SHAPES = tuple(Shape(*pair) for pair in ((1, 100), (4, 100), (1, 400), (2, 400), (1, 900), (4, 900)))


@settings(deadline=None, max_examples=60)
@given(row_lengths=st.lists(st.integers(1, 900), min_size=1, max_size=6).map(tuple))
def test_a_plan_is_as_cheap_as_any(row_lengths: tuple[int, ...]) -> None:
    plan = plan_batches(np.array(row_lengths), SHAPES)
    assert sum(shape.rows * shape.length + BATCH_COST for _, shape in plan) == cheapest(row_lengths, SHAPES)


@settings(deadline=None, max_examples=60)
@given(row_lengths=st.lists(st.integers(1, 100), max_size=200).map(lambda x: np.array(x, np.int64)))
def test_a_plan_has_every_row_once_in_batches_that_fit_it(row_lengths: np.ndarray) -> None:
    table = shape_table(100, 5, 2)
    plan = plan_batches(row_lengths, table)
    seen = [int(i) for rows, _ in plan for i in rows if i >= 0]
    assert sorted(seen) == list(range(len(row_lengths)))
    for rows, shape in plan:
        assert shape in table and len(rows) == shape.rows
        assert (row_lengths[rows[rows >= 0]] <= shape.length).all() and (rows >= 0).any()


def test_a_row_over_the_longest_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 9 pieces"):
        plan_batches(np.array([3, 9]), shape_table(8, 1, 1))


def padding(row_lengths: np.ndarray, longest: int) -> tuple[float, int]:
    """(positions computed a piece, programs)."""
    plan = plan_batches(row_lengths, shape_table(longest, 11, 1))
    positions = sum(shape.rows * shape.length for _, shape in plan)
    return positions / row_lengths.sum(), len({shape for _, shape in plan})


def test_a_file_is_padded_by_a_fifth_with_few_programs() -> None:
    rng = np.random.default_rng(0)
    windows = np.clip(rng.normal(170, 60, 12_000), 40, 384).astype(int)  # about those of SQuAD
    sentences = np.clip(rng.lognormal(3.5, 0.6, 8_000), 5, 512).astype(int)  # about those of Wikipedia
    for row_lengths, longest in ((windows, 384), (sentences, 512)):
        factor, programs = padding(row_lengths, longest)
        assert factor <= 1.23 and programs <= 18


@pytest.mark.parametrize("count", [1, 5, 64])
def test_a_request_is_not_padded_to_a_large_batch(count: int) -> None:
    rng = np.random.default_rng(count)
    factors = [padding(np.clip(rng.normal(170, 60, count), 40, 384).astype(int), 384)[0] for _ in range(50)]
    assert np.mean(factors) <= 1.4
