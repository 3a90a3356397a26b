"""Bidirectional self-attention over the valid pieces of each row.

Invariant: whatever the compute dtype, logits and softmax are float32 (SpanBERT-large's logits reach about -3000,
where bfloat16 steps by 16), and a padded key has a probability of exactly 0.
"""

import functools

import jax
import jax.numpy as jnp

from spanbert_jax.model.dropout import drop

_MASKED = -1e30  # finite, so that a row without a valid piece averages all of its values instead of giving NaN

# seeds of the dropout, or None
Seeds = jax.Array | None


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds = None, rate: float = 0.0
) -> jax.Array:
    """softmax(query key^T / sqrt(head_dim)) value, with dropout on the probabilities.

    query, key, value: [batch, length, heads, head_dim] of one dtype, which the result has too. lengths: int32 [batch];
    keys from there on are padding. seeds: `dropout.site_seeds`, or None for no dropout.
    """
    return _xla_attention(query, key, value, lengths, seeds if rate else None, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _xla_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float
) -> jax.Array:
    return _forward(query, key, value, lengths, seeds, rate)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float
) -> tuple[jax.Array, tuple]:
    """The result and what the backward pass needs; of the [length, length] arrays it keeps the probabilities alone."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    valid = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3) < lengths[:, None, None, None]
    logits = jnp.where(valid, logits * query.shape[-1] ** -0.5, _MASKED)
    probabilities = jax.nn.softmax(logits).astype(query.dtype)  # [batch, heads, query, key]
    kept = probabilities if seeds is None else drop(probabilities, seeds, rate)
    result = jnp.einsum("bhqk,bkhd->bqhd", kept, value)
    return result, (query, key, value, seeds, probabilities, result)


def _backward(rate: float, saved: tuple, cotangent: jax.Array) -> tuple:
    query, key, value, seeds, probabilities, result = saved
    kept = probabilities if seeds is None else drop(probabilities, seeds, rate)
    d_value = jnp.einsum("bhqk,bqhd->bkhd", kept, cotangent)
    d_kept = jnp.einsum("bqhd,bkhd->bhqk", cotangent, value, preferred_element_type=jnp.float32)
    d_probabilities = d_kept if seeds is None else drop(d_kept, seeds, rate)
    # The softmax's gradient needs sum_k(d_probabilities * probabilities), which equals sum_d(cotangent * result).
    mean = jnp.sum(cotangent.astype(jnp.float32) * result.astype(jnp.float32), axis=-1)  # [batch, query, heads]
    mean = jnp.swapaxes(mean, 1, 2)[..., None]
    d_logits = probabilities.astype(jnp.float32) * (d_probabilities - mean) * query.shape[-1] ** -0.5
    d_logits = d_logits.astype(query.dtype)
    d_query = jnp.einsum("bhqk,bkhd->bqhd", d_logits, key)
    d_key = jnp.einsum("bhqk,bqhd->bkhd", d_logits, query)
    return d_query, d_key, d_value, None, None


_xla_attention.defvjp(_forward, _backward)
