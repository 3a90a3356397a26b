"""Turns examples in memory into predictions, for files, standard input and Python callers.

Invariant: every example gets one prediction, in the order of the examples. `Answerer.warm_up` compiles every program
that later requests need, whatever their texts are.
"""

import sys
from collections.abc import Sequence

from jax.sharding import NamedSharding

from spanbert_jax.config import Config
from spanbert_jax.serving.engine import compute_all, cut_items
from spanbert_jax.serving.predictor import Params
from spanbert_jax.serving.task_model import TaskModel
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import Record, Role, Source, checked_record
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, Identified, ModelT, Prediction
from spanbert_jax.tasks.rows import Row, build_rows
from spanbert_jax.training import sharding
from spanbert_jax.training.progress import Show, Stage, quiet


class Answerer:
    """A fine-tuned model in memory, which is opened once and answers many requests."""

    def __init__(self, weights: Weights, params: Params, layout: NamedSharding):
        """params: of the weights. layout: divides the rows of a batch among the devices. Raises UserError where the
        weights were not fine-tuned."""
        self._model = TaskModel("task", weights, params, layout)
        self.task = self._model.task

    def warm_up(self, show: Show = quiet) -> None:
        """Compiles every program that a request may need; otherwise the first request that needs a program waits for
        its compilation."""
        for done, shape in enumerate(self._model.table, start=1):
            self._model.prepare(shape)
            show(done / len(self._model.table))

    def answer(self, records: Sequence[Record], warns: bool = True) -> list[Prediction]:
        """One prediction for each record, in their order. The id of a record without "id" is its index, from 0.

        records: texts, where the task reads texts, or objects with the task's fields: {"question": ..., "context":
        ...}, {"words": [...]}, ... warns: as for `answer_examples`. Raises UserError, naming records[i], where the task
        cannot read a record.
        """
        named = ((f"records[{i}]", str(i), record) for i, record in enumerate(records))
        examples = [self.task.parse(checked_record(record, place), place, name) for place, name, record in named]
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
        progress. warns: whether to say on stderr which examples were cut. Raises UserError as `compute_all`."""
        rows = built_rows(self.task, examples, source, role, enabled)
        if warns:
            warn_of_cuts(cut_items(rows), examples, source)
        count = sum(map(len, rows))
        with Stage("Predicting", enabled=enabled) as stage:
            outputs = compute_all(self._model, rows, lambda done: stage.update(done, f"{done * count:,.0f} rows"))
        return self._model.decode(examples, rows, outputs)


def open_answerer(weights: Weights) -> Answerer:
    """An `Answerer` with the weights, which must still be open; raises UserError where they were not fine-tuned."""
    return Answerer(weights, weights.load()[0], sharding.batch_sharding(sharding.make_mesh(Config().mesh)))


def built_rows(
    task: FineTuning[ExampleT, ModelT], examples: Sequence[ExampleT], source: str, role: Role, enabled: bool
) -> list[list[Row]]:
    """The rows of each example, made by the task's worker processes. source: the name of the data in the progress
    display, which is shown where `enabled`."""
    with Stage(f"Building rows of {source}", enabled=enabled) as stage:
        return build_rows(
            examples,
            task.featuriser(role),
            task.config.corpus.workers,
            lambda done: stage.update(done, f"{done * len(examples):,.0f} examples"),
        )


def warn_of_cuts(cut: Sequence[int], examples: Sequence[Identified], source: str) -> None:
    """Says on stderr how many examples lost text because it did not fit, and which was the first. cut: their
    numbers."""
    if cut:
        print(
            f"warning: {source}: {len(cut):,} of {len(examples):,} examples are longer than a row and were cut; "
            f"the first: {examples[cut[0]].id}",
            file=sys.stderr,
        )
