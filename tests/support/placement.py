"""Given parameters placed in a train state, in a process whose devices divide the state (devices.py)."""

from typing import Any

import jax
import numpy as np

from spanbert_jax.model import pretraining_heads
from spanbert_jax.training import sharding
from spanbert_jax.training.step import abstract_state, with_params
from tests.support.synthetic import VOCAB, small_config


def state_on(mesh: dict[str, int]) -> dict[str, Any]:
    """A state of zeros of synthetic.py's small model on the first devices, as many as `mesh` has."""
    config = small_config(mesh=mesh)
    model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
    where = sharding.make_mesh(config.mesh, jax.devices()[: int(np.prod(list(mesh.values())))])
    abstract = abstract_state(config, lambda key: pretraining_heads.init_params(model, key), where)
    return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), abstract)


def assert_placed_on(mesh: dict[str, int]) -> None:
    """Places random parameters without SBO's: they are divided as the state's are, and the rest of the state stays."""
    state, rng = state_on(mesh), np.random.default_rng(0)
    given = {group: state["params"][group] for group in ("embeddings", "encoder", "mlm")}
    given = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), given)
    placed = with_params(state, given)
    assert placed.keys() == state.keys() and placed["opt_state"] is state["opt_state"]
    assert placed["params"]["sbo"] is state["params"]["sbo"]
    assert placed["params"].keys() == state["params"].keys()
    divided = 0
    for group, tree in given.items():
        trees = (tree, state["params"][group], placed["params"][group])
        for wanted, old, new in zip(*map(jax.tree.leaves, trees), strict=True):
            assert new.sharding == old.sharding and new.dtype == old.dtype
            np.testing.assert_array_equal(np.asarray(new), wanted)
            divided += new.addressable_shards[0].data.shape != new.shape
    assert divided > 3
