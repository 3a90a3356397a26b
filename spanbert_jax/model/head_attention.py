"""Attention as a layer calls it: a kernel, and the extensions of heads that the configuration has.

Invariant: without extensions this is `attention`, and adds no parameter.
"""

import flax.linen as nn
import jax

from spanbert_jax.config import ComputeConfig, ModelConfig
from spanbert_jax.model.attention import attention
from spanbert_jax.model.attention_composition import AttentionComposition
from spanbert_jax.model.head_scales import HeadScales, scaled
from spanbert_jax.model.kernels.attention_dense import Seeds


class HeadAttention(nn.Module):
    """Attention of all heads. window: as for `attention`."""

    model: ModelConfig
    compute: ComputeConfig
    window: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, qkv: jax.Array, lengths: jax.Array, seeds: Seeds) -> jax.Array:
        """[batch, length, heads, head_dim]. x: the input that `qkv` [batch, length, 3, heads, head_dim] was made from,
        [batch, length, embed]. lengths, seeds: as for `attention`."""
        model = self.model
        if model.head_scales == "none":
            return self._attend(x, qkv, lengths, seeds)
        scales = HeadScales(model, name="scales")(x)
        if model.head_scales == "full":
            qkv = scaled(qkv, scales[:, :, :3])
        return scaled(self._attend(x, qkv, lengths, seeds), scales[:, :, -1])

    def _attend(self, x: jax.Array, qkv: jax.Array, lengths: jax.Array, seeds: Seeds) -> jax.Array:
        model = self.model
        if model.attention_composition:
            return AttentionComposition(model, self.window, name="composition")(x, qkv, lengths, seeds)
        return attention(qkv, lengths, seeds, model.attention_dropout, self.compute.attention, self.window)
