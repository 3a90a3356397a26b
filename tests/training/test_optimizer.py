"""The optimizer against torch.optim.AdamW and against fairseq's update written out in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spanbert_jax.config import OptimizerConfig
from spanbert_jax.training.optimizer import learning_rate, make_optimizer


def gradients(steps: int) -> list[dict[str, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    return [
        {
            "dense": {
                "kernel": rng.normal(size=(4, 3)).astype(np.float32),
                "bias": rng.normal(size=3).astype(np.float32),
            },
            "norm": {"scale": rng.normal(size=3).astype(np.float32) * 1e-6},
        }
        for _ in range(steps)
    ]


def train(config: OptimizerConfig, steps: int, total: int) -> list[dict]:
    """The parameters after each update, from ones."""
    optimizer = make_optimizer(config, total)
    params = jax.tree.map(jnp.ones_like, gradients(1)[0])
    state, history = optimizer.init(params), []
    for grads in gradients(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_an_update_is_torch_adamw_s(clip_norm: float) -> None:
    import torch

    config = OptimizerConfig(learning_rate=0.1, warmup_steps=3, clip_norm=clip_norm)
    ours = train(config, 8, total=10)
    leaves = [torch.nn.Parameter(torch.ones(leaf.shape)) for leaf in jax.tree.leaves(gradients(1)[0])]
    optimizer = torch.optim.AdamW(leaves, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    rates = [0.1 * r for r in (1 / 3, 2 / 3, 1, 0.7, 0.6, 0.5, 0.4, 0.3)]
    for grads, rate, params in zip(gradients(8), rates, ours, strict=True):
        for leaf, grad in zip(leaves, jax.tree.leaves(grads), strict=True):
            leaf.grad = torch.tensor(grad)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(leaves, clip_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for leaf, value in zip(leaves, jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(value, leaf.detach().numpy(), rtol=1e-5)


def test_the_uncorrected_eps_and_the_second_division_are_fairseq_s() -> None:
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, eps=1e-3, eps_placement="uncorrected", gradient_divisor=616, clip_norm=0
    )
    ours = train(config, 5, total=10)
    moments = jax.tree.map(
        lambda leaf: (np.zeros(leaf.shape), np.zeros(leaf.shape), np.ones(leaf.shape)), gradients(1)[0]
    )
    for t, (grads, params) in enumerate(zip(gradients(5), ours, strict=True), start=1):

        def update(grad: np.ndarray, state: tuple, t: int = t) -> tuple:
            m, v, p = state
            grad, rate = grad.astype(np.float64) / 616, 0.1 * (1 - (t - 1) / 10)
            m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
            p = p - 0.1 * rate * p
            p = p - rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-3)
            return m, v, p

        moments = jax.tree.map(update, grads, moments)
        expected = jax.tree.leaves(moments, is_leaf=lambda x: type(x) is tuple)
        for value, state in zip(jax.tree.leaves(params), expected, strict=True):
            np.testing.assert_allclose(value, state[2], rtol=2e-5)


def test_the_decay_scope_spares_biases_and_layer_norm() -> None:
    history = {
        scope: train(OptimizerConfig(weight_decay=0.5, decay_scope=scope, warmup_steps=0, learning_rate=0.1), 1, 10)[0]
        for scope in ("all", "matrices")
    }
    assert np.all(history["all"]["dense"]["kernel"] == history["matrices"]["dense"]["kernel"])
    for path in (("dense", "bias"), ("norm", "scale")):
        with_decay, without = (history[scope][path[0]][path[1]] for scope in ("all", "matrices"))
        np.testing.assert_allclose(with_decay - without, -0.05 * np.ones(3), rtol=1e-4)


def test_the_learning_rate_at_the_steps_that_the_recipe_names() -> None:
    """SpanBERT-large: peak 1e-4, 10,000 warm-up updates, 2.4M updates; the decay counts from step 0."""
    config = OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000)
    at = learning_rate(config, 2_400_000)
    updates = {1: 1e-8, 2: 2e-8, 10_000: 1e-4, 10_001: 1e-4 * (1 - 1 / 240), 2_400_000: 1e-4 / 2.4e6}
    for update, rate in updates.items():
        np.testing.assert_allclose(at(update - 1), rate, rtol=1e-2 if update == 2_400_000 else 1e-5)
    from_peak = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay_from="warmup_end"), 20)
    np.testing.assert_allclose([from_peak(9), from_peak(10), from_peak(15)], [1.0, 1.0, 0.5])


def test_without_bias_correction_an_update_is_that_of_the_fine_tuning_code() -> None:
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=1, clip_norm=0.0, weight_decay=0.01, decay_scope="matrices", eps=1e-6
    )
    ours = train(dataclasses.replace(config, bias_correction=False), 6, total=10)
    params = {name: np.ones_like(x) for name, x in flat(gradients(1)[0]).items()}
    first = {name: np.zeros_like(x) for name, x in params.items()}
    second = {name: np.zeros_like(x) for name, x in params.items()}
    schedule = learning_rate(config, 10)
    for step, (grads, expected) in enumerate(zip(gradients(6), ours, strict=True)):
        for name, grad in flat(grads).items():
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            decay = 0.01 * params[name] if name == "dense/kernel" else 0.0
            update = first[name] / (np.sqrt(second[name]) + 1e-6) + decay
            params[name] = params[name] - float(schedule(step)) * update
            np.testing.assert_allclose(flat(expected)[name], params[name], rtol=2e-5, atol=1e-6)


def flat(tree: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{outer}/{inner}": np.asarray(x) for outer, leaves in tree.items() for inner, x in leaves.items()}


def test_stable_adamw_is_the_paper_s_algorithm_2_and_a_layer_is_a_tensor() -> None:
    """The second gradient is 100 times the first in layer 1 and in the bias, which both shrink their steps."""
    config = OptimizerConfig(
        name="stable_adamw", learning_rate=0.1, warmup_steps=0, clip_norm=0.0, weight_decay=0.3, beta2=0.98
    )
    rng = np.random.default_rng(0)
    grads = [
        {"encoder": {"kernel": rng.normal(size=(2, 3, 4))}, "norm": {"bias": rng.normal(size=5)}} for _ in range(3)
    ]
    grads[1]["encoder"]["kernel"][1] *= 100
    grads[1]["norm"]["bias"] *= 100
    optimizer, params = make_optimizer(config, 10), jax.tree.map(jnp.ones_like, grads[0])
    state, schedule, shrunk = optimizer.init(params), learning_rate(config, 10), set()
    tensors = {("encoder", 0): np.ones((3, 4)), ("encoder", 1): np.ones((3, 4)), ("norm", None): np.ones(5)}
    moments = {place: (np.zeros_like(tensor), np.zeros_like(tensor)) for place, tensor in tensors.items()}
    for step, grad in enumerate(grads):
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grad), state, params)
        params = optax.apply_updates(params, updates)
        for (group, layer), tensor in tensors.items():
            g = grad["norm"]["bias"] if layer is None else grad["encoder"]["kernel"][layer]
            first, second = moments[group, layer]
            first, second = 0.9 * first + 0.1 * g, 0.98 * second + 0.02 * g**2
            moments[group, layer] = first, second
            corrected = second / (1 - 0.98 ** (step + 1))
            rms = np.sqrt(np.mean(g**2 / np.maximum(corrected, 1e-16)))
            rate = float(schedule(step)) / max(1, rms)
            adam = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(corrected) + 1e-8)
            tensors[group, layer] = tensor - rate * (adam + 0.3 * tensor)
            ours = params["norm"]["bias"] if layer is None else params["encoder"]["kernel"][layer]
            np.testing.assert_allclose(ours, tensors[group, layer], rtol=1e-5)
            shrunk |= {(step, group, layer)} if rms > 1.2 else set()
    assert {(1, "encoder", 1), (1, "norm", None)} <= shrunk and (1, "encoder", 0) not in shrunk


def test_warm_up_stable_decay_is_constant_and_then_falls_as_one_minus_a_square_root() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, schedule="wsd", decay_steps=16)
    at = learning_rate(config, 40)
    np.testing.assert_array_equal([at(n) for n in (0, 1, 3, 4, 23, 24)], [0.5, 1.0, 2.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose([at(28), at(33), at(39)], [1.0, 0.5, 2 * (1 - np.sqrt(15 / 16))], rtol=1e-6)
    never = learning_rate(dataclasses.replace(config, decay_steps=0), 40)
    assert {float(never(n)) for n in range(4, 41)} == {2.0}
