"""Muon against a reference in float64 NumPy, matrix by matrix, and its tables against every family's parameters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spanbert_jax.config import FAMILIES, OptimizerConfig
from spanbert_jax.model import parameters
from spanbert_jax.training.muon import dimension_numbers
from spanbert_jax.training.optimizer import learning_rate, make_optimizer
from spanbert_jax.training.sharding import path_name
from tests.support.devices import on_four_devices
from tests.support.synthetic import VOCAB, small_config

LAYERS, EMBED, HEADS, HEAD_DIM, MLP = 2, 8, 2, 3, 12
SHAPES = {
    "encoder/attention/qkv/kernel": (LAYERS, EMBED, 3, HEADS, HEAD_DIM),
    "encoder/attention/qkv/bias": (LAYERS, 3, HEADS, HEAD_DIM),
    "encoder/attention/output/kernel": (LAYERS, HEADS, HEAD_DIM, EMBED),
    "encoder/mlp/up/kernel": (LAYERS, EMBED, 2, MLP),
    "encoder/mlp/down/kernel": (LAYERS, MLP, EMBED),
    "embeddings/word": (16, EMBED),
    "mlm/dense/kernel": (EMBED, EMBED),
    "sbo/dense_1/kernel": (2 * EMBED + 5, EMBED),
    "sbo/offset": (4, 5),
    "spans/kernel": (EMBED, 3, EMBED),
}


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {path: rng.normal(size=shape) for path, shape in SHAPES.items()}


def nested(flat: dict[str, np.ndarray]) -> dict:
    """A tree of float32 arrays from {"a/b": array}."""
    tree: dict = {}
    for path, array in flat.items():
        *groups, name = path.split("/")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = jnp.asarray(array, jnp.float32)
    return tree


def trained(config: OptimizerConfig, steps: int) -> dict[str, np.ndarray]:
    """The parameters after `steps` updates, from `gradients(1000)`."""
    optimizer, params = make_optimizer(config, 10), nested(gradients(1000))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(nested(gradients(step)), state, params)
        params = optax.apply_updates(params, updates)
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def matrices_of(path: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The logical matrices [inputs, outputs] of a parameter, by the layer and the part."""
    if "qkv" in path:
        return {
            f"{layer}{part}": array[layer, :, part].reshape(EMBED, -1) for layer in range(LAYERS) for part in range(3)
        }
    if "output" in path:
        return {f"{layer}": array[layer].reshape(-1, EMBED) for layer in range(LAYERS)}
    if "up" in path:
        return {f"{layer}{part}": array[layer, :, part] for layer in range(LAYERS) for part in range(2)}
    if "down" in path:
        return {f"{layer}": array[layer] for layer in range(LAYERS)}
    return {"": array.reshape(-1, EMBED)} if "spans" in path else {"": array}


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Keller Jordan's quintic iteration, as his post has it, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / np.linalg.norm(matrix)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


CONFIG = OptimizerConfig(name="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.3, clip_norm=0.0)


def test_a_hidden_matrix_moves_as_the_reference_says_and_its_parts_as_separate_matrices() -> None:
    ours, schedule = trained(CONFIG, 4), learning_rate(CONFIG, 10)
    for path in (name for name in SHAPES if name.endswith("kernel")):
        param, first = gradients(1000)[path], np.zeros(SHAPES[path])
        params = matrices_of(path, param)
        for step in range(4):
            grad = gradients(step)[path]
            first = 0.95 * first + 0.05 * grad
            momentum = 0.95 * first / (1 - 0.95 ** (step + 2)) + 0.05 * grad / (1 - 0.95 ** (step + 1))
            for name, matrix in matrices_of(path, momentum).items():
                update = newton_schulz(matrix) * 0.2 * np.sqrt(max(matrix.shape))
                params[name] = params[name] - float(schedule(step)) * (update + 0.3 * params[name])
        for name, matrix in matrices_of(path, ours[path]).items():
            np.testing.assert_allclose(matrix, params[name], rtol=0, atol=3e-5, err_msg=f"{path} {name}")


def test_an_update_s_root_mean_square_is_about_muon_rms_for_every_shape() -> None:
    config = OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0, muon_rms=0.5)
    before, after = gradients(1000), trained(config, 1)
    for path in (name for name in SHAPES if name.endswith("kernel")):
        for name, matrix in matrices_of(path, after[path] - before[path]).items():
            assert 0.35 < np.sqrt(np.mean(matrix**2)) < 0.6, (path, name)


def test_all_other_parameters_are_adamw_s() -> None:
    one, other = trained(CONFIG, 3), trained(OptimizerConfig(**{**vars(CONFIG), "name": "adamw"}), 3)
    for path in SHAPES:
        assert np.array_equal(one[path], other[path]) == (not path.endswith("kernel")), path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_a_hidden_matrix_or_named_as_none(family: str) -> None:
    between = "pooler" if family == "bert" else "transform"
    heads = {"mlm": 1, "sbo": 15, "qa_outputs": 1, between: 1, "classifier": 3, "decoder": 1}
    model = small_config(model={"family": family, "decoder_layers": 1}).model
    shapes = parameters.parameter_shapes(model, VOCAB, heads)
    found = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda x: type(x) is tuple)
    hidden = {path_name(path) for path, shape in found if dimension_numbers(path_name(path), len(shape))}
    of_layers = ("attention/qkv", "attention/output", "mlp/up", "mlp/down")
    of_heads = ("mlm/dense", "sbo/dense_1", "sbo/dense_2", "pooler" if family == "bert" else "transform/dense")
    attention = [f"{kind}/{part}" for kind in ("own", "row") for part in ("query", "key", "value", "output")]
    of_decoder = ["previous", "mask", "output_1", "output_2", *(f"layers_0/{x}" for x in (*attention, "up", "down"))]
    of_heads = (*of_heads, *(f"decoder/{name}" for name in of_decoder))
    assert hidden == {f"encoder/{name}/kernel" for name in of_layers} | {f"{name}/kernel" for name in of_heads}


def test_a_parameter_that_no_row_describes_is_refused_by_name() -> None:
    optimizer = make_optimizer(OptimizerConfig(name="muon"), 10)
    with pytest.raises(ValueError, match=r"encoder/gate/kernel with 3 axes is described by 0 rows of MATRICES"):
        optimizer.init({"encoder": {"gate": {"kernel": jnp.ones((2, 3, 4))}}})
    with pytest.raises(ValueError, match=r"encoder/mlp/up/kernel with 5 axes is described by 0 rows"):
        optimizer.init({"encoder": {"mlp": {"up": {"kernel": jnp.ones((2, 3, 4, 5, 6))}}}})


def test_a_mesh_divides_the_momentum_and_changes_nothing_but_rounding() -> None:
    script = """
import json
from tests.support.four_devices import MUON_CASES, muon
print(json.dumps({name: muon(mesh) for name, mesh in MUON_CASES.items()}))
"""
    cases = json.loads(on_four_devices(script))
    for name, parts in (("zero", {4}), ("fsdp_model", {2, 4})):
        for one, other in zip(cases["one"]["params"], cases[name]["params"], strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=2e-6)
        assert {whole / held for held, whole in cases[name]["momentum"]} == parts
