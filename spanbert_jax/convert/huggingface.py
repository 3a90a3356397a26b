"""The tensors of Hugging Face's BERT beside our parameters: names, shapes and layouts.

Invariant: one table of views serves both directions. `named_views` shows every parameter of ours as the tensors that
transformers has for it. An export copies out of those views and an import copies into them, so both are bitwise, and
neither can lose a value that the other one finds. Names and shapes are those of transformers 5.23,
models/bert/modeling_bert.py, and for the span-boundary head those of the authors' models/pair_bert.py:338-402.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert.tensor_files import Tensors
from spanbert_jax.errors import UserError

Params = dict[str, Any]  # nested dicts of NumPy arrays

# A function from the heads of a file to the shapes (nested dicts of tuples) of all parameters of the encoder and of
# these heads. Each head comes with the size that the file alone decides: the labels of "classifier", the offsets of
# "sbo", 0 for the others. Callers hand this function in, because only the model knows the shapes.
Shapes = Callable[[Mapping[str, int]], dict[str, Any]]

_WORD, _DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder"
SBO = "cls.pair_target_predictions"

# Tensors that many files hold twice: the name of the copy -> the name of the original.
_TIED = {
    f"{_DECODER}.weight": _WORD,
    f"{_DECODER}.bias": "cls.predictions.bias",
    f"{SBO}.decoder.weight": _WORD,
}

# Our heads -> the prefix of the names by which a file is known to have the head.
HEADS = {
    "pooler": "bert.pooler.",
    "mlm": "cls.predictions.transform.",
    "sbo": f"{SBO}.",
    "qa_outputs": "qa_outputs.",
    "classifier": "classifier.",
}


class Coverage(NamedTuple):
    """How far a file's tensors and our parameters cover each other."""

    taken: tuple[str, ...]  # groups of parameters that the file fills: "embeddings", "encoder", "mlm", ...
    missing: tuple[str, ...]  # heads of pre-training that the file lacks
    left: tuple[str, ...]  # names of the file's tensors that no parameter takes


def named_views(params: Params, vocab_size: int) -> dict[str, np.ndarray]:
    """transformers' name -> the tensor, as a view of ours: writing to the view writes to `params`.

    vocab_size: as in config.json, the number of rows of transformers' tables. Our tables may have further rows of
    padding, which are in no view.
    """
    views: dict[str, np.ndarray] = {}

    def norm(name: str, tree: Params, layer: int | tuple = ()) -> None:
        views[f"{name}.weight"], views[f"{name}.bias"] = tree["scale"][layer], tree["bias"][layer]

    def linear(name: str, kernel: np.ndarray, bias: np.ndarray, inputs: int) -> None:
        """A torch Linear's weight is [out, in]; ours is [in, out], either side possibly in several axes."""
        views[f"{name}.weight"], views[f"{name}.bias"] = kernel.reshape(inputs, -1).T, bias.reshape(-1)

    def dense(name: str, tree: Params) -> None:
        linear(name, tree["kernel"], tree["bias"], tree["kernel"].shape[0])

    embeddings, embed = params["embeddings"], params["embeddings"]["word"].shape[1]
    views[_WORD] = embeddings["word"][:vocab_size]
    views["bert.embeddings.position_embeddings.weight"] = embeddings["position"]
    views["bert.embeddings.token_type_embeddings.weight"] = embeddings["token_type"]
    norm("bert.embeddings.LayerNorm", embeddings["norm"])
    attention, mlp = params["encoder"]["attention"], params["encoder"]["mlp"]
    for layer in range(len(mlp["norm"]["scale"])):
        name = f"bert.encoder.layer.{layer}"
        kernel, bias = attention["qkv"]["kernel"][layer], attention["qkv"]["bias"][layer]
        for index, part in enumerate(("query", "key", "value")):
            linear(f"{name}.attention.self.{part}", kernel[:, index], bias[index], embed)
        linear(
            f"{name}.attention.output.dense",
            attention["output"]["kernel"][layer],
            attention["output"]["bias"][layer],
            embed,
        )
        norm(f"{name}.attention.output.LayerNorm", attention["norm"], layer)
        linear(f"{name}.intermediate.dense", mlp["up"]["kernel"][layer], mlp["up"]["bias"][layer], embed)
        down = mlp["down"]["kernel"][layer]
        linear(f"{name}.output.dense", down, mlp["down"]["bias"][layer], down.shape[0])
        norm(f"{name}.output.LayerNorm", mlp["norm"], layer)
    if "pooler" in params:
        dense("bert.pooler.dense", params["pooler"])
    if "mlm" in params:
        dense("cls.predictions.transform.dense", params["mlm"]["dense"])
        norm("cls.predictions.transform.LayerNorm", params["mlm"]["norm"])
        views["cls.predictions.bias"] = params["mlm"]["bias"][:vocab_size]
    if "sbo" in params:
        views[f"{SBO}.position_embeddings.weight"] = params["sbo"]["offset"]
        for number in (1, 2):
            dense(f"{SBO}.mlp_layer_norm.linear{number}", params["sbo"][f"dense_{number}"])
            norm(f"{SBO}.mlp_layer_norm.layer_norm{number}", params["sbo"][f"norm_{number}"])
        views[f"{SBO}.bias"] = params["sbo"]["bias"][:vocab_size]
    for head in ("qa_outputs", "classifier"):
        if head in params:
            dense(head, params[head])
    return views


