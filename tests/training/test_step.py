"""The step is a pure function of the global batch: microbatches do not change it (devices: test_many_devices.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import sharding
from spanbert_jax.training.step import abstract_state, init_state, make_eval_step, make_train_step
from tests.support.steps import states
from tests.support.synthetic import VOCAB, random_batch, small_config


def test_four_microbatches_equal_one_batch_with_dropout_on() -> None:
    whole, parts = (
        list(states(small_config(train={"accumulation": count}, optimizer={"clip_norm": 0.0, "eps": 1e-3}), 3))
        for count in (1, 4)
    )
    for (one, one_sums), (four, four_sums) in zip(whole, parts, strict=True):
        for a, b in zip(jax.tree.leaves(one["params"]), jax.tree.leaves(four["params"]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        assert one_sums.keys() == four_sums.keys()
        for name in one_sums:
            if name != "positions":
                assert one_sums[name] == pytest.approx(four_sums[name], rel=1e-5), name


def test_the_same_seed_gives_identical_parameters_and_another_seed_does_not() -> None:
    first, second, other = (list(states(small_config(train={"seed": seed}), 3))[-1][0]["params"] for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    assert not np.array_equal(first["embeddings"]["word"], other["embeddings"]["word"])


def test_dropout_differs_from_step_to_step() -> None:
    config = small_config(optimizer={"learning_rate": 0.0})
    mesh, losses = sharding.make_mesh(config.mesh), []
    with jax.set_mesh(mesh):
        model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
        init = lambda key: pretraining_heads.init_params(model, key)  # noqa: E731
        abstract = abstract_state(config, init, mesh)
        step = make_train_step(config, objective(model, 7), abstract)
        for steps in (1, 2):
            state = init_state(config, init, abstract)
            for _ in range(steps):
                state, sums = step(state, random_batch(config, 0))
                losses.append(float(sums["mlm_loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_the_loss_falls_on_one_batch() -> None:
    config = small_config(train={"steps": 60}, optimizer={"weight_decay": 0.0})
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
        init = lambda key: pretraining_heads.init_params(model, key)  # noqa: E731
        state, batch = init_state(config, init, abstract_state(config, init, mesh)), random_batch(config, 0)
        target = objective(model, 7)
        step, evaluate = (
            make_train_step(config, target, abstract_state(config, init, mesh)),
            make_eval_step(target, mesh),
        )
        before = evaluate(state["params"], batch)
        for _ in range(60):
            state, _ = step(state, batch)
        after = evaluate(state["params"], batch)
    assert after["mlm_loss"] < 0.5 * before["mlm_loss"]
    assert after["sbo_loss"] < 0.8 * before["sbo_loss"]


def test_a_batch_without_any_valid_pair_gives_a_finite_loss_and_gradient() -> None:
    config = small_config()
    model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
    target = objective(model, 7)
    batch = {name: jnp.asarray(value) for name, value in random_batch(config, 0).items()}
    batch["span_weights"] = jnp.zeros_like(batch["span_weights"])
    params = jax.jit(lambda key: pretraining_heads.init_params(model, key))(jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(lambda p: target.loss(p, batch, target.totals(batch), None, None)[0]))
    value, grads = loss(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads["sbo"]))
