"""The rows of a run's data, which are made once and kept in the workdir.

Invariant: kept rows are used where they were made from the same data, vocabulary, labels and declared settings, and
only there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spanbert_jax.config import reads_spans
from spanbert_jax.serving.answers import built_rows
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, ModelT
from spanbert_jax.tasks.rows import Rows, fingerprint, load_rows, make_rows, save_rows
from spanbert_jax.tasks.settings import values


def rows_of(
    task: FineTuning[ExampleT, ModelT],
    examples: Sequence[ExampleT],
    source: str,
    role: Role,
    cache: Path | None,
    enabled: bool,
) -> Rows:
    """The examples' rows, from the directory `cache`, or built and, unless `cache` is None, saved there. enabled:
    whether to show progress."""
    path = None
    if cache:
        made_from: dict[str, Any] = {
            "task": task.task,
            "role": role,
            "tokenizer": task.tokenizer.fingerprint,
            "learnt": dataclasses.asdict(task.learnt),
            "config": values(task.config, task.settings),
        }
        if reads_spans(task.config.model):
            corpus = task.config.corpus
            found_in = [corpus.language, corpus.sentences]
            made_from["spans"] = {"rules": corpus.spans, "files": task.finder.files, "in": found_in}
        path = cache / f"{role}-{fingerprint(source, made_from)[:16]}.npz"
        kept = load_rows(path)
        if kept is not None:
            return kept
    rows = make_rows(built_rows(task, examples, source, role, enabled))
    if path and jax.process_index() == 0:
        save_rows(rows, path)
    return rows
