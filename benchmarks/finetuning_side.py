"""One cell of finetuning_peer.py, in a process of its own: one task, trained by one side with one seed.

Invariant: both sides train from the arrays of `prepare`: the same parameters (a fresh head included), the same batches
in the same order, the same number of steps. They are scored on the same rows by the same decoder and metrics. The sides
differ in the model, the gradient, the optimizer and the loop.
"""

import collections
import importlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from benchmarks.worker import Handler, Json
from spanbert_jax.batch import NumpyBatch
from spanbert_jax.batches.feed import feed, to_global
from spanbert_jax.config import Config, from_dict
from spanbert_jax.config_check import check
from spanbert_jax.errors import UserError
from spanbert_jax.runs.finetuning import with_steps
from spanbert_jax.runs.prepare import given_tokenizer
from spanbert_jax.runs.start_from import StartingWeights, adopt, initial_params
from spanbert_jax.serving.answers import TaskPredictor, rows_of
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import Prediction, TrainBatches
from spanbert_jax.tasks.registry import AnyTask, finetuning_task
from spanbert_jax.tasks.rows import Rows
from spanbert_jax.tasks.settings import declared
from spanbert_jax.training import sharding
from spanbert_jax.training.step import abstract_state, init_state, make_train_step, stream_key, with_params

ROLES: tuple[Role, Role] = ("train", "dev")
_AHEAD = 3  # steps dispatched and not yet finished, as in training/loop.py


class Material(NamedTuple):
    """The input of both sides."""

    config: Config  # with the steps and the warm-up of the schedule
    task: AnyTask
    batches: TrainBatches
    params: dict[str, Any]  # NumPy, before the first step
    examples: Sequence[Any]  # of dev
    dev: Rows
    baseline: dict[str, float]  # the metrics of a guess without a model


class Trained(NamedTuple):
    """The outcome of one side's training."""

    losses: list[float]  # of each step's batch, before the step's update
    compile_seconds: float  # CPU seconds of compilation
    step_seconds: float  # CPU seconds of all steps, compilation apart
    weights: Any  # the side's own: parameters of JAX, or a module of PyTorch
    predict: Callable[[], list[Prediction]]  # predictions for the examples of dev


def prepare(spec: Json) -> Material:
    """The material of a cell.

    spec: "config" ("glue:sst2": a module of configs/ and its argument), "fields" (flat config fields that differ),
    "init", "train" and "dev" (paths), "train_examples" and "dev_examples" (how many are taken, evenly spread over the
    file; None: all), "seed". Raises UserError where the weights or the data cannot be read.
    """
    config, roles = config_of(spec), ROLES
    with StartingWeights(config) as start:
        config = adopt(config, epath.Path("no workdir"), start)
        tokenizer = given_tokenizer(config, start)
        assert tokenizer is not None
        kind = finetuning_task(config.task, config)
        read = [kind.read(declared(config, kind.settings), spec[role], role)[0] for role in roles]
        train, dev = (spread(examples, spec[f"{role}_examples"]) for role, examples in zip(roles, read, strict=True))
        task = kind(config, tokenizer, kind.learn(config, tokenizer, train))
        task.check(dev, spec["dev"])
        pairs = zip(roles, (train, dev), strict=True)
        train_rows, dev_rows = (rows_of(task, examples, spec[role], role, None, False) for role, examples in pairs)
        model = task.model(jax.default_backend())
        init = lambda: task.init_params(model, stream_key(config.train.seed, "params", 0))  # noqa: E731
        taken = initial_params(config, start, init, task.learnt.labels)
        params = jax.tree.map(np.array, jax.jit(init)()) | (taken() if taken else {})
    batches = task.train_batches(train_rows, config)
    baseline = task.metrics(dev, task.baseline(train, dev))
    return Material(with_steps(config, batches.steps_per_epoch), task, batches, params, dev, dev_rows, baseline)


