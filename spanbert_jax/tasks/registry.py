"""Finds a fine-tuning task by its name in `config.task` and in checkpoints.

Invariant: `config.FINETUNING` is the one list of tasks. Only the module of the task that is asked for is imported.
"""

import importlib
from typing import Any

from spanbert_jax.config import FINETUNING, Config
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.finetuning import FineTuning

AnyTask = FineTuning[Any, Any]  # for code that handles tasks of any examples and models


def finetuning_task(name: str, config: Config) -> type[AnyTask]:
    """The class of the fine-tuning task `name` for this configuration; raises UserError where there is none."""
    if name not in FINETUNING:
        raise UserError(f"task {name!r} is none of {', '.join(FINETUNING)}; give the checkpoint of a fine-tuned model")
    found: type[AnyTask] = importlib.import_module(FINETUNING[name]).task_class(config)
    return found
