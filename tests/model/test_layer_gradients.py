"""A layer's gradients are summed over a mesh axis in its own backward pass; vmap's axes stand for a mesh's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.model import layer_gradients
from spanbert_jax.model.layer_gradients import layer_params, summed, summed_over

PARTS = 4
SHAPES = {"kernel": (6, 8), "bias": (8,), "scale": (6,)}


@pytest.fixture(autouse=True)
def _a_kernel_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_gradients, "LARGE", 48)


def arrays(seed: int, *lead: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: jax.random.normal(key, (*lead, *shape)) for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def loss(params: Any, x: jax.Array) -> jax.Array:
    params = layer_params(params)
    return jnp.sum(jnp.tanh((x * params["scale"]) @ params["kernel"] + params["bias"]))


def part_gradients(dtype: Any, together: bool) -> Any:
    """[PARTS, ...] of each parameter: what each part of the axis has after the backward pass."""

    def of_part(x: jax.Array) -> Any:
        with summed_over("data", dtype, together):
            return jax.grad(loss)(arrays(0), x)

    return jax.jit(jax.vmap(of_part, axis_name="data"))(jax.random.normal(jax.random.key(1), (PARTS, 5, 6)))


@pytest.mark.parametrize("together", [False, True])
def test_every_part_has_the_gradient_of_all(together: bool) -> None:
    whole = jax.jit(jax.grad(loss))(arrays(0), jax.random.normal(jax.random.key(1), (PARTS, 5, 6)))
    for name, got in part_gradients(jnp.float32, together).items():
        for part in got:
            np.testing.assert_allclose(part, whole[name], rtol=1e-5, atol=1e-6)


def test_outside_of_it_nothing_changes() -> None:
    params = arrays(0)
    assert layer_params(params) is params


def test_what_is_sent_has_the_dtype_asked_for_and_what_returns_its_own() -> None:
    parts = arrays(2, PARTS)
    got = jax.vmap(lambda part: summed(part, "data", jnp.bfloat16, together=True), axis_name="data")(parts)
    for name, part in parts.items():
        assert got[name].dtype == jnp.float32
        expected = np.sum(np.asarray(part), axis=0)
        np.testing.assert_allclose(got[name][0], expected, atol=0.05)
        assert not np.allclose(got[name][0], expected, atol=1e-6)  # it did cross in bfloat16


@pytest.mark.parametrize(("together", "sizes"), [(False, [6, 8, 48]), (True, [8 + 6, 48])])
def test_small_gradients_are_sent_as_one_array(together: bool, sizes: list[int]) -> None:
    program = jax.make_jaxpr(lambda part: summed(part, "data", jnp.float32, together), axis_env=[("data", PARTS)])
    sent = [equation for equation in program(arrays(3)).eqns if equation.primitive.name.startswith("psum")]
    assert sorted(equation.invars[0].aval.size for equation in sent) == sizes
