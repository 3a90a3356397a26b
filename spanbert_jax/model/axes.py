"""The axes of arrays: their names, and the mesh axes that divide each, of activations and of parameters.

Invariant: a constraint never changes a value, and an unknown name is an error, never a silently replicated array. The
rows that name the axes of a parameter stand beside the module that makes the parameter; `parameters.parameter_axes`
looks them up.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # the mesh axes that divide the rows of a batch


class Division(NamedTuple):
    """The mesh axes that divide an axis; None: every device holds the whole axis."""

    activation: str | tuple[str, ...] | None = None
    parameter: str | None = None


# An axis of a parameter that is never divided needs no name here: None stands for it in `ParameterAxes`.
AXES: dict[str, Division] = {
    "batch": Division(activation=BATCH_AXES),
    "heads": Division("model", "model"),
    "mlp": Division("model", "model"),
    "vocab": Division("model", "model"),
    "embed": Division(None, "fsdp"),
    "length": Division(),
    "head_dim": Division(),
    "qkv": Division(),
    "gate": Division(),
}

Names = tuple[str | None, ...]

# A pattern of the whole path of a parameter, such as "encoder/mlp/up/kernel", and the names of its axes.
ParameterAxes = tuple[tuple[str, Names], ...]


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Divides `x` over the mesh of `jax.set_mesh`, whose axes are AxisType.Auto; names: one of AXES for each axis.

    Inside `jax.shard_map` each device holds its part of the manual axes already, so only the other axes are
    constrained. Returns `x` itself where no axis is left. Raises ValueError on an unknown name or a wrong number of
    names, with a mesh or without.
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
    """The free mesh axes that divide the activation axis `name`: an entry of a PartitionSpec."""
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
    """`function`, run on each device's part of its arrays: for a kernel, which the compiler cannot divide by itself.

    function: returns a tuple of arrays. inputs, outputs: the names of each array's axes, None for an axis that nothing
    divides. In the place of an input array there may be None. Axes that an enclosing shard_map has divided already are
    left alone, and so is a dimension that does not divide evenly.
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
