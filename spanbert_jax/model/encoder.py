"""The encoder: embeddings, and the transformer layers of a family with stacked parameters.

Invariant: `ComputeConfig` changes speed and memory, never values beyond rounding, and padding (positions from a row's
length on) never changes the hidden state of a valid position.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.batch import Batch
from spanbert_jax.config import ComputeConfig, ModelConfig
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.axes import ParameterAxes, constrain
from spanbert_jax.model.context_encoder import ContextEncoder
from spanbert_jax.model.dropout import Dropout, dropout
from spanbert_jax.model.families import family_of
from spanbert_jax.model.kernels.choice import choose_attention, choose_pointwise
from spanbert_jax.model.layer_family import Context
from spanbert_jax.model.layer_gradients import layer_params
from spanbert_jax.model.linear import initializer
from spanbert_jax.model.local_init import positions
from spanbert_jax.model.span_attention import SpanAttention
from spanbert_jax.model.span_embedding import SpanEmbedding

AXES: ParameterAxes = (
    (r"embeddings/word", ("vocab", "embed")),
    (r"embeddings/(position|token_type)", (None, "embed")),
    (r"embeddings/norm/(scale|bias)", (None,)),
)


def padded_vocab(vocab_size: int) -> int:
    """`vocab_size` rounded up to a multiple of 128, which suits matrix units."""
    return -(-vocab_size // 128) * 128


def table_rows(model: ModelConfig, vocab_size: int) -> int:
    """Rows of the word table and of the vocabulary's biases: a row for each piece, and not fewer than the
    `model.vocab_rows` of the weights that a model started from, padded."""
    return padded_vocab(max(vocab_size, model.vocab_rows))


def compute_dtype(compute: ComputeConfig, platform: str) -> jnp.dtype:
    """The dtype of activations; `platform` is `jax.Device.platform`, such as "cpu", "gpu" or "tpu"."""
    if compute.dtype == "auto":
        return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    return jnp.dtype(compute.dtype)


def resolved(compute: ComputeConfig, model: ModelConfig, platform: str) -> ComputeConfig:
    """`compute` with each "auto" replaced by its meaning on `platform` (`jax.Device.platform`). Raises UserError where
    a kernel that `compute` names cannot run there."""
    dtype = compute_dtype(compute, platform)
    wanted = "xla" if model.attention_composition else compute.attention  # the other kernels hold no scores
    kernel = choose_attention(wanted, platform, dtype, model.embed // model.heads)
    pointwise = choose_pointwise(compute.pointwise, platform, dtype)
    return dataclasses.replace(compute, dtype=dtype.name, attention=kernel, pointwise=pointwise)


class Inputs(NamedTuple):
    """What the encoder reads of a batch."""

    input_ids: jax.Array  # int32 [batch, length]
    lengths: jax.Array  # int32 [batch]; positions from there on are padding
    token_type_ids: jax.Array | None = None  # int32 [batch, length]; None: all 0
    span_tags: jax.Array | None = None  # int32 [batch, length] of span_tags.py, for some extensions; None: no spans
    # Float32 [batch, length, embed], which the encoder reads in the place of the rows of the word table, for gradients
    # with respect to them; None: the rows at `input_ids`.
    word_vectors: jax.Array | None = None

    @property
    def tags(self) -> jax.Array:
        """The span tags; without any, those of rows without spans."""
        return jnp.zeros_like(self.input_ids) if self.span_tags is None else self.span_tags

    @classmethod
    def of(cls, batch: Batch) -> "Inputs":
        """The arrays of a batch, of any task."""
        optional = (batch.get(name) for name in ("token_type_ids", "span_tags", "word_vectors"))
        return cls(batch["input_ids"], batch["lengths"], *optional)


class Embeddings(nn.Module):
    """The sum of the embeddings of the word and, where the family has such tables, of the position and the token type;
    then the family's norm and dropout."""

    model: ModelConfig
    vocab_size: int
    dtype: jnp.dtype

    def setup(self) -> None:
        model, family, init = self.model, family_of(self.model), initializer(self.model)
        self.word = self.param("word", self._init_word)
        if family.position_table:
            self.position = self.param("position", positions(model), (model.max_length, model.embed))
        if family.token_types:
            self.token_type = self.param("token_type", init, (model.token_types, model.embed))
        if model.span_embedding:
            self.spans = SpanEmbedding(model)
        self.norm = family.norm(model)

    def _init_word(self, key: jax.Array) -> jax.Array:
        """The rows that only pad the table are 0 and, without a gradient, stay 0: checkpoints need not hold them."""
        vocab = table_rows(self.model, self.vocab_size)
        table = initializer(self.model)(key, (vocab, self.model.embed))
        return jnp.where(jnp.arange(vocab)[:, None] < self.vocab_size, table, 0)

    def __call__(self, inputs: Inputs, state: Dropout | None) -> jax.Array:
        """[batch, length, embed]"""
        input_ids = inputs.input_ids
        family = family_of(self.model)
        given = inputs.word_vectors
        x = jnp.take(self.word, input_ids, axis=0) if given is None else given  # [batch, length, embed]
        if family.position_table:
            x = x + self.position[: input_ids.shape[1]]
        if family.token_types:
            x = x + self._types(inputs.token_type_ids)
        if self.model.span_embedding:
            x = x + self.spans(inputs.tags)
        x = constrain(self.norm(x).astype(self.dtype), "batch", "length", "embed")
        return dropout(x, self.model.dropout, state, 0, sites.EMBEDDINGS)

    def _types(self, token_type_ids: jax.Array | None) -> jax.Array:
        """The embeddings of the token types, [batch, length, embed]; without token_type_ids that of type 0, [embed].

        A product with a one-hot matrix reads them, because its gradient is a product too. The gradient of an indexed
        lookup would add position by position into two rows.
        """
        if token_type_ids is None:
            return self.token_type[0]
        one_hot = jax.nn.one_hot(token_type_ids, self.model.token_types)
        return jnp.einsum("blt,te->ble", one_hot, self.token_type, precision=jax.lax.Precision.HIGHEST)


