"""Head scales and composition against explicit formulas in NumPy."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.config import ComputeConfig, ModelConfig
from spanbert_jax.model import attention_composition
from spanbert_jax.model.attention_composition import Mixing, composed_attention
from spanbert_jax.model.head_attention import HeadAttention
from spanbert_jax.model.kernels.attention_dense import dense_attention

EMBED, HEADS, DIM = 12, 3, 4


def softmax(x: np.ndarray) -> np.ndarray:
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@functools.cache
def scaled(window: int) -> Callable[..., jax.Array]:
    """The compiled module with full scales: (parameters, x, qkv, lengths) -> what its attention gives."""
    model = ModelConfig(embed=EMBED, heads=HEADS, head_scales="full", attention_dropout=0.0)
    module = HeadAttention(model, ComputeConfig(dtype="float32", attention="xla"), window)
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs, None))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), valid=st.integers(1, 7), window=st.sampled_from([0, 2]))
def test_full_scales_multiply_scores_and_probabilities_by_those_of_query_and_key(
    seed: int, valid: int, window: int
) -> None:
    rng, length = np.random.default_rng(seed), 7
    x, qkv = rng.normal(size=(1, length, EMBED)), rng.normal(size=(1, length, 3, HEADS, DIM))
    kernel, bias = rng.normal(size=(EMBED, 4, HEADS)), rng.normal(size=(4, HEADS))
    params = {"scales": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}
    found = scaled(window)(params, x.astype(np.float32), qkv.astype(np.float32), np.array([valid]))

    query, key, value, result = np.moveaxis(2 / (1 + np.exp(-(np.einsum("le,eph->lph", x[0], kernel) + bias))), 1, 0)
    for head in range(HEADS):
        scores = qkv[0, :, 0, head] @ qkv[0, :, 1, head].T / 2 * query[:, head, None] * key[None, :, head]
        far = np.abs(np.arange(length)[:, None] - np.arange(length))
        seen = (np.arange(length) < valid) & (far <= (window or length))
        shares = softmax(np.where(seen, scores, -1e30)) * result[:, head, None] * value[None, :, head]
        expected = shares @ qkv[0, :, 2, head]
        np.testing.assert_allclose(np.asarray(found)[0, :valid, head], expected[:valid], atol=2e-5)


def mixing(rng: np.random.Generator, length: int, rank: int) -> Mixing:
    shape = (2, length, 2, rank, HEADS)
    return Mixing(rng.normal(size=shape), rng.normal(size=shape) / 2, np.tanh(rng.normal(size=(2, length, 2, HEADS))))


def mixed(x: np.ndarray, queries: Mixing, keys: Mixing, row: int, place: int) -> np.ndarray:
    """`x` [heads, query, key] of one row, mixed pair by pair."""
    out = x.copy()
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            for part, at in ((queries, i), (keys, j)):
                reads, writes, diagonal = (array[row, at, place] for array in part)
                out[:, i, j] += writes.T @ (reads @ x[:, i, j]) + diagonal * x[:, i, j]
    return out


@pytest.mark.parametrize(("window", "chunk"), [(0, 128), (0, 4), (2, 4)])
def test_composition_mixes_scores_and_probabilities_pair_by_pair(
    window: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_composition, "CHUNK", chunk)
    rng, length, lengths = np.random.default_rng(0), 10, np.array([10, 7])
    qkv = rng.normal(size=(2, length, 3, HEADS, DIM))
    queries, keys = mixing(rng, length, 2), mixing(rng, length, 2)
    arrays = jax.tree.map(lambda x: x.astype(np.float32), (qkv, queries, keys))
    found = np.asarray(jax.jit(lambda *arrays: composed_attention(*arrays, lengths, None, 0.0, window))(*arrays))
    for row, valid in enumerate(lengths):
        query, key, value = np.moveaxis(qkv[row], (1, 2), (0, 1))  # [heads, length, head_dim] each
        scores = mixed(query @ np.swapaxes(key, 1, 2) / 2, queries, keys, row, 0)
        far = np.abs(np.arange(length)[:, None] - np.arange(length))
        seen = (np.arange(length) < valid) & (far <= (window or length))
        shares = mixed(softmax(np.where(seen, scores, -1e30)), queries, keys, row, 1)
        expected = np.swapaxes(shares @ value, 0, 1)
        np.testing.assert_allclose(found[row, :valid], expected[:valid], atol=2e-5)


def test_composition_drops_the_probabilities_that_the_dense_kernel_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_composition, "CHUNK", 4)
    rng, length = np.random.default_rng(1), 10
    qkv = rng.normal(size=(2, length, 3, HEADS, DIM)).astype(np.float32)
    none = Mixing(*(np.zeros_like(part, np.float32) for part in mixing(rng, length, 2)))
    seeds, lengths = rng.integers(0, 2**32, (2, 2), dtype=np.uint32), np.array([10, 7])
    found = jax.jit(lambda qkv: composed_attention(qkv, none, none, lengths, seeds, 0.3, 0))(qkv)
    expected = jax.jit(lambda *three: dense_attention(*three, lengths, seeds, 0.3, 0))(*np.moveaxis(qkv, 2, 0))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_composition_begins_at_the_dense_kernel_to_the_bit() -> None:
    rng, length = np.random.default_rng(3), 16
    qkv = rng.normal(size=(2, length, 3, HEADS, DIM)).astype(np.float32)
    none = Mixing(*(np.zeros_like(part, np.float32) for part in mixing(rng, length, 2)))
    lengths = np.array([16, 7])
    found = jax.jit(lambda qkv: composed_attention(qkv, none, none, lengths, None, 0.0, 0))(qkv)
    expected = jax.jit(lambda *three: dense_attention(*three, lengths, None, 0.0, 0))(*np.moveaxis(qkv, 2, 0))
    np.testing.assert_array_equal(found, expected)


def test_half_precision_scales_begin_at_exactly_1() -> None:
    model = ModelConfig(embed=EMBED, heads=HEADS, attention_dropout=0.0)
    compute, rng = ComputeConfig(dtype="bfloat16", attention="xla"), np.random.default_rng(2)
    x, qkv = (rng.normal(size=shape).astype("bfloat16") for shape in ((1, 5, EMBED), (1, 5, 3, HEADS, DIM)))
    results = []
    for scales in ("none", "full"):
        module = HeadAttention(dataclasses.replace(model, head_scales=scales), compute)
        params = module.init(jax.random.key(0), x, qkv, np.array([5]), None)
        results.append(np.asarray(module.apply(params, x, qkv, np.array([5]), None)))
    assert results[0].tobytes() == results[1].tobytes()
