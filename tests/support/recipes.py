"""A recipe of the training loop over random batches, for tests of the loop and its checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import loop
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.step import BatchSize
from tests.support.synthetic import VOCAB, random_batch, small_config


def config_of(**train: Any) -> Config:
    """A run of 4 steps with the masked language model alone, which compiles faster than both heads; keywords are fields
    of config.train. The learning rate stays after the warm-up, so that the compiled step, which tests of a session
    share, does not depend on the number of steps."""
    train = {"steps": 4, "sbo_weight": 0.0, **train}
    return small_config(train=train, optimizer={"schedule": "wsd", "decay_steps": 0})


def recipe_of(config: Config, asked: list[int], before: Callable[[int], None] = lambda step: None) -> loop.Recipe:
    """Pre-training on random batches without an evaluation.

    asked: a list to which the number of each batch is appended when the loop asks for it. before: is called with that
    number, just before the batch is made.
    """
    model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")

    def batches(layout: Any, first: int, last: int) -> Iterator[Any]:
        for step in range(first, last):
            asked.append(step)
            before(step)
            yield random_batch(config, step)

    return loop.Recipe(
        init=lambda key: pretraining_heads.init_params(model, key),
        objective=objective(model, commonest=7),
        train_batches=batches,
        evaluate=lambda params, layout, show: {},
        metrics=lambda totals: {},
        describe=lambda values: "",
        batch_size=lambda batch: BatchSize(1, 1.0, ""),
        blocks=lambda step: np.arange(8 * step, 8 * step + 8),
        metadata=Metadata("synthetic", 0, config),
    )
