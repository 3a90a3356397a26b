"""Where activations live on the mesh: the names of their axes, and the mesh axes each is divided over.

Invariant: a constraint never changes a value, and a misspelt name is an error, never a silently replicated array.
"""

import jax
from jax.sharding import AxisType, PartitionSpec

# Activation axis -> the mesh axes that divide it; None: every device holds all of it.
MESH_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "heads": "model",
    "mlp": "model",
    "vocab": "model",
    "length": None,
    "masked": None,
    "embed": None,
    "head_dim": None,
}


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Divides `x`, one name of MESH_AXES per axis, over the mesh of `jax.set_mesh` (its axes: AxisType.Auto).

    Inside `jax.shard_map` each device holds its part of the manual axes already: the others alone are constrained.
    Returns `x` itself where no axis is left. Raises ValueError on an unknown name or a wrong number of them, with a
    mesh or without.
    """
    unknown = [name for name in names if name not in MESH_AXES]
    if unknown:
        raise ValueError(f"unknown activation axis {unknown[0]!r}; known: {', '.join(MESH_AXES)}")
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
    axes, free = MESH_AXES[name], free_axes()
    if isinstance(axes, tuple):
        return tuple(axis for axis in axes if axis in free) or None
    return axes if axes in free else None
