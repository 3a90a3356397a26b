"""A fine-tuning run: makes rows of the data; for each trial trains, keeps the best checkpoint and predicts; reports.

Invariant: as in pre-training, a batch is a pure function of (seed, step), and a run goes on from its last checkpoint.
"""

import dataclasses
import functools
import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from spanbert_jax.batch import Batch
from spanbert_jax.batches.feed import feed
from spanbert_jax.config import Config, reads_spans
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory, new_directory, written_aside
from spanbert_jax.runs.devices import check_devices
from spanbert_jax.runs.kept_rows import rows_of
from spanbert_jax.runs.prepare import given_tokenizer
from spanbert_jax.runs.start_from import StartingWeights, adopt, initial_params
from spanbert_jax.runs.task_predictor import TaskPredictor
from spanbert_jax.serving.answers import warn_of_cuts
from spanbert_jax.serving.prediction_files import write_for_scorer, write_jsonl
from spanbert_jax.serving.task_model import kept_metrics
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, ModelT, TrainBatches
from spanbert_jax.tasks.row_spans import without_effect
from spanbert_jax.tasks.rows import Rows, fingerprint
from spanbert_jax.tasks.settings import declared
from spanbert_jax.text.tokenizer import Tokenizer, load_tokenizer
from spanbert_jax.training import loop, sharding
from spanbert_jax.training.checkpoint import find_checkpoint, read_metadata, read_params
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.progress import Show
from spanbert_jax.training.together import decided, together
from spanbert_jax.training.workdir import claim_workdir, open_workdir
from spanbert_jax.training.workdir_lock import running_alone

_WIDEST = 10_000  # characters of a line


@dataclasses.dataclass(frozen=True)
class Data(Generic[ExampleT, ModelT]):
    """A task with its dev examples, and with the rows of training and dev data."""

    task: FineTuning[ExampleT, ModelT]
    train: Rows
    examples: list[ExampleT]  # of dev
    dev: Rows
    baseline: dict[str, float]  # the metrics of a guess without a model
    fingerprint: str  # of the contents of training and dev data, and of the files of rules for spans


def run(kind: type[FineTuning[ExampleT, ModelT]], config: Config, path: str) -> bool:
    """Trains every trial, each from its newest checkpoint, and reports. kind: the task; path: the workdir.

    Returns False where the run was asked to stop. Raises UserError where configuration, data, weights or workdir do not
    fit together or cannot be read.
    """
    with StartingWeights(config) as start:
        config = adopt(config, epath.Path(path), start)
        check_devices(config)
        workdir = open_workdir(config, path)
        with running_alone(workdir):
            tokenizer = task_tokenizer(kind, config, Path(workdir), start)
            prepare = functools.partial(prepare_data, kind, config, tokenizer, Path(workdir) / "rows")
            data = together("prepare the data", prepare)
            claim = functools.partial(claim_workdir, config, workdir)
            results = _train(config, workdir, tokenizer, data, start, claim)
            if results and jax.process_index() == 0:
                report(data.task.best, results, data.baseline, Path(workdir))
    return bool(results)


def _train(
    config: Config,
    workdir: epath.Path,
    tokenizer: Tokenizer,
    data: Data[ExampleT, ModelT],
    start: StartingWeights,
    claim: Callable[[], None],
) -> list[dict[str, float]]:
    """Runs every trial; returns the metrics of each, or [] where the run was asked to stop. claim: as of `loop.run`."""
    results = []
    for trial in range(config.trials):
        place = workdir / f"trial_{trial}" if config.trials > 1 else workdir
        make_directory(place, "--workdir")
        one, recipe = trial_recipe(config, data, tokenizer, start, trial)
        if not loop.run(one, recipe, place, claim).finished:
            if jax.process_index() == 0:
                print("\nStopped; the same command goes on.")
            return []
        if place != workdir:
            copy = functools.partial(shutil.copytree, workdir / "tokenizer", place / "tokenizer", dirs_exist_ok=True)
            together("copy the vocabulary", copy, jax.process_index() == 0)
        results.append(_predict(one, data, Path(place)))
    return results


def trial_recipe(
    config: Config, data: Data[ExampleT, ModelT], tokenizer: Tokenizer, start: StartingWeights, trial: int
) -> tuple[Config, loop.Recipe]:
    """The configuration of one trial, and the training loop's recipe for it. The last trial closes `start`."""
    seeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=config.train.seed + trial))
    batches = data.task.train_batches(data.train, seeded)
    one = with_steps(seeded, batches.steps_per_epoch)
    model = data.task.model(jax.default_backend())
    taken = initial_params(
        config,
        start,
        functools.partial(data.task.init_params, model, jax.random.key(0)),
        data.task.learnt.labels,
        release=trial == config.trials - 1,
    )
    return one, _recipe(one, data, batches, tokenizer, model, taken)


