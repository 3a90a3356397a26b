"""Dropout whose mask is a hash of each element's place: no random number is drawn, and no mask is stored.

Invariant: whether an element is dropped depends only on (key, layer, site, global row, index within the row). So a
microbatch, a shard and the backward pass compute their part of the whole batch's mask. The hash multiplies and
xor-shifts with the constants of Wellons' lowbias32, three times instead of two: with two, the masks of neighbouring
heads correlate.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Sites of BERT's dropout; EMBEDDINGS and HEAD (a task head's input) belong to no layer and use layer 0.
EMBEDDINGS, ATTENTION_PROBABILITIES, ATTENTION_OUTPUT, MLP_OUTPUT, HEAD = range(5)
_SITES = 5
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B  # lowbias32's multipliers
_SALTS = (np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B))


class Dropout(NamedTuple):
    """The seeds of one step's masks."""

    key: jax.Array  # uint32 scalar, another at each step
    row_numbers: jax.Array  # uint32 [batch]: number of each row in the global batch


def _mix(x: jax.Array) -> jax.Array:
    """lowbias32: a bijection of uint32 in which every input bit changes every output bit about half the time."""
    x = (x ^ (x >> 16)) * np.uint32(_FIRST)
    x = (x ^ (x >> 15)) * np.uint32(_SECOND)
    return x ^ (x >> 16)


def site_seeds(dropout: Dropout, layer: jax.Array | int, site: int) -> jax.Array:
    """uint32 [2, batch]: 64 bits that name the stream of (key, layer, site, row)."""
    stream = jnp.asarray(layer, jnp.uint32) * np.uint32(_SITES) + np.uint32(site)
    numbers = _mix(dropout.row_numbers.astype(jnp.uint32))  # [batch]
    halves = [_mix(_mix(_mix(dropout.key ^ salt) + _mix(stream ^ salt)) + numbers) for salt in _SALTS]
    return jnp.stack(halves)


def keep_mask(seeds: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """bool `shape`, False with probability `rate`; `seeds` [2, batch] of `site_seeds`, `shape` [batch, ...].

    An element's counter is a sum of iotas, so every shard computes the counters of its own elements.
    """
    first, second = (seed.reshape(-1, *[1] * (len(shape) - 1)) for seed in seeds)
    counters = counter(first)
    for axis in range(1, len(shape)):
        stride = int(np.prod(shape[axis + 1 :], dtype=np.int64))
        counters = counters + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride * _FIRST % 2**32)
    return keep(counters, second, rate)


def counter(x: jax.Array) -> jax.Array:
    """The first step of the hash, which is linear. The element at `index` of a row with the seeds `first` and `second`
    has the counter counter(first) + counter(index), and counter(a + b) is counter(a) + counter(b)."""
    return x.astype(jnp.uint32) * np.uint32(_FIRST)


def keep(counters: jax.Array, second: jax.Array, rate: float) -> jax.Array:
    """bool: `keep_mask` at the elements with these counters, in rows whose second seed is `second`."""
    bits = (counters ^ (counters >> 16) ^ second) * np.uint32(_SECOND)
    bits = (bits ^ (bits >> 15)) * np.uint32(_FIRST)
    return bits >= np.uint32(round(rate * 2**32))


def drop(x: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    """`x` [batch, ...] with dropped elements 0 and the others divided by 1 - rate. For use inside of custom gradients:
    autodiff of `drop` would store the mask."""
    return drop_others(x, keep_mask(seeds, x.shape, rate), rate)


def drop_others(x: jax.Array, kept: jax.Array, rate: float) -> jax.Array:
    """`drop` with the mask `kept`, bool of the shape of `x`."""
    scaled = (x.astype(jnp.float32) * (1 / (1 - rate))).astype(x.dtype)
    return jnp.where(kept, scaled, jnp.zeros((), x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    return drop(x, seeds, rate)


def _dropout_forward(x: jax.Array, seeds: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    return drop(x, seeds, rate), seeds


def _dropout_backward(rate: float, seeds: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    # Without the barrier XLA keeps the forward pass's mask of unrolled layers, and a GPU stores the mask for a kernel
    # that cannot hash.
    seeds, cotangent = jax.lax.optimization_barrier((seeds, cotangent))
    return drop(cotangent, seeds, rate), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def dropout(x: jax.Array, rate: float, state: Dropout | None, layer: jax.Array | int, site: int) -> jax.Array:
    """Inverted dropout of `x` [batch, ...]; `x` itself where `state` is None or `rate` is 0."""
    if state is None or rate == 0:
        return x
    return _dropout(x, site_seeds(state, layer, site), rate)
