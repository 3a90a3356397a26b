"""Turns examples in memory into predictions, for files, standard input, Python callers and a run's own evaluation.

Invariant: every example gets one prediction, in the order of the examples. `Answerer.warm_up` compiles every program
that later requests need, whatever their texts are.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import jax
from jax.sharding import NamedSharding

from spanbert_jax.config import Config, reads_spans
from spanbert_jax.serving.predictor import Params, Predictor
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import Record, Role, Source
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, Identified, Learnt, ModelT, Prediction
from spanbert_jax.tasks.registry import AnyTask, finetuning_task
from spanbert_jax.tasks.rows import Rows, build_rows, fingerprint, load_rows, save_rows
from spanbert_jax.tasks.settings import values
from spanbert_jax.training import sharding
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.progress import Show, Stage, quiet


def trained_task(weights: Weights) -> AnyTask:
    """The task that the weights were fine-tuned for; raises UserError where they were not fine-tuned."""
    saved = weights.metadata
    kind = finetuning_task(saved.task if saved else "of others' weights", weights.config)
    return kind(weights.config, weights.tokenizer, Learnt.from_metadata(saved) if saved else Learnt())


def kept_metrics(metadata: Metadata | None) -> dict[str, float]:
    """The held-out metrics, by name, for which a checkpoint was kept as the best one; {} for any other checkpoint."""
    saved = metadata.evaluation if metadata else {}
    return {name.removeprefix("held_out/"): value for name, value in saved.items()}


class TaskPredictor(Generic[ExampleT, ModelT]):
    """Predicts with a task's model. Every call takes the parameters, so a run can evaluate while it trains."""

    def __init__(self, task: FineTuning[ExampleT, ModelT], layout: NamedSharding):
        """layout: divides the rows of a batch among the devices."""
        self._task = task
        model = task.model(layout.mesh.devices.flat[0].platform)
        self._predictor = Predictor(functools.partial(task.outputs, model), layout)
        self.place = self._predictor.place

    def warm_up(self, params: Params, show: Show = quiet) -> None:
        """Compiles a program for every shape that the task's batches may have."""
        self._predictor.warm_up(params, self._task.eval_shapes(self._predictor.multiple), show)

    def predictions(
        self,
        params: Params,
        examples: Sequence[ExampleT],
        rows: Rows,
        tuned: Mapping[str, float],
        show: Show = quiet,
    ) -> list[Prediction]:
        """One prediction for each example. rows: the examples' rows. tuned: as for `FineTuning.decode`."""
        if not examples:
            return []
        batches = self._task.eval_batches(rows, self._predictor.multiple)
        return self._task.decode(examples, rows, self._predictor.outputs(params, batches, len(rows), show), tuned)

    def shown(
        self, params: Params, examples: Sequence[ExampleT], rows: Rows, tuned: Mapping[str, float], enabled: bool
    ) -> list[Prediction]:
        """`predictions`, with a progress display where `enabled`."""
        with Stage("Predicting", enabled=enabled) as stage:
            return self.predictions(
                params, examples, rows, tuned, lambda done: stage.update(done, f"{done * len(rows):,.0f} rows")
            )


class Answerer:
    """A fine-tuned model in memory, which is opened once and answers many requests."""

    def __init__(self, task: AnyTask, params: Params, tuned: Mapping[str, float]):
        """params: the task's parameters, which are put on every device. tuned: as for `FineTuning.decode`."""
        self.task, self._tuned = task, tuned
        mesh = sharding.make_mesh(Config().mesh)
        self._predictor: TaskPredictor[Any, Any] = TaskPredictor(task, sharding.batch_sharding(mesh))
        self._params = self._predictor.place(params)

    def warm_up(self, show: Show = quiet) -> None:
        """Compiles every program that a request may need; otherwise the first request that needs a program waits for
        its compilation."""
        self._predictor.warm_up(self._params, show)

    def answer(self, records: Sequence[Record], warns: bool = True) -> list[Prediction]:
        """One prediction for each record, in their order. The id of a record without "id" is its index, from 0.

        records: texts, where the task reads texts, or objects with the task's fields: {"question": ..., "context":
        ...}, {"words": [...]}, ... warns: as for `answer_examples`. Raises UserError, naming records[i], where the task
        cannot read a record.
        """
        examples = [self.task.parse(record, f"records[{i}]", str(i)) for i, record in enumerate(records)]
        return self.answer_examples(examples, "the records", "predict", False, warns)

    def answer_source(self, source: Source, role: Role, enabled: bool) -> tuple[list[Identified], list[Prediction]]:
        """(examples, one prediction for each example) of a file, of a file's contents, or of a TFDS name.

        role: "predict", or "dev", where every example must have a label that the task knows. enabled: whether to show
        progress. Warnings go to stderr. Raises UserError where the data cannot be read.
        """
        examples, warnings = self.task.read(self.task.config, source, role, self.task.learnt)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if role == "dev":
            self.task.check(examples, str(source))
        return examples, self.answer_examples(examples, str(source), role, enabled)

    def answer_examples(
        self, examples: Sequence[Identified], source: str, role: Role, enabled: bool, warns: bool = True
    ) -> list[Prediction]:
        """One prediction for each example. source: the name of the data in warnings. enabled: whether to show
        progress. warns: whether to say on stderr which examples were cut."""
        rows = rows_of(self.task, examples, source, role, None, enabled)
        if warns:
            warn_of_cuts(rows, examples, source)
        return self._predictor.shown(self._params, examples, rows, self._tuned, enabled)


def open_answerer(weights: Weights) -> Answerer:
    """An `Answerer` with the weights, which must still be open; raises UserError where they were not fine-tuned."""
    task = trained_task(weights)
    return Answerer(task, weights.load()[0], kept_metrics(weights.metadata))


def rows_of(
    task: FineTuning[ExampleT, ModelT],
    examples: Sequence[ExampleT],
    source: str,
    role: Role,
    cache: Path | None,
    enabled: bool,
) -> Rows:
    """The examples' rows, from the directory `cache` or built.

    Rows in the cache are used where they were made from the same data, vocabulary, labels and declared settings. Rows
    that are built are saved there, unless `cache` is None. enabled: whether to show progress.
    """
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
    cut = sorted(set(rows.example[rows.plain["cut"] > 0])) if "cut" in rows.plain else []
    if cut:
        print(
            f"warning: {source}: {len(cut):,} of {len(examples):,} examples are longer than a row and were cut; "
            f"the first: {examples[cut[0]].id}",
            file=sys.stderr,
        )
