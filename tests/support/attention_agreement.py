"""Random inputs, the comparison with the XLA kernel, and a small model, for the tests of the attention kernels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.model.attention import attention
from spanbert_jax.model.dropout import ATTENTION_PROBABILITIES, Dropout, site_seeds
from spanbert_jax.model.kernels.attention_banded import banded_attention
from spanbert_jax.model.kernels.attention_dense import dense_attention
from spanbert_jax.model.kernels.interpreter import is_interpreted
from spanbert_jax.model.pretraining_heads import init_params, pretraining_model

FORMS = {"dense": dense_attention, "banded": banded_attention}  # of "xla"
BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def seeds_of(rows: int) -> jax.Array:
    return site_seeds(Dropout(jnp.uint32(5), jnp.arange(rows)), 1, ATTENTION_PROBABILITIES)


def random_qkv(
    lengths: tuple[int, ...], shape: tuple[int, int, int], dtype: jnp.dtype, seed: int = 0
) -> tuple[jax.Array, jax.Array]:
    """qkv [batch, length, 3, heads, head_dim], and cotangents of the result [batch, length, heads, head_dim], 0 at
    padding. shape: (length, heads, head_dim)."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(len(lengths), *shape)) for _ in range(4)]
    arrays[3] *= (np.arange(shape[0]) < np.array(lengths)[:, None])[:, :, None, None]
    return jnp.asarray(np.stack(arrays[:3], axis=2), dtype), jnp.asarray(arrays[3], dtype)


def with_logits_near_3000(qkv: jax.Array) -> jax.Array:
    """`qkv` with SpanBERT-large's magnitudes, where every second key is nearly its neighbour and competes with it."""
    return with_logits_near(3000, qkv)


def with_logits_near(largest: float, qkv: jax.Array) -> jax.Array:
    """`qkv` whose logits reach about `largest`, positive or negative; the keys as in `with_logits_near_3000`."""
    query, key, value = (qkv[:, :, part] for part in range(3))
    logits = np.abs(np.einsum("bqhd,bkhd->bhqk", *np.float64([query, key]))).max() / np.sqrt(qkv.shape[-1])
    query = query * jnp.asarray(largest / logits, qkv.dtype)
    key = key.at[:, 1::2].set(key[:, ::2] * jnp.asarray(0.9961, qkv.dtype))
    return jnp.stack([query, key, value], axis=2)


def values_and_gradients(
    kernel: str, qkv: jax.Array, cotangent: jax.Array, lengths: tuple[int, ...], rate: float = 0.0, window: int = 0
) -> tuple[np.ndarray, ...]:
    """(result, gradients of queries, of keys, of values), float64 [batch, length, heads, head_dim] each. kernel: that
    of `attention`, or one of FORMS."""
    arrays = _run(kernel, rate, window, is_interpreted(), qkv, cotangent, jnp.array(lengths))
    result, gradient = (np.float64(x) for x in arrays)
    return result, *np.moveaxis(gradient, 2, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    kernel: str,
    rate: float,
    window: int,
    interpreted: bool,  # a part of the key of what is compiled
    qkv: jax.Array,
    cotangent: jax.Array,
    lengths: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    seeds = seeds_of(len(qkv))

    def call(qkv: jax.Array) -> jax.Array:
        if kernel not in FORMS:
            return attention(qkv, lengths, seeds, rate, kernel, window)
        return FORMS[kernel](*jnp.moveaxis(qkv, 2, 0), lengths, seeds if rate else None, rate, window)

    result, vjp = jax.vjp(call, qkv)
    assert result.dtype == qkv.dtype
    return result, *vjp(cotangent)


def assert_agrees(
    kernel: str,
    lengths: tuple[int, ...],
    shape: tuple[int, int, int],
    dtype: jnp.dtype,
    rate: float = 0.0,
    window: int = 0,
) -> None:
    """At valid positions the values, and everywhere the gradients, are those of the dense form; nothing is NaN or
    infinite."""
    qkv, cotangent = random_qkv(lengths, shape, dtype)
    valid = np.arange(shape[0]) < np.array(lengths)[:, None]
    arguments = lengths, rate, window
    ours, expected = (values_and_gradients(name, qkv, cotangent, *arguments) for name in (kernel, "dense"))
    tolerance = 1e-5 if dtype == F32 else 2e-2
    np.testing.assert_allclose(ours[0][valid], expected[0][valid], rtol=0, atol=tolerance)
    for x, y in zip(ours[1:], expected[1:], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)
        assert not np.any(x[~valid])  # no valid position depends on a padded one
    assert np.abs(expected[2]).max() > 0.1
    ones = jnp.ones_like(cotangent)  # not 0 at padding
    assert all(np.isfinite(x).all() for x in values_and_gradients(kernel, qkv, ones, *arguments))


def small_model(kernel: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """A float32 model with `kernel`, even one that `choose_attention` would refuse here, and random parameters."""
    config = Config(model=ModelConfig(layers=2, embed=48, heads=3, mlp=64, max_length=64, **fields))
    model = pretraining_model(dataclasses.replace(config, compute=ComputeConfig(dtype="float32")), 131, "cpu")
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.2, x.shape)), shapes)
    return model.clone(compute=dataclasses.replace(model.compute, attention=kernel)), params