def task_tokenizer(
    kind: type[FineTuning[ExampleT, ModelT]], config: Config, workdir: Path, start: StartingWeights
) -> Tokenizer:
    """The vocabulary of the weights in `init_from`, or the given one, copied into the workdir.

    For a task that reads words, the copy has a prefix space, unless the configuration wants none. A run that goes on
    reads the copy. A copy that was left by a start that failed before it claimed the workdir is replaced. Raises
    UserError where the file in `tokenizer.vocab_file` is there and holds another vocabulary than a run's copy.
    """
    kept, file = workdir / "tokenizer", config.tokenizer.vocab_file

    def given() -> Tokenizer:
        tokenizer = given_tokenizer(config, start)
        assert tokenizer is not None  # config_check requires one
        return tokenizer.with_prefix_space() if kind.reads_words and config.tokenizer.add_prefix_space else tokenizer

    def copy() -> None:
        if not (kept.exists() and (workdir / "config.json").exists()):
            tokenizer = given()
            shutil.rmtree(kept, ignore_errors=True)
            with new_directory(kept, "--workdir") as aside:
                tokenizer.save(aside)
        elif not config.init_from and Path(file).exists() and given().fingerprint != load_tokenizer(kept).fingerprint:
            raise UserError(f"{kept} holds another vocabulary than {file}; choose another --workdir")

    together("copy the vocabulary", copy, jax.process_index() == 0)
    return load_tokenizer(kept)


def prepare_data(
    kind: type[FineTuning[ExampleT, ModelT]], config: Config, tokenizer: Tokenizer, cache: Path
) -> Data[ExampleT, ModelT]:
    """Reads the data, learns from the training examples, and makes the rows or takes them from the folder `cache`.

    Raises UserError where the data cannot be read, or does not fit the task.
    """
    roles: tuple[Role, Role] = ("train", "dev")
    read = {role: kind.read(declared(config, kind.settings), getattr(config.data, role), role) for role in roles}
    for role, (examples, warnings) in read.items():
        if not examples:
            raise UserError(f"config.data.{role} {getattr(config.data, role)} has no examples; name another file")
        for warning in warnings if jax.process_index() == 0 else ():
            print(f"warning: {warning}")
    train, dev = read["train"][0], read["dev"][0]
    task = kind(config, tokenizer, kind.learn(config, tokenizer, train))
    task.check(dev, config.data.dev)
    first = jax.process_index() == 0
    for rule in without_effect(config.corpus.spans, tokenizer) if first and reads_spans(config.model) else ():
        print(f"warning: config.corpus.spans: {rule} is of no use in rows of tasks, whose text is their pieces")
    rows = [rows_of(task, read[role][0], getattr(config.data, role), role, cache, first) for role in roles]
    if first:
        for role, built in zip(roles, rows, strict=True):
            warn_of_cuts(built.cut_examples, read[role][0], getattr(config.data, role))
    mark = fingerprint(config.data.train, {"dev": fingerprint(config.data.dev, {}), **_span_files(task)})
    if jax.process_index() == 0:
        labels = f", {len(task.learnt.labels)} labels" if task.learnt.labels else ""
        print(f"{len(train):,} training examples in {len(rows[0]):,} rows, {len(dev):,} for evaluation{labels}")
    baseline = task.metrics(dev, task.baseline(train, dev))
    return Data(task, rows[0], dev, rows[1], baseline, mark)


def _span_files(task: FineTuning[ExampleT, ModelT]) -> dict[str, Any]:
    """The contents of the files from which the rows' spans come, where the encoder reads spans and there are such."""
    files = task.finder.files if reads_spans(task.config.model) else {}
    return {"span_files": sorted(files.values())} if files else {}


def with_steps(config: Config, per_epoch: int) -> Config:
    """The configuration of one trial, with steps in place of epochs. per_epoch: the steps of an epoch."""
    tuning = config.finetuning
    steps = max(round(tuning.epochs * per_epoch), 1)
    every = max(round(tuning.eval_every_epochs * per_epoch), 1) if tuning.eval_every_epochs else config.train.eval_every
    warmup = round(tuning.warmup_share * steps)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=steps, eval_every=every),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup),
    )


