"""Vectors of given spans, from the hidden states of a row, without any parameter.

Invariant: a span's vector depends on the states of its own pieces alone, with "boundary" on those of the two pieces
just outside, which are what the span-boundary objective was trained on, and with "attention" on [CLS]'s too.
"""

import jax
import jax.numpy as jnp

from spanbert_jax.model.kernels.attention_dense import MASKED

POOLINGS = ("mean", "ends", "boundary", "attention", "all")


def pool_spans(hidden: jax.Array, first: jax.Array, last: jax.Array, pooling: str) -> jax.Array:
    """The vectors of spans, in the dtype of `hidden`: [batch, spans, parts * embed].

    hidden: [batch, length, embed], of rows [CLS] ... [SEP]. first, last: int32 [batch, spans], the positions of a
    span's first and last piece, from 1 and up to the piece before [SEP]; -1 for no span, whose vector is 0.

    pooling: "mean" of the states (1 part); "ends", the first and the last state (2); "boundary", the states before the
    first and after the last piece (2); "attention", the mean weighted by softmax(state . state of [CLS] /
    sqrt(embed)) (1); "all", these in this order (6). Raises ValueError on another name.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r}; known are {', '.join(POOLINGS)}")
    if pooling == "all":
        return jnp.concatenate([pool_spans(hidden, first, last, name) for name in POOLINGS[:-1]], axis=-1)
    is_span = (first >= 0)[..., None]
    if pooling in ("ends", "boundary"):
        outside = 1 if pooling == "boundary" else 0
        at = [jnp.maximum(places, 0)[..., None] for places in (first - outside, last + outside)]
        parts = [jnp.take_along_axis(hidden, places, axis=1) for places in at]
        return jnp.where(is_span, jnp.concatenate(parts, axis=-1), 0)
    position = jnp.arange(hidden.shape[1])
    inside = (position >= first[..., None]) & (position <= last[..., None])  # [batch, spans, length]
    scores = jnp.zeros(hidden.shape[:2], jnp.float32)
    if pooling == "attention":
        scores = jnp.einsum("ble,be->bl", hidden, hidden[:, 0], preferred_element_type=jnp.float32)
        scores *= hidden.shape[-1] ** -0.5
    shares = jax.nn.softmax(jnp.where(inside, scores[:, None], MASKED)).astype(hidden.dtype)
    return jnp.where(is_span, jnp.einsum("bsl,ble->bse", shares, hidden), 0)
