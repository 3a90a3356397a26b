"""Others' weights: tensors as a file has them, our parameters from them, and a vocabulary to lay beside them."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_jax.convert.huggingface import Coverage
from spanbert_jax.convert.names import Params
from spanbert_jax.convert.published_weights import PublishedWeights
from spanbert_jax.convert.tensors import Tensor, Tensors
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.text.tokenizer import SPECIALS
from tests.support.synthetic import VOCAB

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def load(published: PublishedWeights) -> tuple[Params, Coverage]:
    return published.load(functools.partial(parameter_shapes, published.model, published.tokenizer.vocab_size))


def write_vocabulary(path: Path, size: int = VOCAB) -> Path:
    """A cased WordPiece: every letter, small and capital, at a word's start and inside."""
    letters = [*LETTERS, *LETTERS.upper()]
    pieces = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    pieces += [f"word{i}" for i in range(size - len(pieces))]
    path.write_text("".join(f"{piece}\n" for piece in pieces))
    return path


def lazy(tensors: dict[str, np.ndarray]) -> Tensors:
    """Tensors as convert.tensor_files.read_tensors returns those of a file: name -> a function that reads it."""
    return {name: Tensor(tensor.shape, lambda tensor=tensor: tensor) for name, tensor in tensors.items()}  # type: ignore[misc]


def write_files(folder: Path, pieces: Sequence[str], **files: Any) -> Path:
    """A directory with a vocab.txt and JSON files, beside a BERT's config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes("".join(f"{piece}\n" for piece in pieces).encode())
    for name, content in {"config": {"model_type": "bert"}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