def _recipe(
    config: Config,
    data: Data[ExampleT, ModelT],
    batches: TrainBatches,
    tokenizer: Tokenizer,
    model: ModelT,
    taken: Callable[[], Any] | None,
) -> loop.Recipe:
    """The recipe of one trial for the training loop. taken: as `loop.Recipe.initial_params`."""
    task = data.task
    predictors: dict[NamedSharding, TaskPredictor[ExampleT, ModelT]] = {}

    def train_batches(layout: NamedSharding, first: int, last: int) -> Iterator[Batch]:
        return feed((batches.batch(step) for step in range(first, last)), layout)

    def evaluate(params: Any, layout: NamedSharding, show: Show) -> dict[str, float]:
        if layout not in predictors:
            predictors[layout] = TaskPredictor(task, layout)
        predictions = predictors[layout].predictions(params, data.examples, data.dev, {}, show)
        return {f"held_out/{name}": value for name, value in task.metrics(data.examples, predictions).items()}

    def metrics(totals: Mapping[str, float]) -> dict[str, float]:
        return {"loss": totals["loss"] / max(totals["count"], 1.0)}

    def describe(values: Mapping[str, float]) -> str:
        if "train/loss" in values:
            return f"loss {values['train/loss']:.3f}"
        return f"{task.best} {values[f'held_out/{task.best}']:.2f}"

    return loop.Recipe(
        init=lambda key: task.init_params(model, key),
        objective=task.objective(model),
        train_batches=train_batches,
        evaluate=evaluate,
        metrics=metrics,
        describe=describe,
        batch_size=task.batch_size,
        blocks=batches.rows,
        of="rows",
        metadata=Metadata(
            task=task.task,
            step=0,
            config=config,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            data_fingerprint=data.fingerprint,
            labels=task.learnt.labels,
            special=task.learnt.special,
            nested=task.learnt.nested,
            words=dataclasses.asdict(task.learnt.words),
        ),
        initial_params=taken,
        best=f"held_out/{task.best}",
    )


def _predict(config: Config, data: Data[ExampleT, ModelT], place: Path) -> dict[str, float]:
    """Writes the dev predictions of the best checkpoint, or the newest where the best is damaged; returns their
    metrics."""
    checkpoint = epath.Path(decided("find a checkpoint", lambda: str(find_checkpoint(epath.Path(place)))))
    tuned = kept_metrics(read_metadata(checkpoint))
    predictor = TaskPredictor(data.task, sharding.batch_sharding(sharding.mesh_of(config)))
    params, first = predictor.place(read_params(checkpoint)), jax.process_index() == 0
    predictions = predictor.shown(params, data.examples, data.dev, tuned, first)

    def write() -> None:
        write_jsonl(predictions, place / "predictions.jsonl")
        file = write_for_scorer(data.task, data.examples, predictions, place)
        print(f"\nBest checkpoint: {checkpoint}\nPredictions:     {file} and {place / 'predictions.jsonl'}")

    together("write the predictions", write, jax.process_index() == 0)
    return data.task.metrics(data.examples, predictions)


def report(best: str, results: list[dict[str, float]], baseline: dict[str, float], workdir: Path) -> None:
    """Writes the metrics of every trial as results.json, whose presence means that the run is finished, and prints
    them. best: the metric by which checkpoints are kept. baseline: the metrics of a guess without a model."""
    with written_aside(workdir / "results.json") as aside:
        aside.write_text(json.dumps({"best": best, "trials": results, "baseline": baseline}, indent=2) + "\n")
    print()
    table, console = _table(results, baseline, best), Console(highlight=False, soft_wrap=True)
    needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    console.width = max(console.width, needed)  # a narrower one would cut the names of metrics
    console.print(table)
    values = [-math.inf if math.isnan(result[best]) else result[best] for result in results]
    trial = values.index(max(values))
    place = shlex.quote(str(workdir / f"trial_{trial}" if len(results) > 1 else workdir))
    print(f"\nPredict:  python tools/predict.py --checkpoint {place} --input FILE --output predictions.json")


def _table(results: list[dict[str, float]], baseline: dict[str, float], best: str) -> Table:
    """The metrics of every trial, the one by which checkpoints are kept first and in bold."""
    several = len(results) > 1
    columns = [*(f"trial {i}" for i in range(len(results))), "mean", "deviation"] if several else ["dev"]
    table = Table("metric", *columns, "a guess\nwithout\na model", box=None)
    for name in sorted(results[0], key=lambda name: name != best):
        values = [result[name] for result in results]
        more = [np.mean(values), np.std(values, ddof=1)] if several else []
        guess = f"{baseline[name]:.2f}" if name in baseline else ""
        table.add_row(Text(name), *(f"{value:.2f}" for value in (*values, *more)), guess, style="bold" * (name == best))
    return table
