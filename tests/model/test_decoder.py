"""The decoder's cross-entropy against float64, and its gradients against those of the scores it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.model.decoder import cross_entropy, scores

BATCH, HEADS, MASKED, EMBED, VOCAB, PADDED = 3, 2, 5, 16, 131, 256
Arrays = tuple[jax.Array, jax.Array, jax.Array]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """hidden, table, bias; what pads the table is far from 0."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(PADDED, EMBED))
    table[VOCAB:] *= 100
    hidden, bias = rng.normal(size=(BATCH, HEADS, MASKED, EMBED)), rng.normal(size=(HEADS, PADDED))
    return tuple(jnp.asarray(x, jnp.float32) for x in (hidden, table, bias))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def labels(arrays: Arrays) -> jax.Array:
    """Random ones, but the first slot of each row is what its first head scores highest."""
    drawn = np.random.default_rng(1).integers(0, VOCAB, (BATCH, MASKED)).astype(np.int32)
    drawn[:, 0] = np.argmax(scores(*arrays, VOCAB)[:, 0, 0], axis=-1)
    return jnp.asarray(drawn)


def test_the_loss_and_the_right_guesses_are_those_of_a_float64_softmax(arrays: Arrays, labels: jax.Array) -> None:
    hidden, table, bias = (np.asarray(x, np.float64) for x in arrays)
    lost, right = jax.jit(cross_entropy, static_argnums=4)(*arrays, labels, VOCAB)
    for row, head, slot in np.ndindex(BATCH, HEADS, MASKED):
        scored = table[:VOCAB] @ hidden[row, head, slot] + bias[head, :VOCAB]
        label = labels[row, slot]
        expected = np.log(np.sum(np.exp(scored - scored.max()))) + scored.max() - scored[label]
        np.testing.assert_allclose(lost[row, head, slot], expected, rtol=1e-5, atol=1e-5)
        assert right[row, head, slot] == (np.argmax(scored) == label)
    assert np.all(right[:, 0, 0] == 1) and np.mean(right) < 0.5


def weighted(arrays: Arrays, labels: jax.Array, weights: jax.Array, plainly: bool) -> jax.Array:
    """The sum of the losses, by `cross_entropy`, or by autodiff through all of the scores."""
    if not plainly:
        return jnp.sum(cross_entropy(*arrays, labels, VOCAB)[0] * weights)
    chances = jax.nn.log_softmax(scores(*arrays, VOCAB))
    at_labels = jnp.take_along_axis(chances, jnp.broadcast_to(labels[:, None], weights.shape)[..., None], axis=-1)
    return -jnp.sum(at_labels[..., 0] * weights)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_gradients_are_those_of_autodiff_through_the_scores(
    arrays: Arrays, labels: jax.Array, dtype: str, tolerance: float
) -> None:
    weights = jnp.asarray(np.random.default_rng(2).uniform(0, 1, (BATCH, HEADS, MASKED)), jnp.float32)
    weights = weights.at[:, :, -1].set(0)  # a slot that is not used
    narrow = (arrays[0].astype(dtype), *arrays[1:])
    ours, plain = (jax.jit(jax.grad(weighted), static_argnums=3)(narrow, labels, weights, by) for by in (False, True))
    for found, expected in zip(ours, plain, strict=True):
        assert found.dtype == expected.dtype
        scale = np.abs(np.asarray(expected, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol=0, atol=tolerance * scale
        )
    assert not np.any(ours[0][:, :, -1]) and not np.any(ours[1][VOCAB:]) and not np.any(ours[2][:, VOCAB:])
