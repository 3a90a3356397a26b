"""The sum of gradients over the data axis, taken layer by layer during the backward pass.

Invariant: outside of `summed_over`, and in every forward pass, `layer_params` is the identity.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

# The mesh axis, the dtype that gradients are sent in, and whether small gradients are sent together.
_summing: contextvars.ContextVar[tuple[str, jnp.dtype, bool] | None] = contextvars.ContextVar("summing", default=None)

LARGE = 2**20  # a gradient of at least so many numbers is always sent by itself


@contextlib.contextmanager
def summed_over(axis: str, dtype: jnp.dtype, together: bool) -> Iterator[None]:
    """Within this context, and inside of `jax.shard_map` over `axis`, a loss is traced so that each layer's backward
    pass sums the gradients of the layer's parameters (`summed`). One layer's reduction then runs beside the next
    layer's arithmetic."""
    token = _summing.set((axis, dtype, together))
    try:
        yield
    finally:
        _summing.reset(token)


def layer_params(params: Any) -> Any:
    """The parameters of one layer, unchanged. Inside of `summed_over` the backward pass sums their gradients."""
    over = _summing.get()
    return params if over is None else _summed_backward(params, *over)


def summed(gradients: Any, axis: str, dtype: jnp.dtype, together: bool) -> Any:
    """The gradients, any tree, added up over the mesh axis: sent in `dtype`, returned in their own dtypes.

    Large gradients are sent one by one, as the backward pass produces them. `together` sends the small ones as one
    array and is for gradients that no other mesh axis divides. A TPU cannot compute during a reduction of several
    arrays, nor during one of fewer than 4,096 numbers.
    """
    leaves, tree = jax.tree.flatten(gradients)
    small = {place: leaf for place, leaf in enumerate(leaves) if together and leaf.size < LARGE}
    joined, split = ravel_pytree(small)
    sums = split(_sum(joined, axis, dtype)) if small else {}
    done = [sums[place] if place in sums else _sum(leaf, axis, dtype) for place, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, done)


def _sum(gradient: jax.Array, axis: str, dtype: jnp.dtype) -> jax.Array:
    return jax.lax.psum(gradient.astype(dtype), axis).astype(gradient.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _summed_backward(params: Any, axis: str, dtype: jnp.dtype, together: bool) -> Any:
    return params


def _backward(axis: str, dtype: jnp.dtype, together: bool, _: None, gradients: Any) -> tuple[Any]:
    return (summed(gradients, axis, dtype, together),)


_summed_backward.defvjp(lambda params, axis, dtype, together: (params, None), _backward)
