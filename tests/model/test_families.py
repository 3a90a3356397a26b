"""A second family of layers, added by one row of FAMILIES: it computes, trains, spreads over a mesh and is saved."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from optax.contrib import MuonDimensionNumbers

from spanbert_jax.model.encoder import encode
from spanbert_jax.model.families import FAMILIES
from spanbert_jax.model.parameters import parameter_axes
from spanbert_jax.model.pretraining_heads import init_params, pretraining_model
from spanbert_jax.training import flops, sharding
from spanbert_jax.training.checkpoint import Checkpoints
from spanbert_jax.training.muon import dimension_numbers
from spanbert_jax.training.step import abstract_state
from tests.support.devices import on_four_devices
from tests.support.steps import states
from tests.support.synthetic import VOCAB
from tests.support.toy_family import TOY, hidden_states, toy_config


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", TOY)


@pytest.mark.parametrize("compute", [{}, {"unroll": True}, {"remat": "full"}])
def test_its_layers_take_turns_between_its_embeddings_and_its_final_norm(compute: dict) -> None:
    config = toy_config(compute=compute)
    model = pretraining_model(config, VOCAB, "cpu")
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), shapes)
    assert "position" not in params["embeddings"] and "token_type" not in params["embeddings"]
    ids, lengths = rng.integers(0, VOCAB, (3, 12)), np.array([12, 7, 3])
    valid = np.arange(12) < lengths[:, None]

    def loss(params: dict) -> tuple[jax.Array, jax.Array]:
        hidden = encode(model, params, ids, lengths, dropout_key=jnp.uint32(1))
        return jnp.sum(jnp.sin(hidden) * valid[..., None]), hidden

    gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(hidden[valid], hidden_states(params, ids, lengths)[valid], rtol=0, atol=1e-4)
    for group in ("embeddings", "encoder", "final_norm"):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient[group]))


def test_its_own_file_says_which_matrices_muon_takes() -> None:
    model = pretraining_model(toy_config(), VOCAB, "cpu")
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))["encoder"]
    taken = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        taken[name] = dimension_numbers(f"encoder/{name}", leaf.ndim)
    assert taken["up/kernel"] == MuonDimensionNumbers((1,), (3,))
    assert {name for name, axes in taken.items() if axes} == {"mix/kernel", "up/kernel", "down/kernel"}


def test_its_flops_are_counted() -> None:
    layer = 2 * 24**2 + 2 * 32 * 24 + 2 * 24 * 40 * 3  # of a position
    assert flops.encoder_flops(toy_config(), 32) == 3 * 3 * 32 * layer


FOUR_DEVICES = """
import sys
import jax
from etils import epath
from spanbert_jax.model.families import FAMILIES
from spanbert_jax.training.checkpoint import Checkpoints
from spanbert_jax.training.metadata import Metadata
from tests.support.steps import trained
from tests.support.toy_family import TOY, toy_config

FAMILIES["toy"] = TOY
config = toy_config(mesh={"fsdp": 2, "model": 2})
*_, (state, sums) = trained(config, 2)
kernel = state["params"]["encoder"]["up"]["kernel"]
assert kernel.sharding.shard_shape(kernel.shape) == (3, 12, 2, 20), kernel.sharding
checkpoints = Checkpoints(epath.Path(sys.argv[1]), config.train)
checkpoints.save(2, state, Metadata("pretraining", 2, config))
checkpoints.close()
print(sums["mlm_loss"].hex())
"""


def test_it_trains_on_four_devices_as_on_one_and_its_checkpoint_opens_on_another_mesh(tmp_path: Path) -> None:
    loss = float.fromhex(on_four_devices(FOUR_DEVICES, str(tmp_path)))
    config = toy_config()
    *_, (state, sums) = states(config, 2)
    assert loss == pytest.approx(sums["mlm_loss"], rel=1e-5)
    mesh = sharding.make_mesh(config.mesh)
    model = pretraining_model(config, VOCAB, "cpu")
    abstract = abstract_state(config, lambda key: init_params(model, key), mesh)
    found = Checkpoints(epath.Path(tmp_path), config.train).restore_newest(abstract, lambda saved: None)
    assert found and found[0] == 2
    restored = found[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), restored["params"], state["params"])


def test_a_parameter_of_another_family_has_no_row() -> None:
    assert parameter_axes("encoder/up/kernel", "toy") == (None, "embed", None, "mlp")
    with pytest.raises(ValueError, match="matches 0 rows"):
        parameter_axes("encoder/attention/qkv/kernel", "toy")
    with pytest.raises(ValueError, match="matches 0 rows"):
        parameter_axes("encoder/up/kernel", "bert")
