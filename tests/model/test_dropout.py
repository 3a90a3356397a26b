"""Hash dropout: its rate, its independence, its backward pass, and the same mask however a batch is divided."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from spanbert_jax.model import dropout as hashing
from spanbert_jax.model.attention import attention
from spanbert_jax.model.dropout import Dropout, dropout, keep_mask, site_seeds
from spanbert_jax.model.pretraining_heads import apply, init_params
from spanbert_jax.training.step import stream_key
from tests.support.devices import on_four_devices
from tests.support.small_model import small_batch, small_model

SITES = (hashing.EMBEDDINGS, hashing.ATTENTION_PROBABILITIES, hashing.ATTENTION_OUTPUT, hashing.MLP_OUTPUT)


def state(key: int, batch: int, first: int = 0) -> Dropout:
    return Dropout(jnp.uint32(key), jnp.arange(first, first + batch, dtype=jnp.uint32))


def dropped(key: int, layer: int, site: int, shape: tuple[int, ...], rate: float = 0.1) -> np.ndarray:
    return ~np.asarray(jax.jit(lambda s: keep_mask(s, shape, rate))(site_seeds(state(key, shape[0]), layer, site)))


def within_binomial(count: float, size: int, rate: float, deviations: float = 5) -> bool:
    return abs(count - size * rate) <= deviations * np.sqrt(size * rate * (1 - rate))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In standard deviations of what independent masks of this size would give."""
    x, y = (m.ravel().astype(np.float64) for m in (a, b))
    return float(np.corrcoef(x, y)[0, 1] * np.sqrt(x.size))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5])
def test_the_rate_is_right_overall_and_along_every_axis(rate: float) -> None:
    mask = dropped(11, 3, 1, (4, 12, 128, 128), rate)
    assert within_binomial(mask.sum(), mask.size, rate)
    for axis in range(4):
        counts = mask.sum(axis=tuple(i for i in range(4) if i != axis))
        assert all(within_binomial(count, mask.size // mask.shape[axis], rate, 6) for count in counts)
    for axes in ((1,), (2,), (3,), (1, 2)):  # how counts scatter: as binomial ones, neither wider nor narrower
        counts = mask.sum(axis=axes)
        size = np.prod([mask.shape[i] for i in axes])
        z = (counts - size * rate) / np.sqrt(size * rate * (1 - rate))
        spread = np.sqrt((2 + 1 / (size * rate * (1 - rate))) / z.size)  # of the mean square of such counts
        assert abs(np.mean(z**2) - 1) < 5 * spread


def test_kept_elements_are_scaled_and_the_mean_is_kept() -> None:
    x = jnp.ones((4, 256, 256))
    y = np.asarray(dropout(x, 0.1, state(1, 4), 0, hashing.EMBEDDINGS))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.9)}
    assert abs(y.mean() - 1) < 5 * np.sqrt(0.1 / 0.9 / y.size)
    low = np.unique(np.float32(dropout(x.astype(jnp.bfloat16), 0.1, state(1, 4), 0, hashing.EMBEDDINGS)))
    assert list(low) == [0, np.float32(jnp.bfloat16(1 / 0.9))]


def test_sites_layers_keys_rows_and_neighbours_are_independent() -> None:
    shape = (4, 8, 128, 128)
    base = dropped(5, 2, 1, shape)
    others = [dropped(5, 2, site, shape) for site in SITES if site != 1]
    others += [dropped(5, layer, 1, shape) for layer in (0, 1, 3, 11)]
    others += [dropped(key, 2, 1, shape) for key in (4, 6, 5 + 2**16, 5 + 2**31)]
    assert all(abs(correlation(base, other)) < 5 for other in others)
    for axis in range(4):
        for shift in (1, 2, 4, 64)[: 4 if axis > 1 else 2]:
            ahead = np.take(base, range(shift, shape[axis]), axis)
            behind = np.take(base, range(shape[axis] - shift), axis)
            assert abs(correlation(ahead, behind)) < 5, (axis, shift)


def chi_squared_is_ordinary(counts: np.ndarray, expected: np.ndarray, degrees: int) -> bool:
    """Neither too large (dependence) nor too small (counts more even than chance makes them), at 1 in a million."""
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    return bool(1e-6 < chi2.sf(statistic, degrees) < 1 - 1e-6)