class Encoder(nn.Module):
    """The encoder alone. A model with heads is a subclass, so "embeddings" and "encoder" are at the top of every
    parameter tree."""

    model: ModelConfig
    compute: ComputeConfig
    vocab_size: int  # of the tokenizer; the table has table_rows(model, vocab_size) rows
    dtype: jnp.dtype

    def setup(self) -> None:
        family = family_of(self.model)
        self.embeddings = Embeddings(self.model, self.vocab_size, self.dtype)
        self.encoder = self.param("encoder", self._init_layers)  # every leaf [layers, ...]
        if family.final_norm(self.model):
            self.final_norm = family.norm(self.model)
        if self.model.span_attention != "none":
            self.span_attention = SpanAttention(self.model, self.dtype)
        if self.model.context_encoder != "none":
            self.context = ContextEncoder(self.model, self.dtype)

    def _init_layers(self, key: jax.Array) -> dict[str, Any]:
        compute = dataclasses.replace(self.compute, attention="xla", pointwise="xla")
        layer, x = self._modules(compute)[0], jnp.zeros((1, 1, self.model.embed), self.dtype)
        context = Context(jnp.ones(1, jnp.int32), None, family_of(self.model).tables(self.model, 1))
        keys = jax.random.split(key, self.model.layers)
        return jax.vmap(lambda key: layer.init(key, x, context, 0)["params"])(keys)

    def _modules(self, compute: ComputeConfig) -> list[nn.Module]:
        """The modules of the family's layers, which take turns (`Family.layers`). `parent=None` keeps them out of this
        module's parameters."""
        return [make(self.model, compute, self.dtype, parent=None) for make in family_of(self.model).layers(self.model)]

    def encode(self, inputs: Inputs, state: Dropout | None, layer: int | None = None) -> jax.Array:
        """Hidden states [batch, length, embed], in `dtype`; layer: as for the function `encode`."""
        input_ids, lengths = inputs.input_ids, inputs.lengths
        family = family_of(self.model)
        context = Context(lengths, state, family.tables(self.model, input_ids.shape[1]))
        embedded = self.embeddings(inputs, state)
        if layer is not None:
            return self._run_layers(embedded, context, layer)
        x = self._run_layers(embedded, context, self.model.layers)
        x = self.final_norm(x) if family.final_norm(self.model) else x
        if self.model.span_attention != "none":
            x = self.span_attention(x, inputs.tags, lengths)
        return x if self.model.context_encoder == "none" else self.context(x, embedded, lengths)

    def _run_layers(self, x: jax.Array, context: Context, count: int) -> jax.Array:
        """`x` [batch, length, embed] after the first `count` layers. A scan runs over whole turns of the family's
        modules, and the layers beyond the last whole turn follow it. With `compute.unroll` all layers are unrolled
        instead."""
        modules = self._modules(self.compute)
        # A scan over single layers needs no barrier between forward and backward pass: each has a loop of its own.
        prevent_cse = self.compute.unroll or len(modules) > 1
        layers = [_layer(module, context, self.compute.remat, prevent_cse) for module in modules]

        def turn(x: jax.Array, params_and_indices: tuple[Any, ...]) -> tuple[jax.Array, None]:
            for layer, (params, index) in zip(layers, params_and_indices, strict=True):
                x = layer(x, params, index)
            return x, None

        scanned = 0 if self.compute.unroll else count - count % len(layers)
        if scanned:
            stacked = (self.encoder, jnp.arange(count, dtype=jnp.uint32))
            of_module = [slice(place, scanned, len(layers)) for place in range(len(layers))]
            x, _ = jax.lax.scan(turn, x, tuple(jax.tree.map(lambda leaf, s=s: leaf[s], stacked) for s in of_module))
        if scanned < count:
            rest = _unstack(jax.tree.map(lambda leaf: leaf[scanned:count], self.encoder), count - scanned)
            for index, params in enumerate(rest, scanned):
                x = layers[index % len(layers)](x, params, jnp.uint32(index))
        return x


