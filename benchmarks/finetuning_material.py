"""The input and the outcome of one cell of finetuning_peer.py, which both of its sides share.

Invariant: both sides train from the arrays of `prepare`: the same parameters (a fresh head included), the same batches
in the same order, the same number of steps.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from benchmarks.worker import Json
from spanbert_jax.config import Config, from_dict
from spanbert_jax.config_check import check
from spanbert_jax.runs.finetuning import with_steps
from spanbert_jax.runs.kept_rows import rows_of
from spanbert_jax.runs.prepare import given_tokenizer
from spanbert_jax.runs.start_from import StartingWeights, adopt, initial_params
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import Prediction, TrainBatches
from spanbert_jax.tasks.registry import AnyTask, finetuning_task
from spanbert_jax.tasks.rows import Rows
from spanbert_jax.tasks.settings import declared
from spanbert_jax.training.step import stream_key

ROLES: tuple[Role, Role] = ("train", "dev")


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
    files = {"init_from": spec["init"], "data.train": spec["train"], "data.dev": spec["dev"]}
    return made_config(spec["config"], {**spec["fields"], **files, "train.seed": spec["seed"]})


def made_config(name: str, fields: Json) -> Config:
    """The configuration of a module of configs/ and its argument ("glue:sst2"), with flat fields that differ; raises
    UserError where it is none."""
    module, _, argument = name.partition(":")
    made = importlib.import_module(f"configs.{module}").get_config(*filter(None, [argument]))
    made.update_from_flattened_dict(fields)
    config = from_dict(made.to_dict())
    check(config)
    return config


def spread(examples: Sequence[Any], count: int | None) -> list[Any]:
    """`count` of the examples, evenly spread and in order; all of them where there are no more."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[index] for index in np.linspace(0, len(examples) - 1, count).astype(int)]
