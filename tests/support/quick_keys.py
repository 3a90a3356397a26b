"""Keys of jax.random whose hash is a few operations, for tests that draw parameters of many models.

Invariant: a key is a function of the seed and of the splits and folds on the way to it, as with JAX's own keys. XLA
takes 50 ms to compile a normal draw by threefry, JAX's own hash, and a small model has 20 draws.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

_GOLDEN = 0x9E3779B9


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of uint32 ("lowbias32", Wellons 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def _seed(seed: jax.Array) -> jax.Array:
    return _mixed(seed.astype(jnp.uint32) + jnp.uint32(_GOLDEN))[None]


def _fold_in(key: jax.Array, data: Any) -> jax.Array:
    return _mixed(key ^ _mixed(jnp.asarray(data, jnp.uint32) + jnp.uint32(_GOLDEN)))


def _counted(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    numbers = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mixed(key[0] + jnp.uint32(_GOLDEN) * (numbers + 1))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _counted(key, shape)[..., None]


def _random_bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    assert width == 32, "floats alone are drawn"
    return _counted(_mixed(key + jnp.uint32(1)), shape)


_QUICK = define_prng_impl(
    key_shape=(1,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="quick", tag="quick"
)


def quick_key(seed: int) -> jax.Array:
    """A key of its own for each seed, as jax.random.key(seed) gives one."""
    return jax.random.key(seed, impl=_QUICK)
