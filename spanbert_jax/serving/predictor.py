"""Running a fine-tuned model over rows of every length, short ones not paid for as long ones.

Invariant: each row is computed once, and what comes back is in the rows' order, whatever the batches were.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from spanbert_jax.batches.feed import to_global
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, Identified, Learnt, ModelT, Prediction
from spanbert_jax.tasks.registry import AnyTask, finetuning_task
from spanbert_jax.tasks.rows import Rows, build_rows, fingerprint, load_rows, save_rows
from spanbert_jax.tasks.settings import values
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.progress import Stage

Outputs = list[dict[str, np.ndarray]]  # of each row

_POSITIONS = 8192  # in a batch; 16 rows of 512


def trained_task(weights: Weights) -> AnyTask:
    """The task that weights were fine-tuned for; raises UserError where they were not."""
    saved = weights.metadata
    kind = finetuning_task(saved.task if saved else "of others' weights", weights.config)
    return kind(weights.config, weights.tokenizer, Learnt.from_metadata(saved) if saved else Learnt())


class Predictor:
    """A task's model, compiled once for each of a handful of shapes."""

    def __init__(self, task: FineTuning[ExampleT, ModelT], layout: NamedSharding):
        """layout: of a batch's rows over the devices."""
        self._task, self._layout = task, layout
        self._shards = layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]
        model = task.model(layout.mesh.devices.flat[0].platform)
        self._everywhere = NamedSharding(layout.mesh, PartitionSpec())
        self._compute = jax.jit(functools.partial(task.outputs, model), out_shardings=self._everywhere)

    def place(self, params: Any) -> Any:
        """NumPy parameters, put on every device once and not with every batch."""
        return jax.device_put(params, self._everywhere)

    def outputs(self, params: Any, rows: Rows, show: Callable[[float], None] = lambda _: None) -> Outputs:
        """What `FineTuning.outputs` gives for every row."""
        if not len(rows):
            return []
        results: Outputs = [{} for _ in range(len(rows))]
        done = 0
        for indices, collated in self._task.eval_batches(rows, None, _POSITIONS, self._shards):
            batch = to_global(collated, self._layout)
            computed = {name: np.asarray(value) for name, value in self._compute(params, batch).items()}
            for place, row in enumerate(indices):
                if row >= 0:
                    results[row] = {name: value[place] for name, value in computed.items()}
                    done += 1
            show(done / len(rows))
        return results


def rows_of(
    task: FineTuning[ExampleT, ModelT],
    examples: Sequence[ExampleT],
    source: str,
    role: Role,
    cache: Path | None,
    enabled: bool,
) -> Rows:
    """The examples' rows: from the cache, where it has them for this data, vocabulary and declared settings, or built,
    with progress where `enabled`."""
    path = None
    if cache:
        made_from = {
            "task": task.task,
            "role": role,
            "tokenizer": task.tokenizer.fingerprint,
            "learnt": dataclasses.asdict(task.learnt),
            "config": values(task.config, task.settings),
        }
        path = cache / f"{role}-{fingerprint(source, made_from)[:16]}.npz"
        kept = load_rows(path)
        if kept is not None:
            return kept
    with Stage(f"Building rows of {source}", enabled=enabled) as stage:
        rows = build_rows(
            examples,
            task.featuriser(role),
            task.config.corpus.workers,
            lambda done: stage.update(done, f"{done * len(examples):,.0f} examples"),
        )
    if path and jax.process_index() == 0:
        save_rows(rows, path)
    return rows


def warn_of_cuts(rows: Rows, examples: Sequence[Identified], source: str) -> None:
    """Says on stderr how many examples lost text because it did not fit, and which was the first."""
    cut = np.unique(rows.example[rows.plain["cut"] > 0]) if "cut" in rows.plain else rows.example[:0]
    if len(cut):
        print(
            f"warning: {source}: {len(cut):,} of {len(examples):,} examples are longer than a row takes and were cut; "
            f"the first: {examples[cut[0]].id}",
            file=sys.stderr,
        )


def kept_metrics(metadata: Metadata | None) -> dict[str, float]:
    """The metrics of the evaluation that a checkpoint was kept for; none where there was no such."""
    saved = metadata.evaluation if metadata else {}
    return {name.removeprefix("held_out/"): value for name, value in saved.items()}


def write_jsonl(predictions: Sequence[Prediction], path: Path) -> None:
    """One JSON object a line."""
    aside = path.with_name(f"{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(prediction, ensure_ascii=False) + "\n")
    aside.replace(path)
