"""Sliding-window attention: a query sees the valid keys that are at most `window` positions away, and no others."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.model.attention import attention
from spanbert_jax.model.dropout import keep_mask
from tests.support.attention_agreement import F32, random_qkv, seeds_of


def brute_force(qkv: np.ndarray, lengths: tuple[int, ...], window: int, kept: np.ndarray) -> np.ndarray:
    """float64 [batch, length, heads, head_dim], 0 at padding. kept: [batch, heads, query, key], the factor of each
    probability."""
    batch, length, _, heads, head_dim = qkv.shape
    result = np.zeros((batch, length, heads, head_dim))
    for row, head in np.ndindex(batch, heads):
        query, key, value = np.float64(qkv[row, :, :, head]).swapaxes(0, 1)
        for i in range(lengths[row]):
            seen = [j for j in range(lengths[row]) if abs(i - j) <= (window or length)]
            weights = np.exp(key[seen] @ query[i] / np.sqrt(head_dim))
            result[row, i, head] = weights / weights.sum() * kept[row, head, i, seen] @ value[seen]
    return result


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.data())
def test_a_query_sees_the_valid_keys_within_its_window_and_no_others(data: st.DataObject) -> None:
    length, window = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 24))
    lengths = tuple(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2)))
    rate = data.draw(st.sampled_from([0.0, 0.4]))
    qkv, _ = random_qkv(lengths, (length, 2, 4), F32, data.draw(st.integers(0, 9)))
    result = np.asarray(attention(qkv, jnp.array(lengths), seeds_of(2), rate, window=window))
    kept = np.asarray(keep_mask(seeds_of(2), (2, 2, length, length), rate)) / (1 - rate)
    valid = np.arange(length) < np.array(lengths)[:, None]
    assert np.isfinite(result).all()
    np.testing.assert_allclose(
        result[valid], brute_force(np.asarray(qkv), lengths, window, kept)[valid], rtol=0, atol=1e-6
    )
