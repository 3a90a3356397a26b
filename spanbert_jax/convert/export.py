"""Writes a directory for PyTorch users: the files that transformers' Auto classes load, and the span-boundary head.

Invariant: the directory holds no random values. A head that was not trained is not written, so that transformers says
that the head is missing. AutoModel always has a pooler; where none was trained, the identity is written for it.
transformers has no class for the span-boundary head, so this head stands in a file that transformers does not read. The
span decoder, which nothing but this project can compute, is left out.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from spanbert_jax.config import EXTENSIONS, ModelConfig
from spanbert_jax.convert.config_fields import SpecialIds
from spanbert_jax.convert.huggingface import NAMES, plain_pooler, to_tensors
from spanbert_jax.convert.huggingface_config import architecture, to_fields
from spanbert_jax.convert.model_card import model_card
from spanbert_jax.convert.names import ENCODER, HEADS, LEFT_OUT, SBO, Params
from spanbert_jax.convert.published_weights import SBO_FILE
from spanbert_jax.convert.tokenizer_export import write_tokenizer
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Export:
    """The input of `write_export`: trained parameters, and all that describes them."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    labels: Sequence[str]  # the names of a classifier's labels, in order; not read for a model without classifier
    training: Mapping[str, Any]  # written to spanbert_jax.json; the card shows "config" (flat), "step", "evaluation"
    name: str  # of the model, in its card
    task: str = "pretraining"  # config.task of the model's run


def write_export(export: Export, directory: Path, dtype: str, encoder_only: bool) -> tuple[str, tuple[str, ...]]:
    """Writes all files into an existing directory; returns the name of transformers' class, and the groups of
    `export.params` that were written.

    dtype: a key of DTYPES. encoder_only: leave out every head but the pooler. Raises UserError where a value is not
    finite, or where transformers has no counterpart of the layers or of a head; ValueError where the model has an
    extension.
    """
    model, tokenizer = export.model, export.tokenizer
    if model.family not in NAMES:
        raise UserError(
            f"model.family is {model.family!r}; an export holds layers of {' or '.join(map(repr, NAMES))}, which "
            "transformers has; export such a model with tools/export_serving.py"
        )
    default = ModelConfig()
    extended = [name for name in EXTENSIONS if getattr(model, name) != getattr(default, name)]
    if extended:
        raise ValueError(f"extensions {extended} have no place in an export; extensions.without takes them away")
    heads = [group for group in export.params if group not in (*ENCODER, *LEFT_OUT)]
    unknown = [head for head in heads if head not in HEADS]
    if unknown and not encoder_only:
        raise UserError(f"transformers has no class with the head {unknown[0]!r}; export the encoder: --encoder-only")
    exported = [head for head in heads if head == "pooler" or not encoder_only]
    name, task, needed = architecture(exported, model.family, export.task)
    kept = tuple(head for head in exported if head in needed or head == "sbo")
    groups = (*(group for group in ENCODER if group in export.params), *kept)
    vocab_rows = max(tokenizer.vocab_size, model.vocab_rows)
    specials = SpecialIds(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    fields = to_fields(model, vocab_rows, specials, name, export.labels if "classifier" in kept else (), dtype)
    params = {group: export.params[group] for group in groups}
    if name == "BertModel" and "pooler" not in params:
        # AutoModel always has a pooler. Without this one it would draw a random one at every load.
        params["pooler"] = plain_pooler(model.embed)
    tensors = to_tensors(params, vocab_rows, DTYPES[dtype], model.family)
    sbo = {key: tensors.pop(key) for key in list(tensors) if key.startswith(SBO)}
    if not task:  # The names in an encoder's own files have no prefix.
        prefix = NAMES[model.family].base
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    _write_tensors(directory / "model.safetensors", tensors)
    if sbo:
        _write_tensors(directory / SBO_FILE, {_original(key): tensor for key, tensor in sbo.items()})
    _write_json(directory / "config.json", fields)
    write_tokenizer(
        tokenizer, directory, model.max_length, token_types=model.family == "bert" and model.token_types > 1
    )
    training = {**export.training, "tokenizer_fingerprint": tokenizer.fingerprint}
    _write_json(directory / "spanbert_jax.json", training)
    mask = tokenizer.piece(tokenizer.mask_id)
    card = model_card(export.name, task, fields, training, bool(sbo), "pooler" in kept, mask)
    (directory / "README.md").write_text(card, encoding="utf-8")
    return name, groups


def _original(name: str) -> str:
    """The name of a span-boundary tensor in the authors' code, whose LayerNorms have gamma and beta."""
    if "layer_norm1." in name or "layer_norm2." in name:
        return name.removesuffix("weight") + "gamma" if name.endswith("weight") else name.removesuffix("bias") + "beta"
    return name


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, path, metadata={"format": "pt"})  # transformers 4.57 refuses any other format
    path.chmod(0o644)  # safetensors creates files that only their owner may read


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
