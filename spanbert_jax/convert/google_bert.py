"""google-research/bert's TensorFlow checkpoints under transformers' names.

Invariant: a tensor is known by its whole name. Each tensor of the checkpoint is translated, or named as left alone.
Names and layouts: google-research/bert, modeling.py, run_pretraining.py, run_classifier.py, run_squad.py.
"""

import re
from pathlib import Path
from typing import Any

from spanbert_jax import json_files
from spanbert_jax.convert.tensors import Tensors
from spanbert_jax.errors import UserError, shortened

_WORD = "bert/embeddings/word_embeddings"
_TABLE = re.compile(r"bert/embeddings/(word|position|token_type)_embeddings")
_DENSE = re.compile(
    r"(bert/encoder/layer_\d+/(attention/self/(query|key|value)|attention/output/dense|intermediate/dense|output/dense)"
    r"|bert/pooler/dense|cls/predictions/transform/dense)/(kernel|bias)"
)
_NORM = re.compile(
    r"(bert/embeddings|bert/encoder/layer_\d+/(attention/)?output|cls/predictions/transform)/LayerNorm/(gamma|beta)"
)
# These weights are [outputs, inputs] already, as transformers has them.
_OUTPUTS = {
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    "cls/squad/output_weights": "qa_outputs.weight",
    "cls/squad/output_bias": "qa_outputs.bias",
    "output_weights": "classifier.weight",
    "output_bias": "classifier.bias",
}

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_DEFAULTS = {  # of modeling.py's BertConfig
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}


def translate(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors under transformers' names, and the names of those left alone (optimizer slots, global_step, ...).

    A kernel [inputs, outputs] becomes a weight [outputs, inputs], a transposed view of the tensor that is read.
    LayerNorms keep gamma and beta. Raises UserError where there is no table of word embeddings, because then the
    checkpoint is no BERT.
    """
    if _WORD not in tensors:
        some = ", ".join(name[:100] for name in sorted(tensors)[:3])
        raise UserError(f"no tensor {_WORD} among {len(tensors)} ({some}, ...); expected google-research/bert's names")
    names = {name: _translated(name) for name in tensors}
    translated = {
        new: tensors[name].transposed if name.endswith("/kernel") else tensors[name]
        for name, new in names.items()
        if new
    }
    return translated, sorted(name for name, new in names.items() if not new)


def _translated(name: str) -> str | None:
    if name in _OUTPUTS:
        return _OUTPUTS[name]
    dotted = name.replace("/layer_", "/layer/").replace("/", ".")
    if _TABLE.fullmatch(name):
        return f"{dotted}.weight"
    if _DENSE.fullmatch(name):
        return re.sub(r"kernel$", "weight", dotted)
    return dotted if _NORM.fullmatch(name) else None


def config_fields(path: Path) -> dict[str, Any]:
    """A bert_config.json as the fields of transformers' config.json; fields that no BERT reads are dropped.

    `hidden_act` "gelu" is kept. It means the exact GELU here and in transformers, but GELU's tanh approximation in
    modeling.py; the two differ by up to 5e-4. Raises UserError where the file is missing, is not JSON, or lacks a size.
    """
    try:
        given = json_files.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; put the model's bert_config.json there") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a JSON file ({shortened(error)}); expected google-research/bert's bert_config.json"
        ) from error
    given = given if isinstance(given, dict) else {}
    wrong = [name for name in _SIZES if not isinstance(given.get(name), int)]
    if wrong:
        raise UserError(
            f"{path}: no whole number as {', '.join(wrong)}; expected google-research/bert's bert_config.json"
        )
    fields = {name: given.get(name, _DEFAULTS.get(name)) for name in (*_SIZES, *_DEFAULTS)}
    # 1e-12: tf.contrib.layers.layer_norm's, which modeling.py calls. Id 0 is [PAD] in all of Google's vocabularies.
    return {"model_type": "bert", **fields, "layer_norm_eps": 1e-12, "pad_token_id": 0}