def test_the_hash_is_uniform_over_sixteen_bins() -> None:
    shape = (4, 8, 128, 128)
    below = [dropped(17, 3, 2, shape, share / 16) for share in range(1, 16)]  # a larger rate drops these and more
    assert all(np.all(small <= large) for small, large in itertools.pairwise(below))
    bins = np.diff([0, *(mask.sum() for mask in below), below[0].size])
    assert chi_squared_is_ordinary(bins, np.full(16, below[0].size / 16), 15)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_eight_neighbours_are_dropped_in_every_pattern_as_often_as_chance_has_it(rate: float, axis: int) -> None:
    mask = np.moveaxis(dropped(23, 1, hashing.ATTENTION_PROBABILITIES, (4, 8, 256, 256), rate), axis, -1)
    patterns = mask.reshape(-1, 8) @ (1 << np.arange(8))
    ones = np.array([bin(pattern).count("1") for pattern in range(256)])
    # Patterns of more than 3 dropped ones are rare at 0.1: those of one number of them count together.
    cells = np.where((rate < 0.5) & (ones > 3), 256 + np.minimum(ones, 5), np.arange(256))
    probabilities = np.bincount(cells, rate**ones * (1 - rate) ** (8 - ones))
    counts = np.bincount(cells[patterns], minlength=probabilities.size)[probabilities > 0]
    probabilities = probabilities[probabilities > 0]
    assert chi_squared_is_ordinary(counts, probabilities * patterns.size, probabilities.size - 1)


def test_masks_of_layers_sites_steps_and_rows_are_pairwise_independent_by_chi_squared() -> None:
    keys = [int(jax.random.bits(stream_key(1, "dropout", step), dtype=jnp.uint32)) for step in range(6)]
    assert len(set(keys)) == 6
    shape, rate = (2, 4, 128, 64), 0.1
    masks = [dropped(key, layer, site, shape, rate) for key in keys[:2] for layer in (0, 5) for site in SITES]
    masks += [dropped(key, 0, hashing.EMBEDDINGS, shape, rate) for key in keys[2:]]
    flat = np.stack([row.ravel() for mask in masks for row in mask]).astype(np.float64)  # [masks * rows, elements]
    together, size, single = flat @ flat.T, flat.shape[1], flat.sum(axis=1)
    pairs = np.triu_indices(len(flat), 1)
    both, first, second = together[pairs], single[pairs[0]], single[pairs[1]]
    # The table of a pair has one degree of freedom, so that its statistic is the square of one deviation.
    expected, spread = first * second / size, np.sqrt(first * second * (size - first) * (size - second) / size**3)
    statistics = ((both - expected) / spread) ** 2
    assert 700 < len(statistics) == len(flat) * (len(flat) - 1) // 2
    assert statistics.max() < chi2.isf(1e-6 / len(statistics), 1)
    assert abs(statistics.mean() - 1) < 6 * np.sqrt(2 / len(statistics))


def test_layers_and_sites_never_share_a_stream() -> None:
    rows = jnp.arange(64, dtype=jnp.uint32)
    seeds = [np.asarray(site_seeds(Dropout(jnp.uint32(9), rows), layer, site)) for layer in range(48) for site in SITES]
    streams = np.concatenate(seeds, axis=1).astype(np.uint64)  # [2, layers * sites * rows]
    assert len(np.unique(streams[0] << np.uint64(32) | streams[1])) == streams.shape[1]


def test_the_backward_pass_uses_the_mask_of_the_forward_pass() -> None:
    rng, shape = np.random.default_rng(0), (3, 40, 24)
    x, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    kept = keep_mask(site_seeds(state(3, 3), 1, hashing.MLP_OUTPUT), shape, 0.3)
    loss = lambda x: jnp.sum(weights * dropout(x, 0.3, state(3, 3), 1, hashing.MLP_OUTPUT))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(x)
    np.testing.assert_allclose(gradient, np.where(kept, weights / 0.7, 0), rtol=1e-6)
    assert 0.2 < np.mean(~np.asarray(kept)) < 0.4


