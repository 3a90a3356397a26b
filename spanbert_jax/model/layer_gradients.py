"""The reduction of a layer's gradients over the data axis, in the layer's own backward pass.

Invariant: outside of `summed_over`, and forward, `layer_params` changes nothing.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax

# The mesh axis and the dtype that gradients are sent in.
_summing: contextvars.ContextVar[tuple[str, Any] | None] = contextvars.ContextVar("summing", default=None)


@contextlib.contextmanager
def summed_over(axis: str, dtype: Any) -> Iterator[None]:
    """While a loss is traced in here, inside `jax.shard_map` over `axis`: the gradients of `layer_params` are summed
    over it, in `dtype`, in each layer's own backward pass, so that a layer's reduction runs beside the next one's
    arithmetic."""
    token = _summing.set((axis, dtype))
    try:
        yield
    finally:
        _summing.reset(token)


def layer_params(params: Any) -> Any:
    """The parameters of one layer, as they are; their gradients as `summed_over` says."""
    over = _summing.get()
    return params if over is None else jax.tree.map(lambda leaf: _summed(leaf, *over), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _summed(leaf: jax.Array, axis: str, dtype: Any) -> jax.Array:
    return leaf


def _backward(axis: str, dtype: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum(gradient.astype(dtype), axis).astype(gradient.dtype),)


_summed.defvjp(lambda leaf, axis, dtype: (leaf, None), _backward)
