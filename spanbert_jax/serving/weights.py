"""Trained weights, wherever they come from: a run of ours, or what others publish.

Invariant: whatever opens here can be exported, inspected, or trained further, and brings its own vocabulary.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.convert.huggingface import Coverage, Params
from spanbert_jax.convert.published_weights import open_published_weights
from spanbert_jax.model.encoder import table_rows
from spanbert_jax.model.pretraining_heads import HEADS, SBO
from spanbert_jax.text.tokenizer import Tokenizer, load_tokenizer
from spanbert_jax.training.checkpoint import find_checkpoint, read_metadata, read_params, read_shapes
from spanbert_jax.training.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class Weights:
    """Trained weights; the tensors are read by `load` alone."""

    source: str
    kind: str  # what it is, for people
    config: Config  # of the run; for others' weights the defaults with their model and vocabulary
    tokenizer: Tokenizer
    notes: tuple[str, ...]  # of others' weights: lines for people
    labels: tuple[str, ...]  # of a classifier
    span_boundary: tuple[int, int] | None  # (offsets, width) of the span-boundary head's table
    step: int
    metadata: Metadata | None  # saved with a checkpoint of ours
    load: Callable[[], tuple[Params, Coverage]]


def is_run(path: Path) -> bool:
    """Whether `path` is a workdir of ours or one of its checkpoints."""
    return any((path / name).is_dir() for name in ("checkpoints", "best", "state"))


@contextlib.contextmanager
def open_weights(path: Path, vocab: Path | None = None) -> Iterator[Weights]:
    """The weights of a run of ours, or others' published weights.

    path: a workdir (its best checkpoint, or its newest one), a checkpoint in it, or what `open_published_weights`
    takes. vocab: as there. Raises UserError where there are none, they are damaged, or have no vocabulary that fits.
    """
    if is_run(path):
        yield _open_run(path)
        return
    with open_published_weights(path, vocab) as published:
        tokenizer = published.tokenizer
        config = Config(model=published.model)
        config = dataclasses.replace(
            config,
            tokenizer=dataclasses.replace(
                config.tokenizer, kind=tokenizer.kind, lowercase=tokenizer.lowercase, vocab_size=tokenizer.vocab_size
            ),
        )
        rows = table_rows(published.model, tokenizer.vocab_size)
        yield Weights(
            str(path),
            published.kind,
            config,
            tokenizer,
            published.notes,
            published.labels,
            published.span_boundary,
            0,
            None,
            lambda: published.load(rows),
        )


def _open_run(path: Path) -> Weights:
    checkpoint = find_checkpoint(epath.Path(path))
    metadata = read_metadata(checkpoint)
    tokenizer = load_tokenizer(Path(checkpoint.parent.parent) / "tokenizer")
    shapes = read_shapes(checkpoint)
    config = metadata.config
    # A kernel that was named for the machine that trained need not run on this one.
    config = dataclasses.replace(
        config, compute=dataclasses.replace(config.compute, attention="auto", pointwise="auto")
    )

    def load() -> tuple[Params, Coverage]:
        params = read_params(checkpoint)
        return params, Coverage(tuple(params), tuple(head.name for head in HEADS if head.name not in params), ())

    return Weights(
        str(checkpoint),
        "a checkpoint of spanbert_jax",
        config,
        tokenizer,
        (),
        metadata.labels,
        shapes[SBO.name]["offset"] if SBO.name in shapes else None,
        metadata.step,
        metadata,
        load,
    )
