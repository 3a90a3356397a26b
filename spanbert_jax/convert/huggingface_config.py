"""Hugging Face's config.json of a BERT, to and from our `ModelConfig`.

Invariant: a configuration that our encoder does not compute (another architecture, activation or position scheme) is
refused, never approximated. A configuration that is written holds every field, since other readers have no defaults.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from spanbert_jax.config import ModelConfig
from spanbert_jax.errors import UserError

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
    "model_type": ("bert",),
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}

# transformers' classes, and the heads that each needs. The first class whose heads a model of ours has is taken.
_ARCHITECTURES = (
    ("BertForQuestionAnswering", ("qa_outputs",)),
    ("BertForSequenceClassification", ("pooler", "classifier")),
    ("BertForTokenClassification", ("classifier",)),
    ("BertForMaskedLM", ("mlm",)),
    ("BertModel", ()),
)


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a config.json; raises UserError where the file is missing or holds no JSON object."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the weights need the config.json that they came with"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds a {type(fields).__name__}; expected the fields of a BERT's configuration")
    return fields


def to_model_config(fields: Mapping[str, Any], source: str) -> ModelConfig:
    """The ModelConfig of a config.json's fields; rates that are missing take BERT's defaults.

    Raises UserError where the model is of another architecture, or a size is missing or no number.
    """
    for name, supported in _FIXED.items():
        if fields.get(name, supported[0]) not in supported:
            expected = " or ".join(map(repr, supported))
            raise UserError(f"{source}: {name} is {fields[name]!r}; only {expected} is supported: BERT and SpanBERT")
    values: dict[str, Any] = {}
    for ours, theirs in _SIZES.items():
        value = fields.get(theirs)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{source}: {theirs} is {value!r}; expected a whole number greater than 0")
        values[ours] = value
    for ours, theirs in _RATES.items():
        value = fields.get(theirs, getattr(ModelConfig, ours))
        if not isinstance(value, int | float):
            raise UserError(f"{source}: {theirs} is {value!r}; expected a number")
        values[ours] = float(value)
    if values["embed"] % values["heads"]:
        raise UserError(f"{source}: hidden_size {values['embed']} is not divisible by {values['heads']} heads")
    return ModelConfig(**values)


def labels_of(fields: Mapping[str, Any], count: int, source: str) -> tuple[str, ...]:
    """The names of a classifier's `count` labels, in order; without a name they are "LABEL_0", ..., as in transformers.

    Raises UserError where id2label is no mapping of numbers to names.
    """
    try:
        names = {int(number): str(name) for number, name in (fields.get("id2label") or {}).items()}
    except (AttributeError, ValueError) as error:
        raise UserError(f'{source}: id2label is {fields["id2label"]!r}; expected {{"0": NAME, ...}}') from error
    return tuple(names.get(i, f"LABEL_{i}") for i in range(count))


def architecture(heads: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """(transformers' class, those of the heads that the class has) for a model of ours with `heads`."""
    # Beside "spans", the classifier classifies spans and not tokens.
    known = set(heads) - ({"classifier"} if "spans" in heads else set())
    name, has = next(row for row in _ARCHITECTURES if set(row[1]) <= known)
    return name, ("pooler",) if name == "BertModel" and "pooler" in heads else has


def to_fields(
    model: ModelConfig, vocab_size: int, pad_id: int, name: str, labels: Sequence[str], dtype: str
) -> dict[str, Any]:
    """Every field of the config.json of transformers' class `name`.

    vocab_size: rows of the word table. labels: the names of a classifier's labels in order, empty for other models.
    dtype: "float32" or "bfloat16", of the tensors.
    """
    fields: dict[str, Any] = {
        "architectures": [name],
        "model_type": "bert",
        "vocab_size": vocab_size,
        **{theirs: getattr(model, ours) for ours, theirs in (_SIZES | _RATES).items()},
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "classifier_dropout": None,
        "pad_token_id": pad_id,
        "bos_token_id": None,
        "eos_token_id": None,
        "is_decoder": False,
        "add_cross_attention": False,
        "use_cache": True,
        "tie_word_embeddings": True,
        "dtype": dtype,
    }
    if labels:
        fields["id2label"] = {str(i): label for i, label in enumerate(labels)}
        fields["label2id"] = {label: i for i, label in enumerate(labels)}
    return fields
