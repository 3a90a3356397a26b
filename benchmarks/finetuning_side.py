"""One cell of finetuning_peer.py, in a process of its own: one task, trained by one side with one seed.

Invariant: both sides train from the same `Material`, and are scored on the same rows by the same decoder and metrics.
The sides differ in the model, the gradient, the optimizer and the loop.
"""

import collections
import resource
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.finetuning_material import Material, Trained, prepare
from benchmarks.worker import Handler, Json
from spanbert_jax.batch import NumpyBatch
from spanbert_jax.batches.feed import feed, to_global
from spanbert_jax.errors import UserError
from spanbert_jax.runs.task_predictor import TaskPredictor
from spanbert_jax.training import sharding
from spanbert_jax.training.step import abstract_state, init_state, make_train_step, with_params

_AHEAD = 3  # steps dispatched and not yet finished, as in training/loop.py


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
            "process": cpu_seconds(),
        },
    }


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process and of the processes that it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)
