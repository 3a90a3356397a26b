"""Trained weights, wherever they come from: a run of ours, or what others publish.

Invariant: whatever opens here can be exported, inspected, or trained further, and brings its own vocabulary.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.convert.huggingface import Coverage, Params
from spanbert_jax.convert.published_weights import open_published_weights
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.model.pretraining_heads import HEADS, SBO
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Trained weights and what describes them. `load` alone reads the arrays; a run's step is in its metadata."""

    source: str  # the checkpoint of a run; the path of others' weights
    kind: str  # for people: "a checkpoint of spanbert_jax", "a Hugging Face directory", ...
    config: Config  # of the run; for others' weights the defaults with their model and vocabulary
    tokenizer: Tokenizer
    load: Callable[[], tuple[Params, Coverage]]
    labels: tuple[str, ...] = ()  # of a classifier
    span_boundary: tuple[int, int] | None = None  # (offsets, width) of the span-boundary head's table
    notes: tuple[str, ...] = ()  # of others' weights: lines for people
    metadata: Metadata | None = None  # saved with a checkpoint of ours

    @property
    def step(self) -> int:
        """Updates of the parameters in the run; 0 of others' weights."""
        return self.metadata.step if self.metadata else 0


@contextlib.contextmanager
def open_weights(path: Path, vocab: Path | None = None) -> Iterator[Weights]:
    """The weights of a run of ours, or others' published weights.

    path: a workdir (its best checkpoint, or its newest one), a checkpoint in it, or what `open_published_weights`
    takes. vocab: as there. Raises UserError where there are none, they are damaged, or have no vocabulary that fits.
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
            config=Config(model=published.model, tokenizer=settings),
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
    # A kernel that was named for the machine that trained need not run on this one.
    compute = dataclasses.replace(metadata.config.compute, attention="auto", pointwise="auto")

    def load() -> tuple[Params, Coverage]:
        params = read_params(checkpoint)
        return params, Coverage(tuple(params), tuple(head.name for head in HEADS if head.name not in params), ())

    return Weights(
        source=str(checkpoint),
        kind="a checkpoint of spanbert_jax",
        config=dataclasses.replace(metadata.config, compute=compute),
        tokenizer=load_tokenizer(Path(run_of(checkpoint)) / TOKENIZER),
        load=load,
        labels=metadata.labels,
        span_boundary=shapes[SBO.name]["offset"] if SBO.name in shapes else None,
        metadata=metadata,
    )


def training_of(weights: Weights) -> dict[str, Any]:
    """As JSON, what is known of the training of weights: of a run its metadata, with the evaluation at the checkpoint's
    step."""
    saved = weights.metadata
    if saved is None:
        return {"step": 0, "imported_from": weights.source}
    known = {name: value for name, value in saved.to_json().items() if value and name not in ("left_alone", "labels")}
    known["step"] = saved.step
    if saved.imported_from:
        del known["config"]  # sizes apart, its fields are defaults
        return known
    log = run_of(epath.Path(weights.source)) / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a killed run's last one may be half a line
    at_step = (row for row in rows if row["step"] == saved.step)
    held_out = {name: value for row in at_step for name, value in row.items() if name.startswith("held_out/")}
    return known | ({"evaluation": held_out} if held_out else {})
