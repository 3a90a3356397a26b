"""The tensors of Hugging Face's models beside our parameters: an import and an export.

Invariant: one table of views serves both directions. `named_views` shows every parameter of ours as the tensors that
transformers has for it. An export copies out of those views and an import copies into them, so both are bitwise, and
neither can lose a value that the other one finds. A family's table is a file of its own: `bert.py`, `modernbert.py`.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert import bert, modernbert
from spanbert_jax.convert.names import SBO, Names, Params
from spanbert_jax.convert.tensors import Tensor, Tensors
from spanbert_jax.errors import UserError, shortened

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
    found = check_sizes(tensors, model, vocab_size, source)
    names = NAMES[model.family]
    prefixes = names.heads(architecture)
    heads = {head: 0 for head, prefix in prefixes.items() if any(name.startswith(prefix) for name in found)}
    for head, name in _SIZES.items():
        if head in heads and name in found:
            heads[head] = (found[name].shape or (0,))[0]
    wanted = shapes(heads)
    # The shapes are compared before anything is allocated, with views of arrays that take no memory.
    _check_shapes(found, names.views(_arrays(wanted, _without_memory), vocab_size), names, model.layers, source)
    for copy, original in names.tied.items():
        if copy in found and not _are_equal(found[copy], found[original]):
            raise UserError(f"{source}: {copy} differs from {original}; here the two are always one")
    params = _arrays(wanted, functools.partial(np.zeros, dtype=np.float32))
    names.complete(params)
    views = names.views(params, vocab_size)
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


def check_sizes(tensors: Tensors, model: ModelConfig, vocab_size: int, source: str) -> Tensors:
    """The tensors under the names of the family's table, if the model's sizes are those of the tensors.

    vocab_size: as in config.json. Reads no values. Raises UserError, naming `source` and the first tensor that differs.
    """
    names = NAMES[model.family]
    found = {names.canonical(name): tensor for name, tensor in tensors.items()}
    if names.word not in found:
        raise UserError(f"{source}: no tensor {names.word} (it has {_some(list(tensors))}); this is no {names.title}")
    for copy, original in names.tied.items():
        if copy in found:
            found.setdefault(original, found[copy])
    numbers = {int(match[1]) for name in found if (match := re.match(rf"{names.layer}(\d{{1,9}})\.", name))}
    first = next(i for i in range(len(numbers) + 1) if i not in numbers)
    if first < model.layers:
        raise UserError(
            f"{source}: {names.layer}{first}. is missing, and its configuration says {model.layers} layers; the file "
            "is not whole, or the configuration is another model's"
        )
    for field, (name, axis) in names.sizes.items():
        if name not in found:
            raise UserError(f"{source}: the tensor {name} is missing; the file is not whole")
        size, shape = vocab_size if field == "vocab_size" else getattr(model, field), found[name].shape
        if len(shape) <= axis:
            raise UserError(f"{source}: {name} has shape {shape}; expected a matrix")
        if shape[axis] != size:
            expected = (*shape[:axis], size, *shape[axis + 1 :])
            raise UserError(f"{source}: {name} has shape {shape}; expected {expected}, as its configuration says")
    return found


def _check_shapes(found: Tensors, views: Mapping[str, np.ndarray], names: Names, layers: int, source: str) -> None:
    """Raises UserError where a tensor of `views` is missing or has another shape, or where there are further layers."""
    missing = [name for name in views if name not in found]
    if missing:
        raise UserError(f"{source}: {len(missing)} tensors are missing, {_some(missing)}; the file is not whole")
    beyond = [name for name in found if name.startswith(names.layer) and name not in views]
    if beyond:
        raise UserError(
            f"{source}: {_some(beyond)}: not in the {names.title} of {layers} layers that its configuration describes"
        )
    for name, view in views.items():
        shape = found[name].shape
        if shape != view.shape:
            raise UserError(f"{source}: {name} has shape {shape}; expected {view.shape}, as its configuration says")


def _are_equal(copy: Tensor, original: Tensor) -> bool:
    return copy.shape == original.shape and np.array_equal(copy(), original(), equal_nan=True)


def _fill(view: np.ndarray, tensor: np.ndarray, name: str, source: str) -> None:
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


def _arrays(shapes: Any, make: Callable[[tuple[int, ...]], np.ndarray]) -> Any:
    """A tree of arrays from a tree of shapes."""
    return {name: _arrays(of, make) for name, of in shapes.items()} if isinstance(shapes, dict) else make(shapes)


def _without_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape whose elements are all the same one."""
    return np.broadcast_to(np.float32(0), shape)


def _some(names: list[str]) -> str:
    return ", ".join(shortened(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