def canonical(name: str) -> str:
    """The name in transformers' newest spelling: LayerNorm's gamma and beta are weight and bias, the encoder's names
    begin with "bert."."""
    name = re.sub(r"(?<=\.)gamma$", "weight", re.sub(r"(?<=\.)beta$", "bias", name))
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def from_tensors(
    tensors: Tensors, model: ModelConfig, vocab_size: int, shapes: Shapes, source: str
) -> tuple[Params, Coverage]:
    """Our parameters, float32, from tensors under any of transformers' spellings.

    vocab_size: as in config.json, the number of rows of the file's tables; further rows of our parameters are 0.
    shapes: see `Shapes`. A pooler that equals `plain_pooler` is left out.
    Raises UserError, naming `source` and the tensor, where a tensor is missing, has another shape or is not finite,
    where the file has more layers than `model`, or where the two copies of a tied tensor differ.
    """
    found = {canonical(name): read for name, read in tensors.items()}
    if _WORD not in found:
        raise UserError(f"{source}: no tensor {_WORD} (it has {_some(list(tensors))}); this is no BERT")
    if f"{_DECODER}.bias" in found:
        found.setdefault("cls.predictions.bias", found[f"{_DECODER}.bias"])
    _check_tied(found, source)
    heads = {head: 0 for head, prefix in HEADS.items() if any(name.startswith(prefix) for name in found)}
    for head, name in (("classifier", "classifier.weight"), ("sbo", f"{SBO}.position_embeddings.weight")):
        if head in heads and name in found:
            heads[head] = (found[name]().shape or (0,))[0]
    params = _zeros(shapes(heads))
    views = named_views(params, vocab_size)
    missing = [name for name in views if name not in found]
    if missing:
        raise UserError(f"{source}: {len(missing)} tensors are missing, {_some(missing)}; the file is not whole")
    beyond = [name for name in found if name.startswith("bert.encoder.layer.") and name not in views]
    if beyond:
        raise UserError(
            f"{source}: {_some(beyond)}: not in a BERT of {model.layers} layers, which its configuration says it is"
        )
    for name, view in views.items():
        _fill(view, found[name](), name, source)
    left = [n for n in found if n not in views and n not in _TIED and not n.endswith("position_ids")]
    if "pooler" in params and all(
        np.array_equal(params["pooler"][name], value) for name, value in plain_pooler(model.embed).items()
    ):
        del params["pooler"]  # `write_export` wrote it for an encoder without pooler.
    absent = [head for head in ("mlm", "sbo") if head not in heads]
    return params, Coverage(tuple(params), tuple(absent), tuple(sorted(left)))


def plain_pooler(embed: int) -> Params:
    """The pooler that is written where none was trained: the identity, whose output is the tanh of [CLS]'s state."""
    return {"kernel": np.eye(embed, dtype=np.float32), "bias": np.zeros(embed, np.float32)}


def _check_tied(found: Tensors, source: str) -> None:
    """Raises UserError where a file has two copies of a tensor that is one parameter here, and the copies differ."""
    for copy, original in _TIED.items():
        if copy in found and not np.array_equal(found[copy](), found[original](), equal_nan=True):
            raise UserError(f"{source}: {copy} differs from {original}; here the two are always one")


def _fill(view: np.ndarray, tensor: np.ndarray, name: str, source: str) -> None:
    if tensor.shape != view.shape:
        raise UserError(f"{source}: {name} has shape {tensor.shape}; expected {view.shape}, as its configuration says")
    view[...] = tensor
    if not np.isfinite(view).all():
        bad = int(np.size(view) - np.count_nonzero(np.isfinite(view)))
        raise UserError(f"{source}: {name} has {bad} values that are not finite; such weights cannot be used")


def to_tensors(params: Params, vocab_size: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """transformers' names -> contiguous tensors of `dtype`. Views that are contiguous and of `dtype` are not copied.

    vocab_size: see `named_views`. Raises UserError where a value is not finite.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, view in named_views(params, vocab_size).items():
        if not np.isfinite(view).all():
            raise UserError(f"parameter {name} has values that are not finite; this checkpoint cannot be exported")
        tensors[name] = np.ascontiguousarray(view, dtype=dtype)
    return tensors


def _zeros(shapes: Any) -> Any:
    return (
        {name: _zeros(of) for name, of in shapes.items()} if isinstance(shapes, dict) else np.zeros(shapes, np.float32)
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
