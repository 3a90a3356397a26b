"""The strict helper for activation shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from spanbert_jax.model.axes import constrain


def test_without_a_mesh_it_returns_its_argument() -> None:
    x = jnp.ones((2, 3, 4))
    assert constrain(x, "batch", "length", "embed") is x


@pytest.mark.parametrize("names", [("batch", "lenght", "embed"), ("batch", "length"), ()])
def test_an_unknown_name_or_a_wrong_number_of_names_is_an_error_with_and_without_a_mesh(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"unknown activation axis 'lenght'|one per axis"):
        constrain(jnp.ones((2, 3, 4)), *names)


def test_under_a_mesh_the_constraint_is_in_the_program_and_values_stay() -> None:
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    x = jnp.arange(24.0).reshape(2, 3, 4)
    with jax.set_mesh(mesh):
        equations = jax.make_jaxpr(lambda x: constrain(x, "batch", "length", "mlp"))(x).eqns
        (constraint,) = [e for e in equations if e.primitive.name == "sharding_constraint"]
        assert constraint.params["sharding"].spec == PartitionSpec(("data", "fsdp"), None, "model")
        np.testing.assert_array_equal(jax.jit(lambda x: constrain(x, "batch", "length", "vocab"))(x), x)


def test_inside_shard_map_only_the_axes_that_are_left_are_constrained() -> None:
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
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
