"""The recurrences against loops in float64, and what lies in the padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import ModelConfig
from spanbert_jax.model.context_encoder import ContextEncoder
from tests.support.quick_keys import quick_key

EMBED, LENGTH = 8, 13
LENGTHS = np.array([13, 6, 1])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def states(kind: str, params: dict, x: np.ndarray, valid: int) -> np.ndarray:
    """The states of one row [length, embed] in float64, a step at a time."""
    out = np.zeros((valid, 2, EMBED // 2))
    for direction, order in ((0, range(valid)), (1, reversed(range(valid)))):
        state, cell = np.zeros(EMBED // 2), np.zeros(EMBED // 2)
        for t in order:
            gates = np.einsum("e,ego->go", x[t], params["input"]["kernel"][:, direction])
            gates = gates + params["input"]["bias"][direction]
            if kind == "mingru":
                share = sigmoid(gates[0])
                state = (1 - share) * state + share * gates[1]
            else:
                gates = gates + np.einsum("i,igo->go", state, params["recurrent"]["kernel"][:, direction])
                cell = sigmoid(gates[1] + 1) * cell + sigmoid(gates[0]) * np.tanh(gates[3])
                state = sigmoid(gates[2]) * np.tanh(cell)
            out[t, direction] = state
    return out.reshape(valid, EMBED)


@pytest.mark.parametrize("kind", ["mingru", "bilstm"])
def test_states_are_those_of_a_loop_and_padding_changes_none(kind: str) -> None:
    rng = np.random.default_rng(0)
    module = ContextEncoder(ModelConfig(embed=EMBED, heads=2, context_encoder=kind), jnp.dtype("float32"))
    x = rng.normal(size=(3, LENGTH, EMBED)).astype(np.float32)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), x, x, LENGTHS))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), params)
    recur = jax.jit(lambda x: module.apply({"params": params}, x, LENGTHS, method="recur"))
    found = np.asarray(recur(x))
    for row, valid in enumerate(LENGTHS):
        expected = states(kind, params, x[row].astype(np.float64), valid)
        np.testing.assert_allclose(found[row, :valid], expected, atol=2e-6)
    other = np.where((np.arange(LENGTH) < LENGTHS[:, None])[..., None], x, 1e3).astype(np.float32)
    padded = np.asarray(recur(other))
    for row, valid in enumerate(LENGTHS):
        assert np.array_equal(padded[row, :valid], found[row, :valid])


def test_the_parallel_scan_of_accelerators_gives_the_states_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    module = ContextEncoder(ModelConfig(embed=EMBED, heads=2, context_encoder="mingru"), jnp.dtype("float32"))
    x = rng.normal(size=(3, 64, EMBED)).astype(np.float32)
    lengths = np.array([64, 40, 7])
    params = jax.jit(lambda: module.init(quick_key(0), x, x, lengths))()
    loop = jax.jit(lambda: module.apply(params, x, lengths, method="recur"))()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))
    parallel = jax.jit(lambda: module.apply(params, x, lengths, method="recur"))()
    np.testing.assert_allclose(loop, parallel, atol=2e-6)