def test_attention_drops_probabilities_and_its_gradient_is_that_of_the_explicit_mask() -> None:
    rng, lengths = np.random.default_rng(1), jnp.array([24, 17, 5])
    qkv = jnp.asarray(rng.normal(size=(3, 24, 3, 4, 8)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 24, 4, 8)), jnp.float32)
    seeds = site_seeds(state(3, 3), 1, hashing.ATTENTION_PROBABILITIES)
    kept = keep_mask(seeds, (3, 4, 24, 24), 0.2)

    def explicit(qkv: jax.Array) -> jax.Array:
        query, key, value = (qkv[:, :, part] for part in range(3))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(8)
        logits = jnp.where(jnp.arange(24) < lengths[:, None, None, None], logits, -1e30)
        return jnp.einsum("bhqk,bkhd->bqhd", jnp.where(kept, jax.nn.softmax(logits) / 0.8, 0), value)

    def value_and_gradient(function: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        def loss(qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = function(qkv)
            return jnp.sum(weights * value), value

        gradient, value = jax.jit(jax.grad(loss, has_aux=True))(qkv)
        return value, gradient

    ours = value_and_gradient(lambda qkv: attention(qkv, lengths, seeds, 0.2))
    theirs = value_and_gradient(explicit)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=2e-5)


def test_microbatches_see_the_masks_of_their_rows_in_the_full_batch() -> None:
    model, inputs = small_model(dropout=0.3, attention_dropout=0.3), small_batch(8)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    run = jax.jit(lambda batch, rows: apply(model, params, batch, jnp.uint32(7), rows))
    full = jax.jit(lambda batch: apply(model, params, batch, jnp.uint32(7)))(inputs)
    for first in (0, 2, 6):
        rows = jnp.arange(first, first + 2, dtype=jnp.uint32)
        part = run({name: x[first : first + 2] for name, x in inputs.items()}, rows)
        np.testing.assert_allclose(part["mlm"], full["mlm"][first : first + 2], rtol=0, atol=2e-6)
        np.testing.assert_allclose(part["sbo"], full["sbo"][first : first + 2], rtol=0, atol=2e-6)
    elsewhere = run({name: x[2:4] for name, x in inputs.items()}, jnp.array([0, 1], jnp.uint32))
    assert np.abs(elsewhere["mlm"] - full["mlm"][2:4])[..., :131].max() > 1e-3


def test_the_gradient_of_a_step_with_dropout_is_the_derivative_of_its_loss() -> None:
    model, inputs = small_model(init_std=0.2), small_batch(4)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))

    @jax.jit
    def loss(params: dict[str, Any]) -> jax.Array:
        return sum(jax.nn.log_softmax(x)[..., 5].mean() for x in apply(model, params, inputs, jnp.uint32(3)).values())

    params, gradient = jax.tree.map(np.asarray, (params, jax.jit(jax.grad(loss))(params)))
    size = 1e-2
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    moved = np.float32(size / norm)
    ahead, behind = (loss(jax.tree.map(lambda p, g, by=by: p + by * g, params, gradient)) for by in (moved, -moved))
    np.testing.assert_allclose((ahead - behind) / (2 * size), norm, rtol=2e-2)


def test_rate_zero_and_no_key_compile_to_the_same_program_without_a_hash() -> None:
    model, inputs = small_model(dropout=0.0, attention_dropout=0.0), small_batch(2)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    lower = jax.jit(lambda p, key: apply(model, p, inputs, key)).lower
    text = lower(params, jnp.uint32(1)).compile().as_text()
    assert "u32[2,4,16,16]" not in text and "u32[2,16,32]" not in text
    assert lower(params, None).compile().cost_analysis()["flops"] == pytest.approx(
        lower(params, jnp.uint32(1)).compile().cost_analysis()["flops"], rel=1e-3
    )


def test_no_mask_is_kept_for_the_backward_pass() -> None:
    model, inputs = small_model(), small_batch(2)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    step = jax.grad(lambda p: sum(x[..., :131].sum() for x in apply(model, p, inputs, jnp.uint32(1)).values()))
    kept = [
        out.aval
        for equation in jax.make_jaxpr(step)(params).eqns
        if equation.primitive.name == "scan"
        for out in equation.outvars
    ]
    assert kept  # what one pass over the layers leaves for the other
    assert not [x for x in kept if x.dtype == jnp.bool_ or (x.dtype == jnp.uint32 and x.size > 2 * 2 * 2 * 4)]


FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tests.support.small_model import small_batch, small_model
from spanbert_jax.model.dropout import Dropout, keep_mask, site_seeds
from spanbert_jax.model.pretraining_heads import apply, init_params

assert len(jax.devices()) == 4
model, inputs = small_model(dropout=0.3, attention_dropout=0.3), small_batch(8)
params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))

def loss(params, batch):
    logits = apply(model, params, batch, jnp.uint32(7))
    return sum(jax.nn.log_softmax(x)[..., 5].mean() for x in logits.values()), logits

step = lambda: jax.jit(jax.value_and_grad(loss, has_aux=True))
expected = jax.tree.map(np.asarray, step()(params, inputs))
mask = lambda: jax.jit(lambda rows: keep_mask(site_seeds(Dropout(jnp.uint32(1), rows), 0, 1), (8, 4, 16, 16), 0.3))
expected_mask = np.asarray(mask()(jnp.arange(8, dtype=jnp.uint32)))
for shape in ((2, 2, 1), (2, 1, 2), (4, 1, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2)):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P(("data", "fsdp")))
        sharded = jax.jit(mask(), out_shardings=NamedSharding(mesh, P(("data", "fsdp"), "model")))
        np.testing.assert_array_equal(sharded(jax.device_put(jnp.arange(8, dtype=jnp.uint32), rows)), expected_mask)
        if shape in ((2, 2, 1), (2, 1, 2)):
            result = step()(params, jax.device_put(inputs, rows))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), result, expected)
print("same")
"""


def test_four_devices_give_the_masks_the_logits_and_the_gradients_of_one() -> None:
    assert on_four_devices(FOUR_DEVICES) == "same"
