"""The tasks by the name that `config.task` and checkpoints have for them.

Invariant: a task's module, and what it needs, is imported when it is asked for, and no other's.
"""

import importlib

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.finetuning import FineTuning

_CLASSES = {
    "question_answering": "QuestionAnswering",
    "sequence_classification": "SequenceClassification",
    "token_classification": "TokenClassification",
    "relation_extraction": "RelationExtraction",
}


def finetuning_task(name: str) -> type[FineTuning]:
    """The class of a fine-tuning task; raises UserError where `name` is none."""
    if name not in _CLASSES:
        raise UserError(f"task {name!r} is none of {', '.join(_CLASSES)}; give the checkpoint of a fine-tuned model")
    found: type[FineTuning] = getattr(importlib.import_module(f"spanbert_jax.tasks.{name}"), _CLASSES[name])
    return found


def trained_task(weights: Weights) -> FineTuning:
    """The task that weights were fine-tuned for; raises UserError where they were not."""
    kind = finetuning_task(weights.metadata.get("task", "of others' weights"))
    return kind(weights.config, weights.tokenizer, weights.labels, weights.metadata.get("special", {}))


def run(config: Config, workdir: str, arguments: str) -> bool:
    """Runs the configuration's task; False where it was asked to stop before the end."""
    if config.task == "pretraining":
        from spanbert_jax.runs import pretraining

        return pretraining.run(config, workdir, arguments)
    from spanbert_jax.runs import finetuning as finetuning_run

    return finetuning_run.run(finetuning_task(config.task), config, workdir)
