"""Dropout whose mask is a hash of where an element is: nothing random is drawn, and no mask is stored.

Invariant: whether an element is dropped depends only on (key, layer, site, global row, index within the row), so a
microbatch, a shard and the backward pass all see the mask that the whole batch saw. The hash multiplies and xor-shifts
with the constants of Wellons' lowbias32, three times instead of two: with two, neighbouring heads' masks correlate.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Sites of BERT's dropout; EMBEDDINGS and HEAD (a task head's input) belong to no layer and use layer 0.
EMBEDDINGS, ATTENTION_PROBABILITIES, ATTENTION_OUTPUT, MLP_OUTPUT, HEAD = range(5)
_SITES = 5
_SALTS = (np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B))


class Dropout(NamedTuple):
    """What makes one step's masks: a key that differs from step to step, and which rows these are."""

    key: jax.Array  # uint32 scalar
    rows: jax.Array  # uint32 [batch]: number of each row in the global batch


def _mix(x: jax.Array) -> jax.Array:
    """lowbias32: a bijection of uint32 in which every input bit changes every output bit about half the time."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def site_seeds(dropout: Dropout, layer: jax.Array | int, site: int) -> jax.Array:
    """uint32 [2, batch]: 64 bits that name the stream of (key, layer, site, row)."""
    stream = jnp.asarray(layer, jnp.uint32) * np.uint32(_SITES) + np.uint32(site)
    rows = _mix(dropout.rows.astype(jnp.uint32))  # [batch]
    halves = [_mix(_mix(_mix(dropout.key ^ salt) + _mix(stream ^ salt)) + rows) for salt in _SALTS]
    return jnp.stack(halves)


def keep_mask(seeds: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """bool `shape`, False with probability `rate`; `seeds` [2, batch] of `site_seeds`, `shape` [batch, ...].

    The index within the row is a sum of iotas, so that it is computed where it is used, on whichever shard.
    """
    index = jnp.zeros((), jnp.uint32)
    for axis in range(1, len(shape)):
        stride = np.uint32(np.prod(shape[axis + 1 :], dtype=np.int64))
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    first, second = (seed.reshape(-1, *[1] * (len(shape) - 1)) for seed in seeds)
    bits = (index ^ first) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 16) ^ second) * np.uint32(0x846CA68B)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x7FEB352D)
    return bits >= np.uint32(round(rate * 2**32))


def drop(x: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    """`x` [batch, ...] with dropped elements 0 and the others divided by 1 - rate; not differentiable by itself."""
    scaled = (x.astype(jnp.float32) * (1 / (1 - rate))).astype(x.dtype)
    return jnp.where(keep_mask(seeds, x.shape, rate), scaled, jnp.zeros((), x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    return drop(x, seeds, rate)


def _dropout_forward(x: jax.Array, seeds: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    return drop(x, seeds, rate), seeds


def _dropout_backward(rate: float, seeds: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    return drop(cotangent, seeds, rate), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def dropout(x: jax.Array, rate: float, state: Dropout | None, layer: jax.Array | int, site: int) -> jax.Array:
    """Inverted dropout of `x` [batch, ...]; `x` itself where `state` is None or `rate` is 0."""
    if state is None or rate == 0:
        return x
    return _dropout(x, site_seeds(state, layer, site), rate)
