"""Train steps of a small model on random batches."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from spanbert_jax.config import Config
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.pretraining_heads import PretrainingModel
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import sharding
from spanbert_jax.training.step import Objective, State, abstract_state, init_state, make_train_step
from tests.support.synthetic import VOCAB, random_batch


class Training(NamedTuple):
    """What a run of a configuration is made of."""

    mesh: Mesh
    model: PretrainingModel
    objective: Objective
    first: Callable[[], State]  # makes the state before the first step
    step: Callable[[State, Any], tuple[State, Any]]  # which deletes the state's arrays (donation)


@functools.cache
def training_of(config: Config) -> Training:
    """The same for every test of a process that has the same configuration, so that the step is compiled once."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
        target = objective(model, commonest=7)
        init = lambda key: pretraining_heads.init_params(model, key)  # noqa: E731
        abstract = abstract_state(config, init, mesh)
        step = make_train_step(config, target, abstract)
    fresh = functools.cache(lambda: init_state(config, init, abstract))
    return Training(mesh, model, target, lambda: jax.tree.map(lambda leaf: leaf.copy(), fresh()), step)


def trained(config: Config, steps: int, seed: int = 0) -> Iterator[tuple[Any, dict[str, float]]]:
    """(state, sums) after each step on random batches. The next step deletes the state's arrays (donation)."""
    training = training_of(config)
    with jax.set_mesh(training.mesh):
        state = training.first()
        for number in range(steps):
            batch = jax.device_put(random_batch(config, seed + number), sharding.batch_sharding(training.mesh))
            state, sums = training.step(state, batch)
            yield state, {name: float(value) for name, value in sums.items()}


def states(config: Config, steps: int, seed: int = 0) -> Iterator[tuple[Any, dict[str, float]]]:
    """The pairs of `trained`, with states of NumPy arrays."""
    for state, sums in trained(config, steps, seed):
        yield jax.tree.map(np.asarray, state), sums


def losses(config: Config, steps: int) -> list[float]:
    """The loss of each step: MLM / N + SBO / (M + 1)."""
    return [
        sums["mlm_loss"] / sums["mlm_count"] + sums["sbo_loss"] / (sums["sbo_count"] + 1)
        for _, sums in states(config, steps)
    ]
