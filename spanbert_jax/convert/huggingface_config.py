"""Hugging Face's config.json: the parts that all families share, and the choice of the family.

Invariant: a configuration that our encoder does not compute is refused, never approximated. A family's fields are in a
file of its own: `bert_config.py`, `modernbert_config.py`.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_jax import json_files
from spanbert_jax.config import ModelConfig
from spanbert_jax.convert import bert_config, modernbert_config
from spanbert_jax.convert.config_fields import SpecialIds
from spanbert_jax.errors import UserError, quoted, shortened

_READERS: Mapping[str, Callable[[Mapping[str, Any], str], ModelConfig]] = {  # by model_type
    "bert": bert_config.to_model_config,
    "modernbert": modernbert_config.to_model_config,
}

MASKED_LM = "masked_lm"
_REGRESSION = ("score",)  # the only label of a model that gives a number, such as STS-B's


class Architecture(NamedTuple):
    """A class of transformers, as the counterpart of a model of ours."""

    name: str  # "BertForMaskedLM"
    task: str  # MASKED_LM, a task of `linear_heads.task_model`, or "" for the encoder alone
    heads: tuple[str, ...]  # the model's groups of parameters that the class has beside the encoder


# By `config.model.family`: transformers' classes with the heads that each needs. `architecture` chooses among those
# whose heads a model of ours has.
_CLASSES = {
    "bert": (
        Architecture("BertForQuestionAnswering", "question_answering", ("qa_outputs",)),
        Architecture("BertForSequenceClassification", "sequence_classification", ("pooler", "classifier")),
        Architecture("BertForTokenClassification", "token_classification", ("classifier",)),
        Architecture("BertForPreTraining", MASKED_LM, ("pooler", "mlm", "nsp")),
        Architecture("BertForMaskedLM", MASKED_LM, ("mlm",)),
        Architecture("BertModel", "", ()),
    ),
    "modern": (
        Architecture("ModernBertForQuestionAnswering", "question_answering", ("transform", "qa_outputs")),
        Architecture("ModernBertForSequenceClassification", "sequence_classification", ("transform", "classifier")),
        Architecture("ModernBertForTokenClassification", "token_classification", ("transform", "classifier")),
        Architecture("ModernBertForMaskedLM", MASKED_LM, ("mlm",)),
        Architecture("ModernBertModel", "", ()),
    ),
}


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a config.json; raises UserError where the file is missing or holds no JSON object."""
    try:
        fields = json_files.read(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the weights need the config.json that they came with"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({shortened(error)}); fetch it again") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds a {type(fields).__name__}; expected the fields of a model's configuration")
    return fields


def to_model_config(fields: Mapping[str, Any], source: str) -> ModelConfig:
    """The ModelConfig of a config.json's fields; a missing model_type is BERT's. Raises UserError where the model is of
    another architecture, or a field has a value that is not followed."""
    kind = fields.get("model_type", "bert")
    if kind not in tuple(_READERS):
        raise UserError(
            f"{source}: model_type is {quoted(kind)}; only 'bert' or 'modernbert' is supported: BERT, SpanBERT and "
            "ModernBERT"
        )
    return _READERS[kind](fields, source)


def class_of(fields: Mapping[str, Any]) -> str:
    """transformers' class in a config.json, "" where there is none."""
    given = fields.get("architectures")
    return str(given[0]) if isinstance(given, list) and given else ""


def task_of(name: str) -> str:
    """The `task` of the Architecture of transformers' class `name` where the class has a classifier, since the heads do
    not tell one of tokens from one of rows. Elsewhere "", since the heads tell the task."""
    classes = itertools.chain.from_iterable(_CLASSES.values())
    return next((row.task for row in classes if row.name == name and "classifier" in row.heads), "")


def labels_of(fields: Mapping[str, Any], count: int, source: str) -> tuple[str, ...]:
    """The names of a classifier's `count` labels, in order; without a name they are "LABEL_0", ..., as in transformers.
    The label of a regression is "score".

    Raises UserError where id2label is no mapping of numbers to names.
    """
    try:
        names = {int(number): str(name) for number, name in (fields.get("id2label") or {}).items()}
    except json_files.OTHER_SHAPE as error:
        raise UserError(f'{source}: id2label is {quoted(fields["id2label"])}; expected {{"0": NAME, ...}}') from error
    if count == 1 and fields.get("problem_type") == "regression":
        return _REGRESSION
    return tuple(names.get(i, f"LABEL_{i}") for i in range(count))


def architecture(heads: Collection[str], family: str, task: str) -> Architecture:
    """transformers' class for a model of ours with `heads`.

    family: `config.model.family`. task: `config.task` of the model's run, which tells a classifier of tokens from one
    of rows. A pooler does not tell them apart: older files of `BertForTokenClassification` have one. For any other task
    the first class in the table whose heads are there is taken.
    """
    # Beside "spans", the classifier classifies spans and not tokens.
    known = set(heads) - ({"classifier"} if "spans" in heads else set())
    rows = [row for row in _CLASSES[family] if set(row.heads) <= known]
    found = next((row for row in rows if row.task == task and "classifier" in row.heads), rows[0])
    return found._replace(heads=("pooler",)) if found.name == "BertModel" and "pooler" in heads else found


def to_fields(
    model: ModelConfig, vocab_size: int, specials: SpecialIds, name: str, labels: Sequence[str], dtype: str
) -> dict[str, Any]:
    """Every field of the config.json of transformers' class `name`.

    vocab_size: rows of the word table. labels: the names of a classifier's labels in order, empty for other models.
    dtype: "float32" or "bfloat16", of the tensors. Raises UserError where transformers has no counterpart of `model`.
    """
    own = (bert_config if model.family == "bert" else modernbert_config).to_fields(model, specials)
    fields: dict[str, Any] = {
        "architectures": [name],
        "model_type": own["model_type"],
        "vocab_size": vocab_size,
        **own,
        "tie_word_embeddings": True,
        "dtype": dtype,
    }
    if tuple(labels) == _REGRESSION and name.endswith("ForSequenceClassification"):
        # Without this field the pipeline of transformers applies a sigmoid to the number.
        fields["problem_type"] = "regression"
    if labels:
        fields["id2label"] = {str(i): label for i, label in enumerate(labels)}
        fields["label2id"] = {label: i for i, label in enumerate(labels)}
    return fields
