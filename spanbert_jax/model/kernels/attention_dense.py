"""Self-attention by plain array operations, with every query's score of every key: the reference for all other forms.

Invariant: logits and softmax are float32, and the backward pass computes the [length, length] arrays again, from each
query's normaliser and result.
"""

import functools

import jax
import jax.numpy as jnp

from spanbert_jax.model.dropout import drop

MASKED = -1e30  # finite, so that a query without a key to see adds up all of its values instead of giving NaN

Seeds = jax.Array | None  # uint32 [2, batch] of `dropout.site_seeds`; None for no dropout


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def dense_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float, window: int
) -> jax.Array:
    """`attention` with "xla", from query, key and value [batch, length, heads, head_dim]."""
    return _forward(query, key, value, lengths, seeds, rate, window)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, seeds: Seeds, rate: float, window: int
) -> tuple[jax.Array, tuple]:
    """The result, and the arrays that the backward pass needs. The backward pass computes the [length, length] arrays
    again."""
    logits = _logits(query, key, lengths, window)
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [batch, heads, query, 1]
    probabilities = jnp.exp(logits - normaliser).astype(query.dtype)  # [batch, heads, query, key]
    kept = probabilities if seeds is None else drop(probabilities, seeds, rate)
    result = jnp.einsum("bhqk,bkhd->bqhd", kept, value)
    return result, (query, key, value, lengths, seeds, normaliser, result)


def _logits(query: jax.Array, key: jax.Array, lengths: jax.Array, window: int) -> jax.Array:
    """float32 [batch, heads, query, key], -1e30 where the key is padding or outside of the query's window."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    keys = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3)
    seen = keys < lengths[:, None, None, None]
    if window:
        seen &= jnp.abs(keys - jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)) <= window
    return jnp.where(seen, logits * query.shape[-1] ** -0.5, MASKED)


def _backward(rate: float, window: int, saved: tuple, cotangent: jax.Array) -> tuple:
    query, key, value, lengths, seeds, normaliser, result = saved
    # Without the barrier XLA recognises the recomputation and keeps the forward pass's logits and masks of unrolled
    # layers.
    query, key, seeds = jax.lax.optimization_barrier((query, key, seeds))
    probabilities = jnp.exp(_logits(query, key, lengths, window) - normaliser).astype(query.dtype)
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


dense_attention.defvjp(_forward, _backward)
