"""The fine-tuning tasks by the names that `config.task` and checkpoints have for them.

Invariant: `config.FINETUNING` is the one list of tasks. A task's module is imported when the task is asked for, and no
other task's.
"""

import importlib
from typing import Any

from spanbert_jax.config import FINETUNING, Config
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.finetuning import FineTuning

AnyTask = FineTuning[Any, Any]  # where tasks of different examples and models stand side by side


def finetuning_task(name: str, config: Config) -> type[AnyTask]:
    """The class of a fine-tuning task for this configuration; raises UserError where `name` is no such task."""
    if name not in FINETUNING:
        raise UserError(f"task {name!r} is none of {', '.join(FINETUNING)}; give the checkpoint of a fine-tuned model")
    found: type[AnyTask] = importlib.import_module(FINETUNING[name]).task_class(config)
    return found
