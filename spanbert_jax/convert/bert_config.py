"""Hugging Face's config.json of a BERT, to and from our `ModelConfig` of the family "bert".

Invariant: a configuration that our encoder does not compute (another activation or position scheme) is refused, never
approximated. A configuration that is written holds every field, since other readers have no defaults.
"""

from typing import Any

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert.config_fields import Fields, SpecialIds, check_fixed, check_heads, number, sizes

# Ours -> Hugging Face's, of the fields that both have.
_SIZES = {
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "max_length": "max_position_embeddings",
    "token_types": "type_vocab_size",
}
_RATES = {
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "init_std": "initializer_range",
}

# The values that our encoder computes, BERT's default first. "gelu_python" is another name of the exact GELU.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def to_model_config(fields: Fields, source: str) -> ModelConfig:
    """The ModelConfig of a config.json's fields; rates that are missing take BERT's defaults.

    Raises UserError where our encoder does not compute the model, or a size is missing or no number.
    """
    check_fixed(fields, _FIXED, "BERT and SpanBERT", source)
    values: dict[str, Any] = dict(sizes(fields, _SIZES, source))
    for ours, theirs in _RATES.items():
        values[ours] = number(fields.get(theirs, getattr(ModelConfig, ours)), theirs, source)
    check_heads(values["embed"], values["heads"], source)
    return ModelConfig(**values)


def to_fields(model: ModelConfig, specials: SpecialIds) -> dict[str, Any]:
    """The fields that are BERT's own."""
    return {
        "model_type": "bert",
        **{theirs: getattr(model, ours) for ours, theirs in (_SIZES | _RATES).items()},
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "classifier_dropout": None,
        "pad_token_id": specials.pad,
        "bos_token_id": None,
        "eos_token_id": None,
        "is_decoder": False,
        "add_cross_attention": False,
        "use_cache": True,
    }
