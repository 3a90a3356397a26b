"""The decoder that all pre-training heads share: scores of the whole vocabulary, and their cross-entropy.

Invariant: a score is a product with a word embedding plus a bias of the head. An id that only pads the vocabulary
scores -1e9, so it has no probability and its embedding gets no gradient.
"""

import functools

import jax
import jax.numpy as jnp

from spanbert_jax.model.axes import constrain

_NEVER = -1e9  # score of the ids that only pad the vocabulary


def scores(hidden: jax.Array, table: jax.Array, bias: jax.Array, vocab_size: int) -> jax.Array:
    """The scores, float32 [batch, heads, slots, vocab].

    hidden: [batch, heads, slots, embed]. table: the word embeddings [vocab, embed]; ids from `vocab_size` on only pad
    the table. bias: float32 [heads, vocab].
    """
    return _biased(_product(hidden, table), bias, vocab_size)


def _product(hidden: jax.Array, table: jax.Array) -> jax.Array:
    product = jnp.einsum("re,ve->rv", _flat(hidden), table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    product = constrain(product, "batch", "vocab").reshape(*hidden.shape[:-1], -1)
    # The barrier keeps the bias out of the matrix product. Without it XLA uses cuBLAS's fused bias, for which it first
    # broadcasts the bias to an array as large as the scores.
    return jax.lax.optimization_barrier(product)


def _biased(product: jax.Array, bias: jax.Array, vocab_size: int) -> jax.Array:
    return jnp.where(jnp.arange(product.shape[-1]) < vocab_size, product + bias[:, None], _NEVER)


def _flat(x: jax.Array) -> jax.Array:
    """[batch, heads, slots, ...] -> [batch * heads * slots, ...]. The products of this module, the largest of a step,
    take matrices, because XLA transposes operands of more than two axes."""
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of `scores` with `labels` int32 [batch, slots], and 1 where the label scores highest: float32
    [batch, heads, slots] each. The second has no gradient.

    The backward pass turns the scores into their gradient in one pass and in place. The operands of its products have
    the dtype of `hidden`; those of autodiff would be float32.
    """
    return _forward(hidden, table, bias, labels, vocab_size)[0]


def _forward(hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, vocab_size: int) -> tuple:
    product = _product(hidden, table)
    scored = _biased(product, bias, vocab_size)
    normaliser = jax.nn.logsumexp(scored, axis=-1)
    chosen = jnp.take_along_axis(scored, jnp.broadcast_to(labels[:, None], normaliser.shape)[..., None], axis=-1)[
        ..., 0
    ]
    right = (chosen >= jnp.max(scored, axis=-1)).astype(jnp.float32)
    return (normaliser - chosen, right), (hidden, table, bias, product, normaliser, labels)


def _backward(vocab_size: int, saved: tuple, cotangents: tuple[jax.Array, jax.Array]) -> tuple:
    hidden, table, bias, product, normaliser, labels = saved
    scored, weights = _biased(product, bias, vocab_size), cotangents[0][..., None]
    is_label = jnp.arange(len(table)) == labels[:, None, :, None]
    d_scores = (jnp.exp(scored - normaliser[..., None]) - is_label) * weights
    d_scores = constrain(_flat(d_scores.astype(hidden.dtype)), "batch", "vocab")
    # A matrix product sums over the slots of each head: XLA's sum walks a CPU's memory column by column.
    of_head = jnp.broadcast_to(jnp.eye(len(bias), dtype=hidden.dtype)[:, None], (*hidden.shape[:-1], len(bias)))
    d_bias = jnp.einsum("rh,rv->hv", _flat(of_head), d_scores, preferred_element_type=jnp.float32)
    d_hidden = jnp.einsum("rv,ve->re", d_scores, table.astype(hidden.dtype)).reshape(hidden.shape)
    d_table = jnp.einsum("rv,re->ve", d_scores, _flat(hidden), preferred_element_type=jnp.float32)
    return d_hidden, d_table, d_bias, None


cross_entropy.defvjp(_forward, _backward)
