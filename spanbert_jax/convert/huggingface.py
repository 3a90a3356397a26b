"""The tensors of Hugging Face's models beside our parameters: an import and an export.

Invariant: one table of views serves both directions. `named_views` shows every parameter of ours as the tensors that
transformers has for it. An export copies out of those views and an import copies into them, so both are bitwise, and
neither can lose a value that the other one finds. A family's table is a file of its own: `bert.py`, `modernbert.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert import bert, modernbert
from spanbert_jax.convert.names import SBO, Names, Params
from spanbert_jax.convert.tensor_files import Tensors
from spanbert_jax.errors import UserError

# A function from the heads of a file to the shapes (nested dicts of tuples) of all parameters of the encoder and of
# these heads. Each head comes with the size that the file alone decides: the labels of "classifier", the offsets of
# "sbo", 0 for the others. Callers hand this function in, because only the model knows the shapes.
Shapes = Callable[[Mapping[str, int]], dict[str, Any]]

NAMES: Mapping[str, Names] = {"bert": bert.NAMES, "modern": modernbert.NAMES}  # by `config.model.family`

# The heads whose size the file alone decides -> the tensor whose first axis has that size.
_SIZES = {"classifier": "classifier.weight", "sbo": f"{SBO}.position_embeddings.weight"}


class Coverage(NamedTuple):
    """How far a file's tensors and our parameters cover each other."""

    taken: tuple[str, ...]  # groups of parameters that the file fills: "embeddings", "encoder", "mlm", ...
    missing: tuple[str, ...]  # heads of pre-training that the file lacks
    left: tuple[str, ...]  # names of the file's tensors that no parameter takes


def named_views(params: Params, vocab_size: int, family: str = "bert") -> dict[str, np.ndarray]:
    """transformers' name -> the tensor, as a view of ours: writing to the view writes to `params`.

    vocab_size: as in config.json, the number of rows of transformers' tables. Our tables may have further rows of
    padding, which are in no view. family: a key of NAMES.
    """
    return NAMES[family].views(params, vocab_size)


def from_tensors(
    tensors: Tensors, model: ModelConfig, vocab_size: int, shapes: Shapes, source: str, architecture: str = ""
) -> tuple[Params, Coverage]:
    """Our parameters, float32, from tensors under any of transformers' spellings.

    vocab_size: as in config.json, the number of rows of the file's tables; further rows of our parameters are 0.
    shapes: see `Shapes`. architecture: transformers' class in config.json, "" where there is none. A pooler that equals
    `plain_pooler` is left out.
    Raises UserError, naming `source` and the tensor, where a tensor is missing, has another shape or is not finite,
    where the file has more layers than `model`, or where the two copies of a tied tensor differ.
    """
    names = NAMES[model.family]
    found = {names.canonical(name): read for name, read in tensors.items()}
    if names.word not in found:
        raise UserError(f"{source}: no tensor {names.word} (it has {_some(list(tensors))}); this is no {names.title}")
    for copy, original in names.tied.items():
        if copy in found:
            found.setdefault(original, found[copy])
    _check_tied(found, names, source)
    prefixes = names.heads(architecture)
    heads = {head: 0 for head, prefix in prefixes.items() if any(name.startswith(prefix) for name in found)}
    for head, name in _SIZES.items():
        if head in heads and name in found:
            heads[head] = (found[name]().shape or (0,))[0]
    params = _zeros(shapes(heads))
    names.complete(params)
    views = names.views(params, vocab_size)
    missing = [name for name in views if name not in found]
    if missing:
        raise UserError(f"{source}: {len(missing)} tensors are missing, {_some(missing)}; the file is not whole")
    beyond = [name for name in found if name.startswith(names.layer) and name not in views]
    if beyond:
        raise UserError(
            f"{source}: {_some(beyond)}: not in the {names.title} of {model.layers} layers that its configuration "
            "describes"
        )
    for name, view in views.items():
        _fill(view, found[name](), name, source)
    left = [n for n in found if n not in views and n not in names.tied and not n.endswith("position_ids")]
    if "pooler" in params and all(
        np.array_equal(params["pooler"][name], value) for name, value in plain_pooler(model.embed).items()
    ):
        del params["pooler"]  # `write_export` wrote it for an encoder without pooler.
    absent = [head for head in ("mlm", "sbo") if head not in heads]
    return params, Coverage(tuple(params), tuple(absent), tuple(sorted(left)))


def plain_pooler(embed: int) -> Params:
    """The pooler that is written where none was trained: the identity, whose output is the tanh of [CLS]'s state."""
    return {"kernel": np.eye(embed, dtype=np.float32), "bias": np.zeros(embed, np.float32)}


def _check_tied(found: Tensors, names: Names, source: str) -> None:
    """Raises UserError where a file has two copies of a tensor that is one parameter here, and the copies differ."""
    for copy, original in names.tied.items():
        if copy in found and not np.array_equal(found[copy](), found[original](), equal_nan=True):
            raise UserError(f"{source}: {copy} differs from {original}; here the two are always one")


def _fill(view: np.ndarray, tensor: np.ndarray, name: str, source: str) -> None:
    if tensor.shape != view.shape:
        raise UserError(f"{source}: {name} has shape {tensor.shape}; expected {view.shape}, as its configuration says")
    view[...] = tensor
    if not np.isfinite(view).all():
        bad = int(np.size(view) - np.count_nonzero(np.isfinite(view)))
        raise UserError(f"{source}: {name} has {bad} values that are not finite; such weights cannot be used")


def to_tensors(params: Params, vocab_size: int, dtype: np.dtype, family: str = "bert") -> dict[str, np.ndarray]:
    """transformers' names -> contiguous tensors of `dtype`. Views that are contiguous and of `dtype` are not copied.

    vocab_size, family: see `named_views`. Raises UserError where a value is not finite.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, view in named_views(params, vocab_size, family).items():
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
