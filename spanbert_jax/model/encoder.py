"""BERT's encoder: embeddings and post-LayerNorm transformer layers with stacked parameters.

Invariant: `ComputeConfig` changes speed and memory, never values beyond rounding, and padding (positions from a row's
length on) never changes what a valid position becomes. Facts: Devlin et al. 2018; SpanBERT's models/pair_bert.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ComputeConfig, ModelConfig
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.attention import attention
from spanbert_jax.model.axes import constrain, is_divided
from spanbert_jax.model.dropout import Dropout, dropout, site_seeds
from spanbert_jax.model.gelu import gelu_product
from spanbert_jax.model.kernels.choice import choose_attention, choose_pointwise
from spanbert_jax.model.layer_gradients import layer_params
from spanbert_jax.model.layer_norm import AddNorm, LayerNorm


def padded_vocab(vocab_size: int) -> int:
    """`vocab_size` rounded up to a multiple of 128, which matrix units like."""
    return -(-vocab_size // 128) * 128


def table_rows(model: ModelConfig, vocab_size: int) -> int:
    """Rows of the word table and of the vocabulary's biases: the rows that the weights had which a model began with,
    or a row for each piece, padded."""
    return padded_vocab(max(vocab_size, model.vocab_rows))


def compute_dtype(compute: ComputeConfig, platform: str) -> jnp.dtype:
    """The dtype of activations; `platform` is `jax.Device.platform`, such as "cpu", "gpu" or "tpu"."""
    if compute.dtype == "auto":
        return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    return jnp.dtype(compute.dtype)


def resolved(compute: ComputeConfig, model: ModelConfig, platform: str) -> ComputeConfig:
    """`compute` with each "auto" replaced by what it means on `platform`; raises UserError where a kernel that it names
    cannot run there."""
    dtype = compute_dtype(compute, platform)
    kernel = choose_attention(compute.attention, platform, dtype, model.embed // model.heads)
    pointwise = choose_pointwise(compute.pointwise, platform, dtype)
    return dataclasses.replace(compute, dtype=dtype.name, attention=kernel, pointwise=pointwise)


class LinearParams(nn.Module):
    """The float32 parameters of a linear map, N(0, std) and 0."""

    inputs: tuple[int, ...]
    features: tuple[int, ...]
    std: float

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.normal(self.std), (*self.inputs, *self.features))
        return kernel, self.param("bias", nn.initializers.zeros, self.features)


class Dense(nn.Module):
    """A linear map of the last `axes` axes onto `features`: float32 parameters, N(0, std) and 0, computed in `dtype`.

    Leading axes are flattened first: with two of them, XLA transposes whole activations for the kernel's gradient.
    """

    features: tuple[int, ...]
    std: float
    dtype: jnp.dtype
    axes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        leading, inputs = x.shape[: -self.axes], x.shape[-self.axes :]
        kernel = self.param("kernel", nn.initializers.normal(self.std), (*inputs, *self.features))
        bias = self.param("bias", nn.initializers.zeros, self.features)
        y = jnp.tensordot(x.reshape(-1, *inputs), kernel.astype(self.dtype), self.axes)
        if not is_divided("heads"):  # cuBLAS adds a vector to its product, not a matrix
            y, bias = y.reshape(y.shape[0], -1), bias.reshape(-1)
        return (y + bias.astype(self.dtype)).reshape(*leading, *self.features)


class Embeddings(nn.Module):
    """Word, position and token type, normalised and dropped out."""

    model: ModelConfig
    vocab_size: int
    dtype: jnp.dtype

    def setup(self) -> None:
        model, init = self.model, nn.initializers.normal(self.model.init_std)
        self.word = self.param("word", self._init_word)
        self.position = self.param("position", init, (model.max_length, model.embed))
        self.token_type = self.param("token_type", init, (model.token_types, model.embed))
        self.norm = LayerNorm(model.layer_norm_eps)

    def _init_word(self, key: jax.Array) -> jax.Array:
        """The rows that only pad the table are 0 and, without a gradient, stay 0: checkpoints need not hold them."""
        rows = table_rows(self.model, self.vocab_size)
        table = nn.initializers.normal(self.model.init_std)(key, (rows, self.model.embed))
        return jnp.where(jnp.arange(rows)[:, None] < self.vocab_size, table, 0)

    def __call__(self, input_ids: jax.Array, token_type_ids: jax.Array | None, state: Dropout | None) -> jax.Array:
        if token_type_ids is None:
            types = self.token_type[0]  # [embed]
        else:  # a product: its gradient is one too, where that of a lookup would add row by row into two rows
            one_hot = jax.nn.one_hot(token_type_ids, self.model.token_types)
            types = jnp.einsum("blt,te->ble", one_hot, self.token_type, precision=jax.lax.Precision.HIGHEST)
        x = jnp.take(self.word, input_ids, axis=0) + self.position[: input_ids.shape[1]] + types
        x = constrain(self.norm(x).astype(self.dtype), "batch", "length", "embed")
        return dropout(x, self.model.dropout, state, 0, sites.EMBEDDINGS)


class SelfAttention(nn.Module):
    """Multi-head attention; queries, keys and values are one matrix product."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, state: Dropout | None, layer: jax.Array | int) -> jax.Array:
        model = self.model
        features = (3, model.heads, model.embed // model.heads)
        qkv = Dense(features, model.init_std, self.dtype, name="qkv")(x)  # [batch, length, 3, heads, head_dim]
        qkv = constrain(qkv, "batch", "length", "qkv", "heads", "head_dim")
        seeds = None if state is None else site_seeds(state, layer, sites.ATTENTION_PROBABILITIES)
        mixed = attention(qkv, lengths, seeds, model.attention_dropout, self.compute.attention)
        out = Dense((model.embed,), model.init_std, self.dtype, axes=2, name="output")(mixed)
        norm = AddNorm(model.layer_norm_eps, model.dropout, self.compute.pointwise, name="norm")
        return norm(x, out, state, layer, sites.ATTENTION_OUTPUT)


class Mlp(nn.Module):
    """The feed-forward half of a layer."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, state: Dropout | None, layer: jax.Array | int) -> jax.Array:
        model = self.model
        up, up_bias = LinearParams((model.embed,), (model.mlp,), model.init_std, name="up")()
        down, down_bias = LinearParams((model.mlp,), (model.embed,), model.init_std, name="down")()
        hidden = x.reshape(-1, model.embed) @ up.astype(self.dtype)  # [batch * length, mlp]
        hidden = constrain(hidden, "batch", "mlp")
        out = gelu_product(hidden, up_bias, down.astype(self.dtype), self.compute.pointwise)
        out = (out + down_bias.astype(self.dtype)).reshape(x.shape)
        norm = AddNorm(model.layer_norm_eps, model.dropout, self.compute.pointwise, name="norm")
        return norm(x, out, state, layer, sites.MLP_OUTPUT)


class EncoderLayer(nn.Module):
    """One transformer layer."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.attention = SelfAttention(self.model, self.compute, self.dtype)
        self.mlp = Mlp(self.model, self.compute, self.dtype)

    def __call__(self, x: jax.Array, lengths: jax.Array, state: Dropout | None, layer: jax.Array | int) -> jax.Array:
        x = self.mlp(self.attention(x, lengths, state, layer), state, layer)
        return constrain(x, "batch", "length", "embed")


class Encoder(nn.Module):
    """The encoder alone. A model with heads is a subclass, so that "embeddings" and "encoder" are at the top of
    every parameter tree."""

    model: ModelConfig
    compute: ComputeConfig
    vocab_size: int  # of the tokenizer; the table has table_rows(model, vocab_size) rows
    dtype: jnp.dtype

    def setup(self) -> None:
        self.embeddings = Embeddings(self.model, self.vocab_size, self.dtype)
        self.encoder = self.param("encoder", self._init_layers)  # every leaf [layers, ...]

    def _init_layers(self, key: jax.Array) -> dict[str, Any]:
        compute = dataclasses.replace(self.compute, attention="xla", pointwise="xla")
        layer, x = EncoderLayer(self.model, compute, self.dtype), jnp.zeros((1, 1, self.model.embed), self.dtype)
        keys = jax.random.split(key, self.model.layers)
        return jax.vmap(lambda key: layer.init(key, x, jnp.ones(1, jnp.int32), None, 0)["params"])(keys)

    def encode(
        self, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array | None, state: Dropout | None
    ) -> jax.Array:
        """Hidden states [batch, length, embed], in `dtype`; the arguments are those of `encode` below."""
        module = EncoderLayer(self.model, self.compute, self.dtype, parent=None)

        def layer(x: jax.Array, params_and_index: tuple[Any, jax.Array]) -> tuple[Any, None]:
            params, index = params_and_index
            return module.apply({"params": layer_params(params)}, x, lengths, state, index), None

        x = self.embeddings(input_ids, token_type_ids, state)
        layer = _rematerialised(layer, self.compute)
        if not self.compute.unroll:
            return jax.lax.scan(layer, x, (self.encoder, jnp.arange(self.model.layers, dtype=jnp.uint32)))[0]
        for index, params in enumerate(_unstack(self.encoder, self.model.layers)):
            x, _ = layer(x, (params, jnp.uint32(index)))
        return x


def _rematerialised(layer: Callable, compute: ComputeConfig) -> Callable:
    """The layer, recomputing in the backward pass what `compute.remat` says."""
    if compute.remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if compute.remat == "dots" else policies.nothing_saveable
    return jax.checkpoint(layer, policy=policy, prevent_cse=compute.unroll)  # a scan's loop prevents CSE by itself


def _unstack(params: dict[str, Any], layers: int) -> list[dict[str, Any]]:
    """One tree a layer. By `split`, whose gradient is one concatenation; that of indexing adds `layers` full arrays."""
    leaves, structure = jax.tree.flatten(params)
    split = [[jnp.squeeze(part, 0) for part in jax.lax.split(leaf, (1,) * layers)] for leaf in leaves]
    return [jax.tree.unflatten(structure, parts) for parts in zip(*split, strict=True)]


def dropout_state(key: jax.Array | None, rows: jax.Array | None, batch: int) -> Dropout | None:
    """What the model's dropout takes; `rows` defaults to 0 .. batch - 1."""
    if key is None:
        return None
    return Dropout(jnp.asarray(key, jnp.uint32), jnp.arange(batch, dtype=jnp.uint32) if rows is None else rows)


def encode(
    model: Encoder,
    params: dict[str, Any],
    input_ids: jax.Array,
    lengths: jax.Array,
    token_type_ids: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Hidden states [batch, length, embed] in the compute dtype.

    input_ids, token_type_ids: int32 [batch, length] (no token_type_ids: all 0). lengths: int32 [batch]; positions from
    there on are padding: never attended to, their own hidden states finite and meaningless. dropout_key: uint32 scalar,
    or None for no dropout. rows: uint32 [batch], each row's number in the global batch. `params` may have heads too.
    """
    state = dropout_state(dropout_key, rows, input_ids.shape[0])
    hidden: Any = model.apply({"params": params}, input_ids, lengths, token_type_ids, state, method="encode")
    return hidden
