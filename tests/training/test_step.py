"""The step is a pure function of the global batch: microbatches do not change it (devices: test_many_devices.py)."""

from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.training.step import make_eval_step
from tests.support.steps import states, training_of
from tests.support.synthetic import random_batch, small_config


def config_of(**train: Any) -> Any:
    """All tests take one configuration where they can, so that they compile one step. With a small eps, rounding would
    decide the sign of Adam's update for a tiny gradient."""
    optimizer = {"clip_norm": 0.0, "eps": 1e-3, "weight_decay": 0.0}
    return small_config(train={"steps": 60, **train}, optimizer=optimizer)


def test_four_microbatches_equal_one_batch_with_dropout_on() -> None:
    whole, parts = (list(states(config_of(accumulation=count), 3)) for count in (1, 4))
    for (one, one_sums), (four, four_sums) in zip(whole, parts, strict=True):
        for a, b in zip(jax.tree.leaves(one["params"]), jax.tree.leaves(four["params"]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        assert one_sums.keys() == four_sums.keys()
        for name in one_sums:
            if name != "positions":
                assert one_sums[name] == pytest.approx(four_sums[name], rel=1e-5), name


def test_the_same_seed_gives_identical_parameters_and_another_seed_does_not() -> None:
    first, second = (list(states(config_of(seed=1), 3))[-1][0]["params"] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    one, other = (training_of(config_of(seed=seed)).first()["params"] for seed in (1, 2))
    assert not np.array_equal(one["embeddings"]["word"], other["embeddings"]["word"])


def test_dropout_differs_from_step_to_step() -> None:
    """The step's loss is that of the parameters before its update."""
    training, losses = training_of(config_of()), []
    with jax.set_mesh(training.mesh):
        for number in (0, 0, 1):
            state = training.first()
            _, sums = training.step({**state, "step": state["step"] + number}, random_batch(config_of(), 0))
            losses.append(float(sums["mlm_loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_the_loss_falls_on_one_batch() -> None:
    training, batch = training_of(config_of()), random_batch(config_of(), 0)
    with jax.set_mesh(training.mesh):
        state, evaluate = training.first(), make_eval_step(training.objective, training.mesh)
        before = evaluate(state["params"], batch)
        for _ in range(60):
            state, _ = training.step(state, batch)
        after = evaluate(state["params"], batch)
    assert after["mlm_loss"] < 0.5 * before["mlm_loss"]
    assert after["sbo_loss"] < 0.8 * before["sbo_loss"]


def test_a_batch_without_any_valid_pair_gives_a_finite_loss_and_gradient() -> None:
    training, batch = training_of(config_of()), random_batch(config_of(), 0)
    batch["span_weights"][:] = 0
    with jax.set_mesh(training.mesh):
        before = jax.tree.map(np.asarray, training.first()["params"])
        state, sums = training.step(training.first(), batch)
    assert all(np.isfinite(value) for value in sums.values()) and sums["sbo_loss"] == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state["params"])
    assert not any(jax.tree.leaves(moved["sbo"])) and all(jax.tree.leaves(moved["encoder"]))
