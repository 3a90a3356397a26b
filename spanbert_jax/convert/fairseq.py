"""SpanBERT's own training checkpoints, such as model.pt of spanbert_large_with_head.tar.gz, under transformers' names.

Invariant: names lose the prefix `decoder.` and nothing else. The matrix of a head's decoder is a copy of the word
embeddings, and is dropped after it was found equal to them. Names and shapes are those of the authors'
models/pair_bert.py. The span-boundary head keeps its names from there, because transformers has no such head.
"""

import re
from typing import Any

import numpy as np

from spanbert_jax.convert.tensors import Tensors
from spanbert_jax.errors import UserError

_PREFIX = "decoder."  # the attribute that holds BERT in the authors' class
_EMBEDDINGS = "bert.embeddings"
_WORD = f"{_EMBEDDINGS}.word_embeddings.weight"
_TIED = ("cls.predictions.decoder.weight", "cls.pair_target_predictions.decoder.weight")
_HEAD_SIZE = 64  # width of an attention head in every model that the authors of BERT or SpanBERT published


def is_fairseq(tensors: Tensors) -> bool:
    """Whether these are SpanBERT's names; those of fairseq's own RoBERTa (`decoder.sentence_encoder.*`) are not."""
    return any(name.startswith(f"{_PREFIX}bert.") for name in tensors)


def translate(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors under transformers' names, and the original names of the tensors that were left alone. Left alone are
    the two decoders' copies of the word embeddings, and tensors outside of `decoder.bert` and `decoder.cls`.

    LayerNorms keep gamma and beta. Only the word embeddings and their copies are read. Raises UserError where a copy
    differs from the word embeddings.
    """
    translated, left = {}, []
    for name, read in tensors.items():
        new = name.removeprefix(_PREFIX)
        if new == name or new in _TIED or not new.startswith(("bert.", "cls.")):
            left.append(name)
        else:
            translated[new] = read
    for name in _TIED:
        if f"{_PREFIX}{name}" in tensors and _WORD in translated:
            _check_tied(name, tensors[f"{_PREFIX}{name}"](), translated[_WORD]())
    return translated, sorted(left)


def _check_tied(name: str, copy: np.ndarray, word: np.ndarray) -> None:
    if not np.array_equal(copy, word, equal_nan=True):
        raise UserError(
            f"{_PREFIX}{name} {copy.shape} differs from {_PREFIX}{_WORD} {word.shape}; expected a copy, because both "
            "heads score with the word embeddings. Give a checkpoint whose decoders are tied to them"
        )


def config_fields(tensors: Tensors) -> dict[str, Any]:
    """The fields of transformers' config.json, from the shapes of `translate`'s tensors: fairseq writes no config.json.

    Shapes do not tell the number of attention heads. It is taken as hidden_size / 64, as in every published BERT.
    Activation, eps, dropout and init are those of models/pair_bert.py. Raises UserError where a table is missing or
    hidden_size is no multiple of 64.
    """
    vocab_size, hidden_size = _shape(tensors, _WORD)
    if hidden_size % _HEAD_SIZE:
        raise UserError(
            f"{_WORD}: width {hidden_size} is no multiple of {_HEAD_SIZE}, the width of an attention head in every "
            "published BERT, so the number of heads cannot be told; put the model's config.json beside the checkpoint"
        )
    layers = (re.match(r"bert\.encoder\.layer\.(\d{1,9})\.", name) for name in tensors)
    return {
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max((int(match[1]) for match in layers if match), default=-1),
        "num_attention_heads": hidden_size // _HEAD_SIZE,
        "intermediate_size": _shape(tensors, "bert.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": _shape(tensors, f"{_EMBEDDINGS}.position_embeddings.weight")[0],
        "type_vocab_size": _shape(tensors, f"{_EMBEDDINGS}.token_type_embeddings.weight")[0],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _shape(tensors: Tensors, name: str) -> tuple[int, int]:
    if name not in tensors:
        raise UserError(f"no tensor {_PREFIX}{name}; expected SpanBERT's checkpoint with a whole encoder")
    shape = tensors[name].shape
    if len(shape) != 2:
        raise UserError(f"{_PREFIX}{name} has shape {shape}; expected a matrix")
    return shape[0], shape[1]
