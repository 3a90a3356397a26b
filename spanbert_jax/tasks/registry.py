"""The fine-tuning tasks by the name that `config.task` and checkpoints have for them.

Invariant: a task's module, and what it needs, is imported when the task is asked for, and no other's.
"""

import importlib

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.finetuning import FineTuning

_CLASSES = {
    "question_answering": ("question_answering", "QuestionAnswering"),
    "sequence_classification": ("text_classification", "SequenceClassification"),
    "token_classification": ("entities", "TokenClassification"),
    "relation_extraction": ("relations", "RelationExtraction"),
}


def finetuning_task(name: str) -> type[FineTuning]:
    """The class of a fine-tuning task; raises UserError where `name` is none."""
    if name not in _CLASSES:
        raise UserError(f"task {name!r} is none of {', '.join(_CLASSES)}; give the checkpoint of a fine-tuned model")
    folder, class_name = _CLASSES[name]
    found: type[FineTuning] = getattr(importlib.import_module(f"spanbert_jax.tasks.{folder}.task"), class_name)
    return found
