"""The family "modern" against float64, in mixes of its fields, and against itself however it is computed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.model import layer_modern
from spanbert_jax.model.encoder import encode
from spanbert_jax.model.pretraining_heads import PretrainingModel, init_params, pretraining_model
from spanbert_jax.training import flops
from tests.support.devices import on_four_devices
from tests.support.modern_reference import BIASLESS, MODERNBERT, hidden_states
from tests.support.steps import losses, states
from tests.support.synthetic import VOCAB, small_config

ROTARY_BERT = {"family": "modern"}
MIXED = {**MODERNBERT, "pre_norm": False, "full_every": 2, "attention_bias": True, "norm_bias": True}
LENGTHS = np.array([24, 13, 1])


def small_model(fields: dict[str, Any], **compute: Any) -> PretrainingModel:
    model = ModelConfig(
        **{"layers": 5, "embed": 24, "heads": 2, "mlp": 20, "dropout": 0, "attention_dropout": 0, **fields}
    )
    return pretraining_model(Config(model=model, compute=ComputeConfig(dtype="float32", **compute)), VOCAB, "cpu")


def random_params(model: PretrainingModel) -> Any:
    """Random parameters, nowhere at their initial values."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(1)

    def leaf(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(float("scale" in jax.tree_util.keystr(path)), 0.2, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def values_and_gradient(model: PretrainingModel, params: Any) -> tuple[np.ndarray, Any]:
    """The hidden states of the valid positions, and the gradient of a sum over them."""
    ids = np.random.default_rng(2).integers(0, VOCAB, (3, 24))
    valid = np.arange(24) < LENGTHS[:, None]

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        hidden = encode(model, params, ids, LENGTHS)
        return jnp.sum(jnp.sin(hidden) * valid[..., None]), hidden

    gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(hidden)[valid], gradient


# Two whole turns of windows, layers without windows, and a turn with a layer beyond it.
@pytest.mark.parametrize(
    "fields",
    [{**MODERNBERT, "full_every": 2, "layers": 4}, {**ROTARY_BERT, "layers": 2}, {**MIXED, "layers": 3}],
    ids=["modernbert", "rotary bert", "mixed"],
)
def test_hidden_states_are_those_of_the_reference_and_ways_to_compute_change_only_rounding(fields: dict) -> None:
    model = small_model(fields)
    params = random_params(model)
    hidden, gradient = values_and_gradient(model, params)
    ids = np.random.default_rng(2).integers(0, VOCAB, (3, 24))
    expected = np.concatenate(hidden_states(params, model.model, ids, LENGTHS))
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=2e-5)
    for compute in ({"unroll": True}, {"remat": "full"}):
        other, other_gradient = values_and_gradient(small_model(fields, **compute), params)
        np.testing.assert_allclose(other, hidden, rtol=0, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), other_gradient, gradient)


