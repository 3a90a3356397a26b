"""BERT's transformer layer: self-attention and a feed-forward network, each followed by a sum and a LayerNorm.

Invariant: with equal weights and no dropout, the outputs are those of transformers' BertLayer, whichever kernels
compute them. Facts: Devlin et al. 2018; SpanBERT's models/pair_bert.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ComputeConfig, ModelConfig
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.axes import constrain
from spanbert_jax.model.dropout import site_seeds
from spanbert_jax.model.gelu import gelu_product
from spanbert_jax.model.head_attention import HeadAttention
from spanbert_jax.model.layer_family import Context, Family
from spanbert_jax.model.layer_norm import AddNorm, LayerNorm
from spanbert_jax.model.linear import Dense, LinearParams, initializer
from spanbert_jax.model.local_init import queries_keys_values


class SelfAttention(nn.Module):
    """Multi-head attention; one matrix product makes queries, keys and values."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, layer: jax.Array | int) -> jax.Array:
        model, state = self.model, context.dropout
        features = (3, model.heads, model.embed // model.heads)
        project = Dense(features, queries_keys_values(model), self.dtype, name="qkv")
        qkv = project(x)  # [batch, length, 3, heads, head_dim]
        qkv = constrain(qkv, "batch", "length", "qkv", "heads", "head_dim")
        seeds = None if state is None else site_seeds(state, layer, sites.ATTENTION_PROBABILITIES)
        mixed = HeadAttention(model, self.compute, name="heads")(x, qkv, context.lengths, seeds)
        output = Dense((model.embed,), initializer(model), self.dtype, axes=2, name="output")
        out = output(mixed)  # [batch, length, embed]
        norm = AddNorm(model.layer_norm_eps, model.dropout, self.compute.pointwise, name="norm")
        return norm(x, out, state, layer, sites.ATTENTION_OUTPUT)


class Mlp(nn.Module):
    """The feed-forward network."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, layer: jax.Array | int) -> jax.Array:
        model = self.model
        up, up_bias = LinearParams((model.embed,), (model.mlp,), initializer(model), name="up")()
        down, down_bias = LinearParams((model.mlp,), (model.embed,), initializer(model), name="down")()
        hidden = x.reshape(-1, model.embed) @ up.astype(self.dtype)  # [batch * length, mlp]
        hidden = constrain(hidden, "batch", "mlp")
        out = gelu_product(hidden, up_bias, down.astype(self.dtype), self.compute.pointwise)
        out = (out + down_bias.astype(self.dtype)).reshape(x.shape)
        norm = AddNorm(model.layer_norm_eps, model.dropout, self.compute.pointwise, name="norm")
        return norm(x, out, context.dropout, layer, sites.MLP_OUTPUT)


class BertLayer(nn.Module):
    """One transformer layer."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.attention = SelfAttention(self.model, self.compute, self.dtype)
        self.mlp = Mlp(self.model, self.compute, self.dtype)

    def __call__(self, x: jax.Array, context: Context, layer: jax.Array | int) -> jax.Array:
        x = self.mlp(self.attention(x, context, layer), context, layer)
        return constrain(x, "batch", "length", "embed")


def _flops(model: ModelConfig, length: int) -> float:
    linear = length * (8 * model.embed**2 + 4 * model.embed * model.mlp)  # qkv 6, output 2; up 2, down 2
    attention = 4 * length**2 * model.embed  # the scores, and the weighted sum of the values
    return float(model.layers * (linear + attention))


FAMILY = Family(
    layers=lambda model: (BertLayer,),
    tables=lambda model, length: None,
    norm=lambda model: LayerNorm(model.layer_norm_eps),
    final_norm=lambda model: False,
    position_table=True,
    token_types=True,
    transforms=False,
    axes=(
        (r"encoder/attention/qkv/kernel", (None, "embed", None, "heads", None)),
        (r"encoder/attention/qkv/bias", (None, None, "heads", None)),
        (r"encoder/attention/output/kernel", (None, "heads", None, "embed")),
        (r"encoder/attention/output/bias", (None, None)),
        (r"encoder/(attention|mlp)/norm/(scale|bias)", (None, None)),
        (r"encoder/mlp/up/kernel", (None, "embed", "mlp")),
        (r"encoder/mlp/up/bias", (None, "mlp")),
        (r"encoder/mlp/down/kernel", (None, "mlp", "embed")),
        (r"encoder/mlp/down/bias", (None, None)),
    ),
    matrices=(
        (r"encoder/attention/qkv/kernel", "-i-oo"),
        (r"encoder/attention/output/kernel", "-iio"),
        (r"encoder/mlp/up/kernel", "-io"),
        (r"encoder/mlp/down/kernel", "-io"),
    ),
    flops=_flops,
)
