"""The shared parts of the tables that show our parameters under transformers' names: `bert.py` and `modernbert.py`.

Invariant: a table's views cover each value of a family's parameters at most once, so an import and an export that both
go through the views are bitwise. Names and shapes of the span-boundary head are those of the authors'
models/pair_bert.py:338-402, whatever the family.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Params = dict[str, Any]  # nested dicts of NumPy arrays

SBO = "cls.pair_target_predictions"
# Our groups of parameters: those of the encoder, the last two of which only extensions have; the heads that files of
# transformers or of the authors have; and those that an export leaves out, since no file of others has a place for
# them.
ENCODER = ("embeddings", "encoder", "final_norm", "span_attention", "context")
HEADS = ("pooler", "transform", "mlm", "sbo", "nsp", "qa_outputs", "classifier")
LEFT_OUT = ("decoder",)


def plain(name: str) -> str:
    """The name in transformers' newest spelling, in which LayerNorm's gamma and beta are weight and bias."""
    return re.sub(r"(?<=\.)gamma$", "weight", re.sub(r"(?<=\.)beta$", "bias", name))


class Names(NamedTuple):
    """transformers' names of the tensors of a family.

    title: the family's name, for people.
    word: the tensor of the word embeddings, which every file has.
    base: the beginning of the names that only files of a class with a head have.
    layer: the beginning of the names of all layers' tensors.
    sizes: a size of our model -> a tensor that has this size, and its axis; "vocab_size" stands for the rows of the
        word table. With the number of layers these sizes decide the shape of every tensor of the encoder.
    tied: tensors that many files hold twice: the name of the copy -> the name of the original.
    canonical: a name in any of transformers' spellings -> the name that the table has.
    heads: transformers' class ("" where it is not known) -> our heads that its files may hold, each with the beginning
        of the names by which a file is known to have the head.
    views: (parameters, rows of transformers' vocabulary) -> the name of each tensor -> the tensor, as a view of ours.
    complete: gives parameters that are in no tensor the values that they have in a fresh model.
    """

    title: str
    word: str
    base: str
    layer: str
    sizes: Mapping[str, tuple[str, int]]
    tied: Mapping[str, str]
    canonical: Callable[[str], str]
    heads: Callable[[str], Mapping[str, str]]
    views: Callable[[Params, int], dict[str, np.ndarray]]
    complete: Callable[[Params], None]


class Views(dict[str, np.ndarray]):
    """transformers' name -> the tensor, as a view of ours. Parameters without a bias have no view of one."""

    def norm(self, name: str, tree: Params, layer: int | tuple = ()) -> None:
        """A LayerNorm's parameters; `layer` picks those of one layer where they are stacked."""
        self[f"{name}.weight"] = tree["scale"][layer]
        if "bias" in tree:
            self[f"{name}.bias"] = tree["bias"][layer]

    def linear(self, name: str, kernel: np.ndarray, bias: np.ndarray | None, inputs: int) -> None:
        """A torch Linear's weight is [out, in]; ours is [in, out], either side possibly in several axes."""
        self[f"{name}.weight"] = kernel.reshape(inputs, -1).T
        if bias is not None:
            self[f"{name}.bias"] = bias.reshape(-1)

    def dense(self, name: str, tree: Params) -> None:
        """A linear map with one axis of inputs that is not stacked."""
        self.linear(name, tree["kernel"], tree.get("bias"), tree["kernel"].shape[0])

    def sbo(self, tree: Params, vocab_size: int) -> None:
        """The span-boundary head."""
        self[f"{SBO}.position_embeddings.weight"] = tree["offset"]
        for number in (1, 2):
            self.dense(f"{SBO}.mlp_layer_norm.linear{number}", tree[f"dense_{number}"])
            self.norm(f"{SBO}.mlp_layer_norm.layer_norm{number}", tree[f"norm_{number}"])
        self[f"{SBO}.bias"] = tree["bias"][:vocab_size]
