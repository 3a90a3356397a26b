"""The mesh, and what each device holds of a training state: what does not fit is refused at the start."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from spanbert_jax.config import MESH_AXES, MeshConfig
from spanbert_jax.errors import UserError
from spanbert_jax.model import encoder, pretraining_heads
from spanbert_jax.training import sharding
from spanbert_jax.training.optimizer import make_optimizer
from tests.support.synthetic import VOCAB, small_config


def small_params() -> dict:
    model = pretraining_heads.pretraining_model(small_config(), VOCAB, "cpu")
    return jax.eval_shape(lambda: pretraining_heads.init_params(model, jax.random.key(0)))


def test_two_dimensions_on_one_mesh_axis_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "AXES", (("x", ("vocab", "heads")),))
    with pytest.raises(ValueError, match="land on one mesh axis"):
        sharding.parameter_spec("x", (4, 4), AbstractMesh((1, 1, 2), MESH_AXES), "bert")


def test_a_dimension_that_the_mesh_does_not_divide_is_named() -> None:
    mesh = AbstractMesh((1, 1, 5), MESH_AXES)
    with pytest.raises(UserError, match=r"qkv/kernel: its heads dimension 2 is not divisible by config.mesh.model 5"):
        sharding.parameter_spec("encoder/attention/qkv/kernel", (2, 24, 3, 2, 12), mesh, "bert")


def test_the_moments_live_where_their_parameter_does() -> None:
    config = small_config()
    params = small_params()
    state = {
        "params": params,
        "opt_state": jax.eval_shape(make_optimizer(config.optimizer, 10).init, params),
        "step": jax.ShapeDtypeStruct((), int),
    }
    mesh = sharding.make_mesh(MeshConfig())
    where = sharding.state_shardings(state, mesh, "bert")
    moments = [
        leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(where["opt_state"])
        if sharding.path_name(path).endswith("embeddings/word")
    ]
    assert moments == [PartitionSpec("model", "fsdp")] * 2
    assert where["step"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (PartitionSpec(None, None), (8, 3), PartitionSpec("data", None)),
        (PartitionSpec(None, "fsdp"), (6, 8), PartitionSpec(None, "fsdp")),  # 6 does not divide, fsdp has the other
        (PartitionSpec("model", "fsdp"), (8, 8), PartitionSpec("data", "fsdp")),  # the model axis is one device
        (PartitionSpec(None), (3,), PartitionSpec(None)),
    ],
)
def test_moments_are_divided_where_a_dimension_is_free(
    spec: PartitionSpec, shape: tuple[int, ...], expected: PartitionSpec
) -> None:
    mesh = AbstractMesh((4, 2, 1), MESH_AXES)
    assert sharding.moment_spec(spec, shape, mesh) == expected


def test_every_tensor_of_a_large_model_has_divided_moments_on_a_pod() -> None:
    """Only what 256 devices cannot divide stays whole: vectors and the two rows of token types, 0.4% of it."""
    model = pretraining_heads.pretraining_model(
        small_config(
            model={"layers": 24, "embed": 1024, "heads": 16, "mlp": 4096, "max_length": 512, "span_offset_embed": 200}
        ),
        28_996,
        "cpu",
    )
    params = jax.eval_shape(lambda: pretraining_heads.init_params(model, jax.random.key(0)))
    mesh = AbstractMesh((256, 1, 1), MESH_AXES)
    specs = jax.tree.leaves(sharding.parameter_specs(params, mesh, "bert", moments=True))
    leaves = jax.tree.leaves(params)
    whole = sum(leaf.size for leaf, spec in zip(leaves, specs, strict=True) if "data" not in spec)
    assert 0 <= whole < 0.005 * sum(leaf.size for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What mesh construction asks of a TPU's device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def chips(slices: int) -> list[Chip]:
    """Slices of 4 x 4 chips, in an order that mixes them."""
    made = [
        Chip(16 * s + 4 * y + x, s, (x, y, 0), 4 * s + y) for s in range(slices) for y in range(4) for x in range(4)
    ]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]


@pytest.mark.parametrize("shape", [(32, 1, 1), (8, 4, 1), (4, 4, 2), (2, 2, 8), (2, 16, 1)])
def test_only_the_data_axis_goes_from_slice_to_slice(shape: tuple[int, int, int]) -> None:
    array = sharding.arrange(chips(2), shape)  # type: ignore[arg-type]  # they have what is asked of them
    assert array.shape == shape and len(set(array.flat)) == 32
    slices = np.vectorize(lambda chip: chip.slice_index)(array)
    assert all(len(set(rows.flat)) == 1 for rows in slices)  # fsdp and model neighbours share a slice
    assert slices[:, 0, 0].tolist() == sorted(slices[:, 0, 0])  # and the data axis crosses once


def test_a_mesh_that_no_product_of_a_slices_sides_makes_is_arranged_all_the_same() -> None:
    assert sharding.arrange(chips(1), (1, 2, 8)).shape == (1, 2, 8)  # type: ignore[arg-type]


def test_fsdp_and_model_must_fit_in_a_slice() -> None:
    message = r"fsdp 8 x model 4 = 32 devices do not fit in a slice of 16, .* one of the 2 slices"
    with pytest.raises(UserError, match=message):
        sharding.arrange(chips(2), (1, 8, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 1, "fsdp": 2}, {"model": 2}])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes: dict) -> None:
    with pytest.raises(UserError, match="does not fit 1 devices"):
        sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:1])


def test_a_batch_that_the_mesh_does_not_divide_is_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(
        UserError, match="batch_size 250 is not divisible by 8 data shards x 2 microbatches; use 240 or 256"
    ):
        sharding.check_batch(250, 2, AbstractMesh((4, 2, 3), MESH_AXES))
