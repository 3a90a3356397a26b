"""A transformer layer with rotary positions, and by configuration ModernBERT's.

Invariant: with equal weights and no dropout, and with the fields of configs/modern_base.py, the outputs are those of
transformers' ModernBertEncoderLayer, whichever kernels compute them. With the fields' defaults the layer is BERT's with
rotary positions. Facts: Warner et al. 2024 (arXiv:2412.13663); transformers 5.23, modeling_modernbert.py:93-330.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ComputeConfig, ModelConfig
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.axes import constrain
from spanbert_jax.model.dropout import dropout, site_seeds
from spanbert_jax.model.gelu import geglu_product, gelu_product
from spanbert_jax.model.head_attention import HeadAttention
from spanbert_jax.model.layer_family import Context, Family
from spanbert_jax.model.layer_norm import AddNorm, LayerNorm
from spanbert_jax.model.linear import Dense, LinearParams, initializer


class Rotation(NamedTuple):
    """Factors for packed queries, keys and values: float32 [length, 3, 1, head_dim]. Values are not turned, so their
    cosines are 1 and their sines 0. The sines of a head's first half have a minus."""

    cos: jax.Array
    sin: jax.Array


class Rotations(NamedTuple):
    """The tables of the layers that see all keys, and of the windowed ones."""

    full: Rotation
    local: Rotation


def rotations(model: ModelConfig, length: int) -> Rotations:
    """The tables for positions 0 .. length - 1. Angles are float32: in bfloat16 they would mean nothing from position
    256 on."""

    def table(theta: float) -> Rotation:
        half = model.embed // model.heads // 2
        frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle = jnp.tile(jnp.arange(length, dtype=jnp.float32)[:, None] * frequency, 2)  # [length, head_dim]
        cos, sin, one = jnp.cos(angle), jnp.sin(angle).at[:, :half].multiply(-1), jnp.ones_like(angle)
        return Rotation(*(jnp.stack(parts, 1)[:, :, None] for parts in ((cos, cos, one), (sin, sin, 0 * one))))

    return Rotations(table(model.rope_theta), table(model.local_rope_theta))


@jax.custom_vjp
def rotate(qkv: jax.Array, rotation: Rotation) -> jax.Array:
    """Queries and keys turned by their positions: `qkv` [batch, length, 3, heads, head_dim] in its dtype, computed in
    float32. Number i of a head's first half and number i of its second half are the coordinates of a point in a plane.
    """
    swapped = jax.lax.platform_dependent(qkv, tpu=swapped_by_product, default=swapped_by_parts)
    return (qkv.astype(jnp.float32) * rotation.cos + swapped * rotation.sin).astype(qkv.dtype)