def test_every_parameter_has_a_gradient_but_the_norm_that_the_first_layer_does_not_have() -> None:
    model = small_model({**MODERNBERT, **dict.fromkeys(BIASLESS, True), "layers": 2})
    _, gradient = values_and_gradient(model, random_params(model))
    norm = gradient["encoder"]["attention"].pop("norm")
    for leaf in (norm["scale"], norm["bias"]):
        assert not leaf[0].any() and leaf[1:].any(axis=1).all()
    for group in ("encoder", "final_norm"):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient[group]))
    assert np.any(gradient["embeddings"]["word"])


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    model = small_model(MODERNBERT).model
    table = layer_modern.rotations(model, 600).full
    one = np.random.default_rng(3).normal(size=(1, 1, 3, 2, 12)).astype(np.float32)
    turned = np.asarray(layer_modern.rotate(jnp.asarray(np.tile(one, (1, 600, 1, 1, 1))), table))[0]
    for distance in (0, 1, 70):
        scores = np.einsum("lhd,lhd->lh", turned[distance:, 0], turned[: 600 - distance, 1])
        np.testing.assert_allclose(scores, np.tile(scores[:1], (len(scores), 1)), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(turned[:, 2], np.tile(one[0, :, 2], (600, 1, 1)))  # values are not turned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_halves_that_a_tpu_swaps_by_a_product_are_the_same_to_the_bit(dtype: str) -> None:
    qkv = jax.random.normal(jax.random.key(0), (2, 5, 3, 2, 8)).astype(dtype)
    parts, product = layer_modern.swapped_by_parts(qkv), layer_modern.swapped_by_product(qkv)
    assert parts.dtype == product.dtype == jnp.float32
    np.testing.assert_array_equal(parts, product)


def test_a_turn_and_its_gradient_are_those_of_complex_numbers() -> None:
    """A turn multiplies each point by e^(i angle), and its gradient by the conjugate; values stay as they are."""
    model = ModelConfig(family="modern", embed=16, heads=2, local_rope_theta=100.0)
    qkv, gradient = (np.random.default_rng(seed).normal(size=(2, 7, 3, 2, 8)).astype(np.float32) for seed in (0, 1))
    angle = np.arange(7)[:, None, None] * 100.0 ** (-np.arange(4) / 4)  # [length, 1, half]
    turn = np.exp(1j * np.stack([angle, angle, 0 * angle], axis=1))  # [length, 3, 1, half]
    turned, back = jax.vjp(lambda x: layer_modern.rotate(x, layer_modern.rotations(model, 7).local), qkv)
    for found, given, factor in ((turned, qkv, turn), (back(gradient)[0], gradient, turn.conj())):
        points = (given[..., :4] + 1j * given[..., 4:]) * factor
        np.testing.assert_allclose(found, np.concatenate([points.real, points.imag], axis=-1), rtol=0, atol=2e-6)


def test_fresh_kernels_are_truncated_and_outputs_smaller_as_modernberts() -> None:
    model = small_model({**MODERNBERT, "embed": 96, "mlp": 96})
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    encoder = params["encoder"]
    for leaf, std in (
        (encoder["attention"]["qkv"]["kernel"], 0.02),
        (encoder["mlp"]["up"]["kernel"], 0.02),
        (params["embeddings"]["word"][:VOCAB], 0.02),
        (encoder["attention"]["output"]["kernel"], 0.02 / np.sqrt(10)),
        (encoder["mlp"]["down"]["kernel"], 0.02 / np.sqrt(10)),
    ):
        assert np.std(leaf) == pytest.approx(0.88 * std, rel=0.03) and np.abs(leaf).max() <= 2 * std


def test_flops_count_the_pairs_that_layers_see() -> None:
    model = small_model(MODERNBERT).model  # 5 layers, of which 0 and 3 see everything
    for length in (3, 24):
        seen = sum(abs(i - j) <= model.window for i in range(length) for j in range(length))
        linear = length * 24 * (4 * 24 + 3 * 20)
        expected = 2 * (5 * linear + 2 * 24 * (2 * length**2 + 3 * seen))
        assert flops.encoder_flops(Config(model=model), length) == 3 * expected


FOUR_DEVICES = """
from tests.support.modern_reference import MODERNBERT
from tests.support.steps import losses
from tests.support.synthetic import small_config

model = {**MODERNBERT, "full_every": 2}
for mesh, microbatches in (({"data": 4}, 1), ({"fsdp": 2, "model": 2}, 2)):
    config = small_config(model=model, mesh=mesh, train={"accumulation": microbatches})
    print(*(loss.hex() for loss in losses(config, 2)))
"""


def test_meshes_and_microbatches_change_nothing_but_rounding_with_dropout_on() -> None:
    model = {**MODERNBERT, "full_every": 2}
    expected = losses(small_config(model=model), 2)
    for line in on_four_devices(FOUR_DEVICES).splitlines():
        assert [float.fromhex(loss) for loss in line.split()] == pytest.approx(expected, rel=2e-5)


def test_a_run_in_bfloat16_starts_as_in_float32() -> None:
    config = small_config(model={**MODERNBERT, "full_every": 2})
    low = dataclasses.replace(config, compute=ComputeConfig(dtype="bfloat16"))
    (_, wide), (_, narrow) = (next(states(c, 1)) for c in (config, low))
    for name in ("mlm_loss", "sbo_loss", "gradient_norm"):
        assert narrow[name] == pytest.approx(wide[name], rel=0.02) and narrow[name] != wide[name]