def config_of(spec: Json) -> Config:
    """The configuration of a cell, with epochs and not yet steps; raises UserError where it is none."""
    module, _, argument = spec["config"].partition(":")
    made = importlib.import_module(f"configs.{module}").get_config(*filter(None, [argument]))
    made.update_from_flattened_dict(spec["fields"])
    made.init_from = spec["init"]
    made.data.update(train=spec["train"], dev=spec["dev"])
    made.train.seed = spec["seed"]
    config = from_dict(made.to_dict())
    check(config)
    return config


def spread(examples: Sequence[Any], count: int | None) -> list[Any]:
    """`count` of the examples, evenly spread and in order; all of them where there are no more."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[index] for index in np.linspace(0, len(examples) - 1, count).astype(int)]


def train(material: Material) -> Trained:
    """This project's side: the train step, the feed and the predictor of a run. It saves no checkpoint."""
    config, task, batches = material.config, material.task, material.batches
    mesh = sharding.mesh_of(config)
    layout, model = sharding.batch_sharding(mesh), task.model(jax.default_backend())
    with jax.set_mesh(mesh):
        init = lambda key: task.init_params(model, key)  # noqa: E731
        abstract = abstract_state(config, init, mesh)
        state = with_params(init_state(config, init, abstract), material.params)
        step = make_train_step(config, task.objective(model), abstract)
        began = time.process_time()
        programs = {
            shape: step.lower(state, to_global(batch, layout)).compile() for shape, batch in one_of_each(material)
        }
        compiled = time.process_time()
        sums: list[dict[str, jax.Array]] = []
        in_flight: collections.deque[jax.Array] = collections.deque()
        for batch in feed((batches.batch(number) for number in range(config.train.steps)), layout):
            state, found = programs[batch["input_ids"].shape](state, batch)
            sums.append(found)
            in_flight.append(found["gradient_norm"])
            if len(in_flight) > _AHEAD:
                in_flight.popleft().block_until_ready()
        jax.block_until_ready(state)
        ended = time.process_time()
    params = state["params"]
    predictor = TaskPredictor(task, layout)
    return Trained(
        [float(one["loss"] / one["count"]) for one in sums],
        compiled - began,
        ended - compiled,
        params,
        lambda: predictor.predictions(params, material.examples, material.dev, {}),
    )


def one_of_each(material: Material) -> Iterator[tuple[tuple[int, ...], NumpyBatch]]:
    """(shape of the rows, a batch) for each shape that the training has."""
    seen = set()
    for number in range(material.config.train.steps):
        batch = material.batches.batch(number)
        shape = batch["input_ids"].shape
        if shape not in seen:
            seen.add(shape)
            yield shape, batch


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: the keys of `prepare`, and "side" ("ours" or "theirs"). A request is answered with the cell's results: the
    metrics, those of a guess, the number of steps and of training rows, losses, and CPU seconds by part."""

    def run(_: Json) -> Json:
        material = prepare(spec)
        if spec["side"] == "ours":
            trained = train(material)
        else:
            from benchmarks import finetuning_torch

            trained = finetuning_torch.train(material)
        return results(material, trained)

    return {}, run


def results(material: Material, trained: Trained) -> Json:
    """The results of a cell; makes the predictions."""
    if not np.isfinite(trained.losses).all():
        raise UserError(f"the loss of step {int(np.argmin(np.isfinite(trained.losses)))} is not finite")
    began = time.process_time()
    predictions = trained.predict()
    evaluation = time.process_time() - began
    last = max(len(trained.losses) // 10, 1)
    return {
        "best": material.task.best,
        "metrics": material.task.metrics(material.examples, predictions),
        "guess": material.baseline,
        "steps": material.config.train.steps,
        "first_loss": trained.losses[0],
        "last_loss": float(np.mean(trained.losses[-last:])),
        "cpu_seconds": {
            "compile": trained.compile_seconds,
            "steps": trained.step_seconds,
            "evaluation": evaluation,
            "process": _cpu_seconds(),
        },
    }


def _cpu_seconds() -> float:
    """CPU seconds, user and system, of this process and of the processes that it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)