def swapped_by_parts(qkv: jax.Array) -> jax.Array:
    """The second half of each head before the first one, float32."""
    first, second = jnp.split(qkv.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([second, first], axis=-1)


def swapped_by_product(qkv: jax.Array) -> jax.Array:
    """The same by a product with a permutation, which is exact. XLA for TPUs writes the parts to memory, in float32,
    and fuses what follows a product. A step of modern base moves 2.65 instead of 3.82 GB a row of 512 pieces, the
    gradient's own turn included (tools/compile_tpu.py, 16 rows on a chip of a v5e-256)."""
    size = qkv.shape[-1]
    swap = jnp.roll(jnp.eye(size, dtype=qkv.dtype), size // 2, axis=0)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("...d,de->...e", qkv, swap, precision=exact, preferred_element_type=jnp.float32)


def _rotate_back(rotation: Rotation, gradient: jax.Array) -> tuple[jax.Array, None]:
    """Gradients are turned the other way."""
    return rotate(gradient, Rotation(rotation.cos, -rotation.sin)), None


rotate.defvjp(lambda qkv, rotation: (rotate(qkv, rotation), rotation), _rotate_back)


class SelfAttention(nn.Module):
    """Multi-head attention with rotary positions; one matrix product makes queries, keys and values."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype
    windowed: bool

    def setup(self) -> None:
        model = self.model
        features = (3, model.heads, model.embed // model.heads)
        self.qkv = Dense(features, initializer(model), self.dtype, bias=model.attention_bias)
        out = initializer(model, output=True)
        self.heads = HeadAttention(model, self.compute, model.window if self.windowed else 0)
        self.output = Dense((model.embed,), out, self.dtype, axes=2, bias=model.attention_bias)
        self.norm = _norm(model, self.compute)

    def __call__(self, x: jax.Array, context: Context, layer: jax.Array | int) -> jax.Array:
        """The next `x` [batch, length, embed]. Layer 0 attends to the embeddings, which have their own norm."""
        model, state = self.model, context.dropout
        normed = jnp.where(jnp.equal(layer, 0), x, self.norm(x)) if model.pre_norm else x
        qkv = constrain(self.qkv(normed), "batch", "length", "qkv", "heads", "head_dim")
        qkv = rotate(qkv, context.tables.local if self.windowed else context.tables.full)
        seeds = None if state is None else site_seeds(state, layer, sites.ATTENTION_PROBABILITIES)
        mixed = self.heads(normed, qkv, context.lengths, seeds)
        out = self.output(mixed)  # [batch, length, embed]
        if model.pre_norm:
            return x + dropout(out, model.dropout, state, layer, sites.ATTENTION_OUTPUT)
        return self.norm(x, out, state, layer, sites.ATTENTION_OUTPUT)


class Mlp(nn.Module):
    """The feed-forward network, gated or not."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, layer: jax.Array | int) -> jax.Array:
        model, state = self.model, context.dropout
        # The two matrices of a gated network have an axis of their own, so a mesh divides each of them over "mlp".
        parts = 2 if model.gated_mlp else 1
        wide, bias = (parts, model.mlp), model.mlp_bias
        up, up_bias = LinearParams((model.embed,), wide, initializer(model), bias, name="up")()
        out_init = initializer(model, output=True)
        down, down_bias = LinearParams((model.mlp,), (model.embed,), out_init, bias, name="down")()
        norm = _norm(model, self.compute, name="norm")
        normed = norm(x) if model.pre_norm else x
        rows, down = normed.reshape(-1, model.embed), down.astype(self.dtype)
        hidden = jnp.tensordot(rows, up.astype(self.dtype), 1)  # [batch * length, parts, mlp]
        if model.gated_mlp:
            out = geglu_product(constrain(hidden, "batch", "gate", "mlp"), up_bias, down)
        else:
            out = gelu_product(constrain(hidden[:, 0], "batch", "mlp"), up_bias[0], down, self.compute.pointwise)
        out = (out + down_bias.astype(self.dtype)).reshape(x.shape)
        if model.pre_norm:
            return x + dropout(out, model.dropout, state, layer, sites.MLP_OUTPUT)
        return norm(x, out, state, layer, sites.MLP_OUTPUT)


class ModernLayer(nn.Module):
    """One transformer layer."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype
    windowed: bool

    def setup(self) -> None:
        self.attention = SelfAttention(self.model, self.compute, self.dtype, self.windowed)
        self.mlp = Mlp(self.model, self.compute, self.dtype)

    def __call__(self, x: jax.Array, context: Context, layer: jax.Array | int) -> jax.Array:
        x = self.mlp(self.attention(x, context, layer), context, layer)
        return constrain(x, "batch", "length", "embed")


def _norm(model: ModelConfig, compute: ComputeConfig, name: str | None = None) -> nn.Module:
    if model.pre_norm:
        return LayerNorm(model.layer_norm_eps, model.norm_bias, name=name)
    return AddNorm(model.layer_norm_eps, model.dropout, compute.pointwise, model.norm_bias, name=name)


def _layers(model: ModelConfig) -> tuple:
    if not model.window:
        return (functools.partial(ModernLayer, windowed=False),)
    every = min(model.full_every, model.layers)
    return tuple(functools.partial(ModernLayer, windowed=place > 0) for place in range(every))


def _flops(model: ModelConfig, length: int) -> float:
    parts = 2 if model.gated_mlp else 1
    linear = length * (8 * model.embed**2 + 2 * (parts + 1) * model.embed * model.mlp)  # qkv 6, output 2; up, down
    windowed = model.layers - -(-model.layers // model.full_every) if model.window else 0
    width = min(model.window, length - 1)
    pairs = length * (2 * width + 1) - width * (width + 1)  # of a query and a key that it sees in a windowed layer
    seen = (model.layers - windowed) * length**2 + windowed * pairs
    return float(model.layers * linear + 4 * model.embed * seen)  # the scores, and the weighted sum of the values


FAMILY = Family(
    layers=_layers,
    tables=rotations,
    norm=lambda model: LayerNorm(model.layer_norm_eps, model.norm_bias),
    final_norm=lambda model: model.pre_norm,
    position_table=False,
    token_types=False,
    transforms=True,
    axes=(
        (r"encoder/attention/qkv/kernel", (None, "embed", None, "heads", None)),
        (r"encoder/attention/qkv/bias", (None, None, "heads", None)),
        (r"encoder/attention/output/kernel", (None, "heads", None, "embed")),
        (r"encoder/attention/output/bias", (None, None)),
        (r"encoder/(attention|mlp)/norm/(scale|bias)", (None, None)),
        (r"encoder/mlp/up/kernel", (None, "embed", None, "mlp")),
        (r"encoder/mlp/up/bias", (None, None, "mlp")),
        (r"encoder/mlp/down/kernel", (None, "mlp", "embed")),
        (r"encoder/mlp/down/bias", (None, None)),
        (r"final_norm/(scale|bias)", (None,)),
    ),
    matrices=(
        (r"encoder/attention/qkv/kernel", "-i-oo"),
        (r"encoder/attention/output/kernel", "-iio"),
        (r"encoder/mlp/up/kernel", "-i-o"),
        (r"encoder/mlp/down/kernel", "-io"),
    ),
    flops=_flops,
)
