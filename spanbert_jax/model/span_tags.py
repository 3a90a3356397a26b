"""Spans in a row, as one number a position: what the extensions that know of spans read.

Invariant: a row's spans are flat, and position t lies in the span that begins at `starts(tags)[t]`. A tag is 0 outside
of every span, 2 kind + 1 where a span of that kind (from 1) begins, and 2 kind inside of it.
"""

import jax
import jax.numpy as jnp


def kinds(tags: jax.Array) -> jax.Array:
    """The kind of the span at each position, 0 outside; the shape and dtype of `tags`."""
    return tags >> 1


def begins(tags: jax.Array) -> jax.Array:
    """bool, the shape of `tags` [batch, length]: whether a span begins there."""
    return (tags & 1) == 1


def ends(tags: jax.Array) -> jax.Array:
    """bool, the shape of `tags` [batch, length]: whether a span ends there."""
    following = jnp.pad(tags[:, 1:], [(0, 0), (0, 1)])
    return (tags > 0) & ((following == 0) | begins(following))


def starts(tags: jax.Array) -> jax.Array:
    """int32 [batch, length]: the position where the span at each position begins; -1 outside of spans."""
    position = jnp.arange(tags.shape[1], dtype=jnp.int32)
    latest = jax.lax.cummax(jnp.where(begins(tags), position, -1), axis=1)
    return jnp.where(tags > 0, latest, -1)
