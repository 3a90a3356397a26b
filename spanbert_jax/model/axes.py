"""Where activations live on the mesh: the names of their axes, and the mesh axes each is divided over.

Invariant: a constraint never changes a value, and a misspelt name is an error, never a silently replicated array.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

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


# Of the layers whose gradients are summed as they come: the mesh axis and the dtype they are sent in.
_summing: contextvars.ContextVar[tuple[str, Any] | None] = contextvars.ContextVar("summing", default=None)


@contextlib.contextmanager
def layer_gradients_summed(axis: str, dtype: Any) -> Iterator[None]:
    """While a loss is traced in here, inside `jax.shard_map` over `axis`: the gradients of `layer_params` are summed
    over it, in `dtype`, in each layer's own backward pass, so that a layer's reduction runs beside the next one's
    arithmetic."""
    token = _summing.set((axis, dtype))
    try:
        yield
    finally:
        _summing.reset(token)


def layer_params(params: Any) -> Any:
    """The parameters of one layer, as they are; their gradients as `layer_gradients_summed` says."""
    over = _summing.get()
    return params if over is None else jax.tree.map(lambda leaf: _summed(leaf, *over), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _summed(leaf: jax.Array, axis: str, dtype: Any) -> jax.Array:
    return leaf


def _backward(axis: str, dtype: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum(gradient.astype(dtype), axis).astype(gradient.dtype),)


_summed.defvjp(lambda leaf, axis, dtype: (leaf, None), _backward)
