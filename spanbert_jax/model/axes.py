"""The axes of arrays: their names, and the mesh axes that divide each, of activations and of parameters.

Invariant: a constraint never changes a value, and an unknown name is an error, never a silently replicated array. The
rows that name the axes of each parameter stand beside the modules that make it (`parameters.parameter_axes`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # the mesh axes that divide the rows of a batch


class Division(NamedTuple):
    """The mesh axes that divide an axis, or None where every device holds all of it."""

    activation: str | tuple[str, ...] | None = None
    parameter: str | None = None


# The axes of a parameter that are in no need of a name are None there: never divided.
AXES: dict[str, Division] = {
    "batch": Division(activation=BATCH_AXES),
    "heads": Division("model", "model"),
    "mlp": Division("model", "model"),
    "vocab": Division("model", "model"),
    "embed": Division(None, "fsdp"),
    "length": Division(),
    "masked": Division(),
    "head_dim": Division(),
    "qkv": Division(),
}

Names = tuple[str | None, ...]

# A pattern of the whole path of a parameter, such as "encoder/mlp/up/kernel", and the names of its axes.
ParameterAxes = tuple[tuple[str, Names], ...]


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Divides `x`, one name of AXES per axis, over the mesh of `jax.set_mesh` (its axes: AxisType.Auto).

    Inside `jax.shard_map` each device holds its part of the manual axes already: the others alone are constrained.
    Returns `x` itself where no axis is left. Raises ValueError on an unknown name or a wrong number of them, with a
    mesh or without.
    """
    unknown = [name for name in names if name not in AXES]
    if unknown:
        raise ValueError(f"unknown activation axis {unknown[0]!r}; known: {', '.join(AXES)}")
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {x.shape}; give one per axis")
    if not free_axes():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*map(dividing, names)))


def free_axes() -> set[str]:
    """The axes of the mesh of `jax.set_mesh` that no enclosing `jax.shard_map` has divided already."""
    mesh = jax.sharding.get_abstract_mesh()
    return {axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind is AxisType.Auto}


def dividing(name: str) -> str | tuple[str, ...] | None:
    """The free axes that divide the activation axis `name`, as a PartitionSpec has them."""
    axes, free = AXES[name].activation, free_axes()
    if isinstance(axes, tuple):
        return tuple(axis for axis in axes if axis in free) or None
    return axes if axes in free else None


def is_divided(name: str) -> bool:
    """Whether several devices have a part each of the activation axis `name`, along free axes."""
    return _parts(dividing(name)) > 1


def _parts(axes: str | tuple[str, ...] | None) -> int:
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def on_each_device(
    function: Callable[..., Any], inputs: tuple[Names, ...], outputs: tuple[Names, ...]
) -> Callable[..., Any]:
    """`function`, which returns a tuple, on each device's part of its arrays: what the compiler cannot divide by
    itself, such as a kernel.

    inputs, outputs: the names of each array's axes, None for one that nothing divides; an input may be None. Axes that
    an enclosing shard_map has divided already are left alone; so is a dimension that does not divide evenly.
    """
    free = free_axes()
    if not free:
        return function

    def mapped(*arrays: jax.Array | None) -> Any:
        sizes = {
            name: size
            for names, array in zip(inputs, arrays, strict=True)
            if array is not None
            for name, size in zip(names, array.shape, strict=True)
        }

        def spec(names: Names) -> PartitionSpec:
            over = [None if name is None else dividing(name) for name in names]
            return PartitionSpec(
                *(o if sizes.get(n, 0) % _parts(o) == 0 else None for n, o in zip(names, over, strict=True))
            )

        return jax.shard_map(
            function,
            in_specs=tuple(map(spec, inputs)),
            out_specs=tuple(map(spec, outputs)),
            axis_names=free,
            check_vma=False,  # a kernel does not say over which axes its results vary
        )(*arrays)

    return mapped