def _layer(module: nn.Module, context: Context, remat: str, prevent_cse: bool) -> Callable[..., jax.Array]:
    """The layer as a function: (x, the layer's parameters, the layer's number) -> the next x. The backward pass
    recomputes the part that `remat` names."""

    def layer(x: jax.Array, params: Any, index: jax.Array) -> Any:
        return module.apply({"params": layer_params(params)}, x, context, index)

    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if remat == "dots" else policies.nothing_saveable
    return jax.checkpoint(layer, policy=policy, prevent_cse=prevent_cse)


def _unstack(stacked: Any, count: int) -> list[Any]:
    """The `count` trees whose leaves are stacked. `split` takes them apart, because its gradient is one concatenation.
    The gradient of indexing would add `count` arrays, each as large as the whole."""
    leaves, structure = jax.tree.flatten(stacked)
    split = [[jnp.squeeze(part, 0) for part in jax.lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [jax.tree.unflatten(structure, parts) for parts in zip(*split, strict=True)]


def dropout_state(key: jax.Array | None, row_numbers: jax.Array | None, batch: int) -> Dropout | None:
    """The seeds of a step's dropout masks, or None without a `key`.

    row_numbers: uint32 [batch]; None stands for 0 .. batch - 1.
    """
    if key is None:
        return None
    return Dropout(
        jnp.asarray(key, jnp.uint32), jnp.arange(batch, dtype=jnp.uint32) if row_numbers is None else row_numbers
    )


def encode(
    model: Encoder,
    params: dict[str, Any],
    input_ids: jax.Array,
    lengths: jax.Array,
    token_type_ids: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    row_numbers: jax.Array | None = None,
    span_tags: jax.Array | None = None,
    layer: int | None = None,
) -> jax.Array:
    """Hidden states [batch, length, embed] in the compute dtype.

    input_ids, token_type_ids: int32 [batch, length] (no token_type_ids: all 0). lengths: int32 [batch]; positions from
    a row's length on are padding: never attended to, their own hidden states finite and meaningless. dropout_key:
    uint32 scalar, or None for no dropout. row_numbers: uint32 [batch], each row's number in the global batch.
    span_tags: int32 [batch, length] of model/span_tags.py, which only some extensions read; None: no spans. layer: the
    number of layers that are computed, whose output is returned as it is (0: the embeddings); None: the whole encoder,
    with all that follows its last layer. `params` may have heads too.
    """
    state = dropout_state(dropout_key, row_numbers, input_ids.shape[0])
    inputs = Inputs(input_ids, lengths, token_type_ids, span_tags)
    hidden: Any = model.apply({"params": params}, inputs, state, layer, method="encode")
    return hidden
