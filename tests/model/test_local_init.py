"""Initial values with which heads look near their own position, and which change nothing else."""

import dataclasses

import jax
import numpy as np
import pytest

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.model.pretraining_heads import init_params, pretraining_model

VOCAB = 500
LOCAL = ModelConfig(layers=2, embed=128, heads=4, mlp=64, max_length=96, init="local", init_std=0.05)


def fresh(model: ModelConfig) -> dict:
    built = pretraining_model(Config(model=model, compute=ComputeConfig(dtype="float32")), VOCAB, "cpu")
    return jax.jit(lambda key: init_params(built, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.tree.map(np.asarray, fresh(LOCAL))


def test_each_head_looks_most_at_its_own_place_and_at_the_side_of_its_offset(params: dict) -> None:
    rng, embeddings = np.random.default_rng(0), params["embeddings"]
    for layer in range(LOCAL.layers):
        kernel = params["encoder"]["attention"]["qkv"]["kernel"][layer]
        seen = np.zeros((4, 96, 96))
        for _ in range(20):  # texts of random pieces
            x = embeddings["word"][rng.integers(0, VOCAB, 96)] + embeddings["position"]
            x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
            query, key = np.einsum("le,ephd->phld", x, kernel)[:2]  # [heads, length, head_dim]
            weights = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(32))
            seen += weights / weights.sum(-1, keepdims=True) / 20
        for head, offset in enumerate((-1, 1, -2, 2)):
            share = {away: np.mean(np.diagonal(seen[head], away)[8:-8]) for away in range(-8, 9)}
            near = {away: value for away, value in share.items() if away}  # its own place has its own piece besides
            assert abs(max(near, key=lambda away: near[away]) - offset) <= 1
            assert share[offset] > 2 / 96 and share[offset] > 1.1 * share[-offset] and share[offset] > 2 * share[-8]


def test_positions_are_sinusoids_and_every_other_parameter_is_drawn_as_ever(params: dict) -> None:
    position = params["embeddings"]["position"]
    np.testing.assert_allclose(np.square(position).sum(1), 128 * (2 * 0.05) ** 2, rtol=1e-5)
    products = position @ position.T
    for away in (1, 5):  # depend on the distance alone
        np.testing.assert_allclose(np.diagonal(products, away), products[0, away], rtol=1e-4)
    normal = fresh(dataclasses.replace(LOCAL, init="normal"))
    same = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=0, atol=1e-6), params, normal)
    assert not same["embeddings"].pop("position") and not same["encoder"]["attention"]["qkv"].pop("kernel")
    assert all(jax.tree.leaves(same))
    values = params["encoder"]["attention"]["qkv"]["kernel"][:, :, 2]
    assert np.std(values) == pytest.approx(0.05, rel=0.05)
