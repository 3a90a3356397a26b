"""Opens trained weights: a checkpoint of this project, or weights that others publish.

Invariant: weights that open here can be exported, inspected and trained further, and come with their vocabulary.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.convert.huggingface import Coverage
from spanbert_jax.convert.names import Params
from spanbert_jax.convert.published_weights import open_published_weights
from spanbert_jax.errors import UserError, shortened
from spanbert_jax.files import DIGEST
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.text.tokenizer import Tokenizer, load_tokenizer
from spanbert_jax.training.checkpoint import (
    TOKENIZER,
    find_checkpoint,
    is_run,
    read_metadata,
    read_params,
    read_shapes,
    run_of,
)
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.progress import metric_records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Trained weights with their description, which keeps no arrays: `load` reads them.

    Opening a workdir reads the arrays of its checkpoint once before that, to skip the checkpoint if it is damaged.
    """

    source: str  # the checkpoint of a run; the path of others' weights
    kind: str  # for people: "a checkpoint of spanbert_jax", "a Hugging Face directory", ...
    config: Config  # the run's; for others' weights the defaults, with these weights' model, vocabulary and task
    tokenizer: Tokenizer
    # (the parameters without `untrained` heads, which tensors were taken, missing or left alone)
    load: Callable[[], tuple[Params, Coverage]]
    labels: tuple[str, ...] = ()  # of a classifier, in its order
    span_boundary: tuple[int, int] | None = None  # (offsets, width) of the span-boundary head's table
    notes: tuple[str, ...] = ()  # lines for people about others' weights
    metadata: Metadata | None = None  # of a checkpoint of this project

    @property
    def step(self) -> int:
        """The run's updates of the parameters so far; 0 for others' weights."""
        return self.metadata.step if self.metadata else 0


@contextlib.contextmanager
def open_weights(path: Path, vocab: Path | None = None) -> Iterator[Weights]:
    """The weights of a run of this project, or weights that others publish.

    path: a workdir (its best checkpoint is opened, or its newest one where none is best), a checkpoint in a workdir, or
    a path that `open_published_weights` takes. vocab: as there. Raises UserError where there are no weights, or they
    are damaged, or no vocabulary fits them.
    """
    if is_run(epath.Path(path)):
        yield _open_run(path)
        return
    with open_published_weights(path, vocab) as published:
        tokenizer = published.tokenizer
        names = ("kind", "lowercase", "vocab_size")
        settings = dataclasses.replace(Config().tokenizer, **{name: getattr(tokenizer, name) for name in names})
        shapes = functools.partial(parameter_shapes, published.model, tokenizer.vocab_size)
        yield Weights(
            source=str(path),
            kind=published.kind,
            config=Config(model=published.model, tokenizer=settings, task=published.task or Config().task),
            tokenizer=tokenizer,
            load=lambda: published.load(shapes),
            labels=published.labels,
            span_boundary=published.span_boundary,
            notes=published.notes,
        )


def _open_run(path: Path) -> Weights:
    checkpoint = find_checkpoint(epath.Path(path))
    metadata = read_metadata(checkpoint)
    shapes = read_shapes(checkpoint)
    tokenizer = load_tokenizer(Path(run_of(checkpoint)) / TOKENIZER)
    _check_sizes(metadata.config.model, tokenizer.vocab_size, shapes, checkpoint)
    apart = untrained(metadata.config, shapes)
    shapes = {group: of for group, of in shapes.items() if group not in apart}
    # The config may name kernels of the machine that trained; this machine may lack them.
    compute = dataclasses.replace(metadata.config.compute, attention="auto", pointwise="auto")

    def load() -> tuple[Params, Coverage]:
        params = {group: of for group, of in read_params(checkpoint).items() if group not in apart}
        missing = tuple(head.name for head in pretraining_heads.HEADS if not (head.name in params or head.optional))
        return params, Coverage(tuple(params), missing, ())

    return Weights(
        source=str(checkpoint),
        kind="a checkpoint of spanbert_jax",
        config=dataclasses.replace(metadata.config, compute=compute),
        tokenizer=tokenizer,
        load=load,
        labels=metadata.labels,
        span_boundary=shapes[pretraining_heads.SBO.name]["offset"] if pretraining_heads.SBO.name in shapes else None,
        metadata=metadata,
    )


def untrained(config: Config, groups: Collection[str]) -> tuple[str, ...]:
    """The heads among a checkpoint's groups of parameters that are as they were drawn: SBO's, of a run without its loss
    and without the span decoder, which is built on it."""
    sbo = pretraining_heads.SBO.name
    drawn = (
        config.task == "pretraining" and config.train.sbo_weight == 0 and pretraining_heads.DECODER.name not in groups
    )
    return (sbo,) if drawn and sbo in groups else ()


def _check_sizes(model: ModelConfig, vocab_size: int, shapes: Any, checkpoint: epath.Path) -> None:
    """Raises UserError where the encoder of a configuration has other shapes than the arrays of the checkpoint, before
    anything is made of the configuration's sizes. shapes: those of the arrays, as `read_shapes` returns them."""
    try:
        wanted = _by_path(parameter_shapes(model, vocab_size, {}))
    except (ArithmeticError, ValueError, TypeError) as error:  # heads that do not divide the width, ...
        raise UserError(f"{checkpoint}: no model has the sizes in its metadata ({shortened(error)})") from error
    for path, found in _by_path(shapes).items():
        if wanted.get(path, found) != found:
            raise UserError(
                f"{checkpoint}: its array {path} has shape {found}, and its metadata describes a model with "
                f"{wanted[path]}; restore the one that was changed"
            )


def _by_path(shapes: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): shape for path, shape in leaves}


def training_of(weights: Weights) -> dict[str, Any]:
    """The training of the weights as a JSON object: a run's metadata with the evaluation at the checkpoint's step; for
    others' weights their source."""
    saved = weights.metadata
    if saved is None:
        return {"step": 0, "imported_from": weights.source}
    of_the_files = ("left_alone", "labels", "checksums", DIGEST)
    known = {name: value for name, value in saved.to_json().items() if value and name not in of_the_files}
    known["step"] = saved.step
    if saved.imported_from:
        del known["config"]  # apart from the model's sizes, its fields are defaults
        return known
    records = metric_records(run_of(epath.Path(weights.source)) / "metrics.jsonl")
    at_step = (record for _, record in records if record["step"] == saved.step)
    held_out = {name: value for record in at_step for name, value in record.items() if name.startswith("held_out/")}
    return known | ({"evaluation": held_out} if held_out else {})
