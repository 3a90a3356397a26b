"""Scales of each head at each position, which depend on the input there.

Invariant: with the kernel and the bias 0, where they begin, every scale is exactly 1. With scales of queries, keys,
values and results, the scaled attention is the diagonal of dynamically composable attention (Xiao et al. 2024,
arXiv:2405.08553) on both sides of the softmax: the score of query i and key j is multiplied by two scales before the
softmax, and the probability by two after it. No kernel of attention has to know, because
scale_i scale_j <query_i, key_j> = <scale_i query_i, scale_j key_j>. Scales of results alone are those of Bondarenko et
al. 2023 (arXiv:2306.12929) and of Qwen's gated attention (arXiv:2505.06708), here with a start at the identity.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ModelConfig
from spanbert_jax.model.axes import ParameterAxes

AXES: ParameterAxes = (
    (r"encoder/attention/heads/scales/kernel", (None, "embed", None, "heads")),
    (r"encoder/attention/heads/scales/bias", (None, None, "heads")),
)
MATRICES = ((r"encoder/attention/heads/scales/kernel", "-i-o"),)
ZERO = r"encoder/attention/heads/scales/(kernel|bias)"


def parts(model: ModelConfig) -> int:
    """The number of scales of a head at a position."""
    return {"none": 0, "output": 1, "full": 4}[model.head_scales]


class HeadScales(nn.Module):
    """2 sigmoid(x kernel + bias), from which the scales of queries, keys, values and results follow."""

    model: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [batch, length, parts, heads], from the layer's input `x` [batch, length, embed]. The last part are
        the scales of the results; the parts before it, if any, those of queries, keys and values."""
        shape = (parts(self.model), self.model.heads)
        kernel = self.param("kernel", nn.initializers.zeros, (self.model.embed, *shape))
        bias = self.param("bias", nn.initializers.zeros, shape)
        logits = jnp.einsum("ble,eph->blph", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return 2 * nn.sigmoid(logits + bias)


def scaled(x: jax.Array, scales: jax.Array) -> jax.Array:
    """`x` [..., head_dim] times float32 `scales` [...], in the dtype of `x`."""
    return (x * scales[..., None]).astype(x.dtype)


def flops(model: ModelConfig, length: int) -> float:
    """FLOPs of one row's forward pass through all layers: matrix products alone."""
    return float(model.layers * length * 2 * model.embed * parts(model) * model.heads)
