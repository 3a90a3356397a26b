"""Activation axes: the strict helper for shardings, and functions that run on each device's part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from spanbert_jax.config import MESH_AXES
from spanbert_jax.model.axes import AXES, constrain, is_divided, on_each_device


def test_without_a_mesh_it_returns_its_argument() -> None:
    x = jnp.ones((2, 3, 4))
    assert constrain(x, "batch", "length", "embed") is x


@pytest.mark.parametrize("names", [("batch", "lenght", "embed"), ("batch", "length"), ()])
def test_an_unknown_name_or_a_wrong_number_of_names_is_an_error_with_and_without_a_mesh(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"unknown activation axis 'lenght'|one per axis"):
        constrain(jnp.ones((2, 3, 4)), *names)


def test_under_a_mesh_the_constraint_is_in_the_program_and_values_stay() -> None:
    mesh = jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    x = jnp.arange(24.0).reshape(2, 3, 4)
    with jax.set_mesh(mesh):
        equations = jax.make_jaxpr(lambda x: constrain(x, "batch", "length", "mlp"))(x).eqns
        (constraint,) = [e for e in equations if e.primitive.name == "sharding_constraint"]
        assert constraint.params["sharding"].spec == PartitionSpec(("data", "fsdp"), None, "model")
        np.testing.assert_array_equal(jax.jit(lambda x: constrain(x, "batch", "length", "vocab"))(x), x)


def test_inside_shard_map_only_the_axes_that_are_left_are_constrained() -> None:
    mesh = jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    x = jnp.arange(24.0).reshape(2, 3, 4)

    def constraints(manual: set[str]) -> list[PartitionSpec]:
        inner = lambda x: constrain(x, "batch", "length", "mlp")  # noqa: E731
        whole = PartitionSpec()
        mapped = jax.shard_map(inner, mesh=mesh, in_specs=whole, out_specs=whole, axis_names=manual, check_vma=False)
        (equation,) = jax.make_jaxpr(mapped)(x).eqns
        inside = equation.params["jaxpr"].eqns
        return [e.params["sharding"].spec for e in inside if e.primitive.name == "sharding_constraint"]

    assert constraints({"data"}) == [PartitionSpec(("fsdp",), None, "model")]
    assert constraints({"data", "model"}) == [PartitionSpec(("fsdp",), None, None)]
    assert constraints({"data", "fsdp", "model"}) == []


ROWS = ("batch", "length", "heads")


def parts(sizes: tuple[int, int, int], *shapes: tuple[int, ...] | None) -> list[tuple[int, ...] | None]:
    """The shapes that a function sees, on each device of a mesh of `sizes`, of arrays of `shapes`; the first is ROWS,
    the second seeds and the third heads. Nothing runs, so that no device need be there."""
    seen: list[tuple[int, ...] | None] = []

    def function(*arrays: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        seen.extend(None if x is None else x.shape for x in arrays)
        return arrays[0], jnp.sum(arrays[0], axis=1, keepdims=True)

    arrays = [None if shape is None else jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        mapped = on_each_device(function, (ROWS, (None, "batch"), ("heads",)), (ROWS, ("batch", None, "heads")))
        whole, summed = jax.eval_shape(mapped, *arrays)
    assert whole.shape == shapes[0] and summed.shape == (whole.shape[0], 1, whole.shape[2])
    return seen


def test_on_each_device_gives_each_device_its_part_of_every_array() -> None:
    assert parts((2, 2, 2), (8, 3, 4), (2, 8), (4,)) == [(2, 3, 2), (2, 2), (2,)]
    assert parts((1, 1, 4), (8, 3, 4), (2, 8), (4,)) == [(8, 3, 1), (2, 8), (1,)]
    assert parts((2, 2, 2), (8, 3, 4), None, (4,)) == [(2, 3, 2), None, (2,)]


def test_on_each_device_leaves_whole_what_does_not_divide_evenly() -> None:
    assert parts((2, 2, 2), (6, 3, 4), (2, 6), (4,)) == [(6, 3, 2), (2, 6), (2,)]
    assert parts((2, 2, 2), (8, 3, 3), (2, 8), (3,)) == [(2, 3, 3), (2, 2), (3,)]
    assert parts((2, 1, 2), (1, 3, 3), None, (3,)) == [(1, 3, 3), None, (3,)]


def test_on_each_device_without_a_mesh_is_the_function_itself() -> None:
    assert on_each_device(jnp.modf, (ROWS,), (ROWS, ROWS)) is jnp.modf


def test_inside_shard_map_on_each_device_divides_only_the_axes_that_are_left() -> None:
    mesh = AbstractMesh((2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    seen = []

    def function(x: jax.Array) -> tuple[jax.Array]:
        seen.append((x.shape, is_divided("batch"), is_divided("heads")))
        return (x,)

    def inner(x: jax.Array) -> jax.Array:
        return on_each_device(function, (ROWS,), (ROWS,))(x)[0]

    with jax.sharding.use_abstract_mesh(mesh):
        for manual in ({"data"}, {"data", "fsdp"}, {"data", "fsdp", "model"}):
            spec = PartitionSpec(tuple(axis for axis in ("data", "fsdp") if axis in manual))
            mapped = jax.shard_map(inner, in_specs=spec, out_specs=spec, axis_names=manual, check_vma=False)
            jax.eval_shape(mapped, jax.ShapeDtypeStruct((8, 3, 4), jnp.float32))
    assert [shape for shape, *_ in seen] == [(2, 3, 2), (2, 3, 2), (2, 3, 4)]
    assert not any(divided for _, *both in seen for divided in both)


def test_an_activation_axis_is_divided_where_free_mesh_axes_have_several_devices() -> None:
    assert not is_divided("batch") and not is_divided("heads")
    for sizes, divided in (
        ((1, 1, 1), set()),
        ((2, 1, 1), {"batch"}),
        ((1, 2, 1), {"batch"}),
        ((1, 1, 2), {"heads", "mlp", "vocab"}),
    ):
        mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
        with jax.sharding.use_abstract_mesh(mesh):
            assert {name for name in AXES if is_divided(name)} == divided
