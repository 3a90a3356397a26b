"""Pooled spans against loops."""

import numpy as np
import pytest

from spanbert_jax.model.span_pooling import POOLINGS, pool_spans

LENGTH, EMBED = 9, 6
FIRST, LAST = np.array([[1, 3, 3, -1], [2, 1, 7, 4]]), np.array([[1, 5, 7, -1], [6, 7, 7, 4]])


def expected(h: np.ndarray, first: int, last: int, pooling: str) -> np.ndarray:
    inside = h[first : last + 1]
    weights = np.exp(inside @ h[0] / EMBED**0.5)
    parts = {
        "mean": inside.mean(0),
        "ends": np.concatenate([h[first], h[last]]),
        "boundary": np.concatenate([h[first - 1], h[last + 1]]),
        "attention": (weights[:, None] * inside).sum(0) / weights.sum(),
    }
    return np.concatenate(list(parts.values())) if pooling == "all" else parts[pooling]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_span_s_vector_is_that_of_a_loop_over_its_pieces(pooling: str) -> None:
    hidden = np.random.default_rng(0).normal(size=(2, LENGTH, EMBED)).astype(np.float32)
    found = np.asarray(pool_spans(hidden, FIRST, LAST, pooling))
    for row in range(2):
        for span, (first, last) in enumerate(zip(FIRST[row], LAST[row], strict=True)):
            if first < 0:
                assert not np.any(found[row, span])
            else:
                np.testing.assert_allclose(found[row, span], expected(hidden[row], first, last, pooling), atol=2e-6)


def test_an_unknown_pooling_is_named() -> None:
    with pytest.raises(ValueError, match="pooling 'max'; known are mean, ends"):
        pool_spans(np.zeros((1, 2, 2)), np.zeros((1, 1), int), np.zeros((1, 1), int), "max")
