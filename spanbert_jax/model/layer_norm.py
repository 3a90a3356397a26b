"""LayerNorm, and the operation LayerNorm(x + dropout(y)) that ends both halves of a post-LayerNorm layer.

Invariant: with every kernel the statistics are float32 and those of the sum rounded to the compute dtype. The backward
pass keeps that sum and two numbers a position, and computes the normalised values again.

"xla" runs everywhere and is the reference. "triton" (NVIDIA GPUs) reads or writes each array once.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.model.dropout import Dropout, dropout, site_seeds
from spanbert_jax.model.kernels.layer_norm_triton import triton_add_norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last axis of `x`, in the dtype of `x`, with float32 statistics and the biased variance. scale,
    bias: float32, of the last axis's size."""
    return _forward(x, scale, bias, eps)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> tuple[jax.Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True) + eps)
    return ((wide - mean) * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _backward(eps: float, saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Without the barrier XLA keeps the forward pass's normalised values of unrolled layers.
    x, mean, inverse, scale = jax.lax.optimization_barrier(saved)
    wide = cotangent.astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse
    scaled = wide * scale
    along = jnp.mean(scaled * normalised, axis=-1, keepdims=True)
    d_x = inverse * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normalised * along)
    leading = tuple(range(x.ndim - 1))
    return d_x.astype(x.dtype), jnp.sum(wide * normalised, axis=leading), jnp.sum(wide, axis=leading)


layer_norm.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters; without `bias` there is none, and nothing is added."""

    eps: float
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, *_parameters(self, x.shape[-1], self.bias), self.eps)


class AddNorm(nn.Module):
    """LayerNorm(x + dropout(y)) of [batch, length, embed], with LayerNorm's parameters. kernel: a result of
    `choice.choose_pointwise`."""

    eps: float
    rate: float
    kernel: str
    bias: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, y: jax.Array, state: Dropout | None, layer: jax.Array | int, site: int
    ) -> jax.Array:
        scale, bias = _parameters(self, x.shape[-1], self.bias)
        if self.kernel != "triton":
            return layer_norm(x + dropout(y, self.rate, state, layer, site), scale, bias, self.eps)
        if state is None:
            return triton_add_norm(x, y, scale, bias, jnp.zeros((2, len(x)), jnp.uint32), 0.0, self.eps)
        return triton_add_norm(x, y, scale, bias, site_seeds(state, layer, site), self.rate, self.eps)


def _parameters(module: nn.Module, width: int, bias: bool) -> tuple[jax.Array, jax.Array]:
    scale = module.param("scale", nn.initializers.ones, (width,))
    return scale, module.param("bias", nn.initializers.zeros, (width,)) if bias else jnp.zeros((width,))
