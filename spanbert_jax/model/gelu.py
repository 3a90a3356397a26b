"""GELU, gated or not, and the matrix product that follows it in a layer.

Invariant: with every kernel GELU is the exact one, not the tanh approximation, and computed in float32 (code:
models/pair_bert.py:25-30). The backward pass keeps only the input of GELU and computes the output again.

"xla" runs everywhere and is the reference. "triton" (NVIDIA GPUs) computes the distribution function
to within 1e-7, in fewer instructions than XLA's erf.
"""

import functools
import math

import jax
import jax.numpy as jnp

from spanbert_jax.model.kernels.gelu_triton import triton_gelu, triton_gelu_gradients


def gelu(x: jax.Array) -> jax.Array:
    """GELU elementwise, in the dtype of `x`; only `x` is kept for the backward pass."""
    return jax.checkpoint(_gelu, prevent_cse=False)(x)


def _gelu(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * _share(wide)).astype(x.dtype)


def _share(wide: jax.Array) -> jax.Array:
    """The normal distribution function by erf, as in PyTorch; jax.nn.gelu's erfc takes longer."""
    return 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))


def _slope(wide: jax.Array, share: jax.Array) -> jax.Array:
    """The derivative of GELU at `wide`, whose `_share` is `share`."""
    return share + wide * jnp.exp(-0.5 * jnp.square(wide)) * (1 / math.sqrt(2 * math.pi))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def gelu_product(x: jax.Array, bias: jax.Array, weights: jax.Array, kernel: str) -> jax.Array:
    """gelu(x + bias) weights: [rows, embed] in the dtype of `x`.

    x: [rows, mlp]. bias: float32 [mlp]. weights: [mlp, embed] of the dtype of `x`. kernel: a result of
    `choice.choose_pointwise`.
    """
    return _forward(x, bias, weights, kernel)[0]


def _forward(x: jax.Array, bias: jax.Array, weights: jax.Array, kernel: str) -> tuple[jax.Array, tuple]:
    activated = triton_gelu(x, bias) if kernel == "triton" else _gelu((x + bias.astype(jnp.float32)).astype(x.dtype))
    return activated @ weights, (x, bias, weights)


def _backward(kernel: str, saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Without the barrier XLA keeps the forward pass's activations of unrolled layers.
    x, bias, weights = jax.lax.optimization_barrier(saved)
    d_activated = cotangent @ weights.T
    if kernel == "triton":
        activated, d_x, d_bias = triton_gelu_gradients(x, bias, d_activated)
    else:
        wide = (x + bias.astype(jnp.float32)).astype(x.dtype).astype(jnp.float32)
        share = _share(wide)
        activated = (wide * share).astype(x.dtype)
        d_x = (d_activated.astype(jnp.float32) * _slope(wide, share)).astype(x.dtype)
        d_bias = jnp.sum(d_x.astype(jnp.float32), axis=0)
    return d_x, d_bias, activated.T @ cotangent


gelu_product.defvjp(_forward, _backward)


@jax.custom_vjp
def geglu_product(x: jax.Array, bias: jax.Array, weights: jax.Array) -> jax.Array:
    """(gelu(x_0 + bias_0) * (x_1 + bias_1)) weights: [rows, embed] in the dtype of `x`.

    x: [rows, 2, mlp]. bias: float32 [2, mlp]. weights: [mlp, embed] of the dtype of `x`.
    """
    return _gated_forward(x, bias, weights)[0]


def _gated_forward(x: jax.Array, bias: jax.Array, weights: jax.Array) -> tuple[jax.Array, tuple]:
    gate, value = _gate_and_value(x, bias)
    return (gate * _share(gate) * value).astype(x.dtype) @ weights, (x, bias, weights)


def _gate_and_value(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two halves of x + bias, rounded to the dtype of `x`: float32 [rows, mlp] each."""
    biased = (x + bias).astype(x.dtype).astype(jnp.float32)
    return biased[:, 0], biased[:, 1]


def _gated_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Without the barrier XLA keeps the forward pass's activations of unrolled layers.
    x, bias, weights = jax.lax.optimization_barrier(saved)
    d_product = (cotangent @ weights.T).astype(jnp.float32)
    gate, value = _gate_and_value(x, bias)
    share = _share(gate)
    activated = gate * share
    d_gate = d_product * value * _slope(gate, share)
    d_x = jnp.stack([d_gate, d_product * activated], axis=1).astype(x.dtype)
    return d_x, jnp.sum(d_x.astype(jnp.float32), axis=0), (activated * value).astype(x.dtype).T @ cotangent


geglu_product.defvjp(_gated_forward, _gated_backward)
