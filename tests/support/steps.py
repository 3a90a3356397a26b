"""Train steps of a small model on random batches."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import sharding
from spanbert_jax.training.step import abstract_state, init_state, make_train_step
from tests.support.synthetic import VOCAB, random_batch


def trained(config: Config, steps: int, seed: int = 0) -> Iterator[tuple[Any, dict[str, float]]]:
    """(state, sums) after each step on random batches. The next step deletes the state's arrays (donation)."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
        target = objective(model, commonest=7)
        init = lambda key: pretraining_heads.init_params(model, key)  # noqa: E731
        abstract = abstract_state(config, init, mesh)
        state, step = init_state(config, init, abstract), make_train_step(config, target, abstract)
        for number in range(steps):
            batch = jax.device_put(random_batch(config, seed + number), sharding.batch_sharding(mesh))
            state, sums = step(state, batch)
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
