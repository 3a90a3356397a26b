"""What trained weights compute, as pure functions of (params, input_ids, lengths, token_type_ids).

Invariant: what is compared with PyTorch is what is served: the same functions, without dropout, in float32.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from spanbert_jax.config import ComputeConfig, Config
from spanbert_jax.convert.huggingface_config import architecture
from spanbert_jax.model import encoder, linear_heads, pretraining_heads

Function = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]

_TASKS = {
    "BertForQuestionAnswering": "question_answering",
    "BertForSequenceClassification": "sequence_classification",
    "BertForTokenClassification": "token_classification",
}


def _exact(function: Function) -> Function:
    """The function with float32 products, which accelerators otherwise round to TF32 or bfloat16."""

    def exact(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return function(params, input_ids, lengths, token_type_ids)

    return exact


def functions(config: Config, groups: Collection[str], vocab_size: int, labels: int) -> dict[str, Function]:
    """ "encode": hidden states float32 [batch, length, embed]; "predict", where the parameter `groups` have a head that
    was trained for it: the head's logits, of MLM [batch, length, vocab].

    Both take params, input_ids int32 [batch, length], lengths int32 [batch], token_type_ids int32 [batch, length].
    """
    compute = ComputeConfig(dtype="float32")
    base = encoder.Encoder(config.model, compute, vocab_size, jnp.dtype(jnp.float32))

    def encode(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        return encoder.encode(base, params, input_ids, lengths, token_type_ids)

    name, _ = architecture(groups)
    if name == "BertModel":
        return {"encode": _exact(encode)}
    whole = Config(model=config.model, compute=compute, masking=config.masking)
    if name == "BertForMaskedLM":
        model = pretraining_heads.pretraining_model(whole, vocab_size, "cpu")

        def masked_lm(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
            everywhere = jnp.broadcast_to(jnp.arange(input_ids.shape[1], dtype=jnp.int32), input_ids.shape)
            batch = {"input_ids": input_ids, "lengths": lengths, "token_type_ids": token_type_ids}
            batch["masked_positions"] = everywhere
            mlm = pretraining_heads.MLM
            return pretraining_heads.apply(model, params, batch, heads=(mlm,))[mlm.name][..., :vocab_size]

        return {"encode": _exact(encode), "predict": _exact(masked_lm)}
    task = linear_heads.task_model(_TASKS[name], whole, vocab_size, labels, "cpu")

    def predict(params: Any, input_ids: jax.Array, lengths: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        return linear_heads.apply(task, params, input_ids, lengths, token_type_ids)

    return {"encode": _exact(encode), "predict": _exact(predict)}
