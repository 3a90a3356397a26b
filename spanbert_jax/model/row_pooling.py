"""One vector of a row, from the hidden states of its pieces, without any parameter.

Invariant: the vector depends on the row's valid positions alone, [CLS] and [SEP] among them.
"""

import jax
import jax.numpy as jnp

ROW_POOLINGS = ("mean", "cls", "max")


def pool_rows(hidden: jax.Array, lengths: jax.Array, pooling: str) -> jax.Array:
    """The vectors of rows, in the dtype of `hidden`: [batch, length, embed] -> [batch, embed].

    lengths: int32 [batch], the number of valid positions of each row. pooling: "mean" of the valid positions' states,
    summed in float32; "cls", the first state; "max", the largest value of each feature over the valid positions. Raises
    ValueError on another name.
    """
    if pooling not in ROW_POOLINGS:
        raise ValueError(f"pooling {pooling!r}; known are {', '.join(ROW_POOLINGS)}")
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        # An empty row, which only fills a batch, keeps its first position, so that its vector is finite.
        valid = jnp.arange(hidden.shape[1]) < jnp.maximum(lengths, 1)[:, None]
        return jnp.max(jnp.where(valid[..., None], hidden, -jnp.inf), axis=1)
    valid = jnp.arange(hidden.shape[1]) < lengths[:, None]
    total = jnp.einsum("ble,bl->be", hidden, valid.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return (total / jnp.maximum(lengths, 1)[:, None]).astype(hidden.dtype)


def unit(vectors: jax.Array) -> jax.Array:
    """The vectors [..., embed] scaled to length 1. A shorter one than 1e-12, the bound of torch's normalize, is not."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
