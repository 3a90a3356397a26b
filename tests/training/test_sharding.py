"""The parameter table and the mesh: complete, unambiguous, and loud."""

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from spanbert_jax.config import MeshConfig
from spanbert_jax.errors import UserError
from spanbert_jax.model import heads, spans, task_heads
from spanbert_jax.training import sharding
from spanbert_jax.training.optimizer import make_optimizer
from tests.synthetic import VOCAB, small_config


def small_params() -> dict:
    model = heads.pretraining_model(small_config(), VOCAB, "cpu")
    return jax.eval_shape(lambda: heads.init_params(model, jax.random.key(0)))


def test_every_parameter_matches_exactly_one_row_and_every_row_a_parameter() -> None:
    import re

    trees = [small_params()]
    for task in ("question_answering", "token_classification", "sequence_classification"):
        model = task_heads.task_model(task, small_config(), VOCAB, 3, "cpu")
        trees.append(jax.eval_shape(lambda model=model: task_heads.init_params(model, jax.random.key(0))))
    span_model = spans.span_model(small_config(), VOCAB, 3, "cpu")
    trees.append(jax.eval_shape(lambda: spans.init_params(span_model, jax.random.key(0))))
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    leaves = [(path[1:], leaf) for path, leaf in leaves]
    names = {sharding.path_name(path): leaf for path, leaf in leaves}
    for name, leaf in names.items():
        assert len(sharding.parameter_axes(name)) == leaf.ndim
    for pattern, _ in sharding.PARAMETER_AXES:
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_a_parameter_that_no_row_knows_stops_the_start() -> None:
    with pytest.raises(ValueError, match="pooler/weight matches 0 rows"):
        sharding.parameter_axes("pooler/weight")


def test_a_parameter_that_two_rows_know_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "PARAMETER_AXES", (*sharding.PARAMETER_AXES, ("mlm/bias", (None,))))
    with pytest.raises(ValueError, match="mlm/bias matches 2 rows"):
        sharding.parameter_axes("mlm/bias")


def test_two_dimensions_on_one_mesh_axis_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "PARAMETER_AXES", (("x", ("vocab", "heads")),))
    with pytest.raises(ValueError, match="land on one mesh axis"):
        sharding.parameter_spec("x", (4, 4), AbstractMesh((1, 1, 2), ("data", "fsdp", "model")))


def test_a_dimension_that_the_mesh_does_not_divide_is_named() -> None:
    mesh = AbstractMesh((1, 1, 5), ("data", "fsdp", "model"))
    with pytest.raises(UserError, match=r"qkv/kernel: its heads dimension 2 is not divisible by config.mesh.model 5"):
        sharding.parameter_spec("encoder/attention/qkv/kernel", (2, 24, 3, 2, 12), mesh)


def test_the_moments_live_where_their_parameter_does() -> None:
    config = small_config()
    params = small_params()
    state = {
        "params": params,
        "opt_state": jax.eval_shape(make_optimizer(config.optimizer, 10).init, params),
        "step": jax.ShapeDtypeStruct((), int),
    }
    mesh = sharding.make_mesh(MeshConfig())
    where = sharding.state_shardings(state, mesh)
    moments = [
        leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(where["opt_state"])
        if sharding.path_name(path).endswith("embeddings/word")
    ]
    assert moments == [PartitionSpec("model", "fsdp")] * 2
    assert where["step"].spec == PartitionSpec()


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 1, "fsdp": 2}, {"model": 2}])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes: dict) -> None:
    with pytest.raises(UserError, match="does not fit 1 devices"):
        sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:1])


def test_a_batch_that_the_mesh_does_not_divide_is_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(
        UserError, match="batch_size 250 is not divisible by 8 data shards x 2 microbatches; use 240 or 256"
    ):
        sharding.check_batch(250, 2, AbstractMesh((4, 2, 3), ("data", "fsdp", "model")))
