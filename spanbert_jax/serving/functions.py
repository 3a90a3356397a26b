"""The pure functions of (params, input_ids, lengths, token_type_ids) that trained weights compute.

Invariant: the functions that are exported and those that are compared with PyTorch are the same, without dropout and
in float32. Only a server that is asked for it encodes in another dtype.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from spanbert_jax.config import ComputeConfig, Config
from spanbert_jax.convert.huggingface_config import MASKED_LM, architecture
from spanbert_jax.model import encoder, linear_heads, pretraining_heads

Function = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
EXACT = ComputeConfig(dtype="float32")


def _exact(function: Function) -> Function:
    """The function with matrix products in full float32. Accelerators otherwise round their inputs to TF32 or
    bfloat16."""

    def exact(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return function(params, input_ids, lengths, token_type_ids)

    return exact


def encode_function(
    config: Config, vocab_size: int, layer: int | None = None, compute: ComputeConfig = EXACT
) -> Function:
    """The function that returns the encoder's hidden states, float32 [batch, length, embed]; layer: as for
    `encoder.encode`, by default the last one. compute: as of `encoder.resolved`; in another dtype than float32 the
    states are computed in that, and matrix products are not exact."""
    base = encoder.Encoder(config.model, compute, vocab_size, jnp.dtype(compute.dtype))

    def encode(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        states = encoder.encode(base, params, input_ids, lengths, token_type_ids, layer=layer)
        return states.astype(jnp.float32)

    return _exact(encode) if compute.dtype == EXACT.dtype else encode


def functions(config: Config, groups: Collection[str], vocab_size: int, labels: int) -> dict[str, Function]:
    """The functions by name: "encode", "predict" where the parameter `groups` include a head, and "next_sentence" where
    they include the masked language model's head and that of next-sentence prediction.

    Each takes params, input_ids int32 [batch, length], lengths int32 [batch], token_type_ids int32 [batch, length].
    "encode" is `encode_function(config, vocab_size)`. "predict" returns the head's logits, float32: [batch, length,
    vocab] of MLM, [batch, length, 2] of question answering, [batch, length, labels] of tokens, [batch, labels] of
    sequences. "next_sentence" returns logits, float32 [batch, 2]: whether the second text of the row follows the first
    (0), or is of another document (1). labels: the number of labels, 0 where the head has none.
    """
    encode = encode_function(config, vocab_size)
    known = architecture(groups, config.model.family, config.task)
    task = known.task
    if not task:
        return {"encode": encode}
    whole = Config(model=config.model, compute=EXACT, masking=config.masking)
    if task == MASKED_LM:
        mlm, nsp = pretraining_heads.MLM, pretraining_heads.NSP
        model = pretraining_heads.pretraining_model(whole, vocab_size, "cpu", (mlm, nsp))

        def masked_lm(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
            everywhere = jnp.broadcast_to(jnp.arange(input_ids.shape[1], dtype=jnp.int32), input_ids.shape)
            batch = {"input_ids": input_ids, "lengths": lengths, "token_type_ids": token_type_ids}
            batch["masked_positions"] = everywhere
            return pretraining_heads.apply(model, params, batch, heads=(mlm,))[mlm.name][..., :vocab_size]

        def next_sentence(params: Any, ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
            batch = {"input_ids": ids, "lengths": lengths, "token_type_ids": token_type_ids}
            return pretraining_heads.apply(model, params, batch, heads=(nsp,))[nsp.name]

        found: dict[str, Function] = {"predict": masked_lm}
        found |= {"next_sentence": next_sentence} if nsp.name in known.heads else {}
        return {"encode": encode, **{name: _exact(function) for name, function in found.items()}}
    fine_tuned = linear_heads.task_model(task, whole, vocab_size, labels, "cpu")

    def predict(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        return linear_heads.apply(fine_tuned, params, input_ids, lengths, token_type_ids)

    return {"encode": encode, "predict": _exact(predict)}
