"""Small checkpoints, one for each head, as a service has them."""

from pathlib import Path
from typing import Any

from spanbert_jax.tasks.finetuning import Learnt
from tests.support.pretrained import random_weights, write_pretrained
from tests.support.tuned import WORDPIECE, write_tuned

# Pieces that random texts lack.
SPECIAL = {
    name: WORDPIECE.vocab_size - 1 - i for i, name in enumerate(("SUBJ_START", "SUBJ_END", "OBJ_START", "OBJ_END"))
}
TASKS: dict[str, tuple[str, Learnt, dict[str, Any]]] = {
    "labels": ("sequence_classification", Learnt(("no", "perhaps", "yes")), {}),
    "questions": ("question_answering", Learnt(), {}),
    "tags": ("token_classification", Learnt(("B-PER", "I-PER", "O")), {}),
    "nested": (
        "token_classification",
        Learnt(("O", "LOC", "PER"), nested=True),
        {"tagging": {"head": "span", "max_width": 2}},
    ),
    "relations": ("relation_extraction", Learnt(("Other", "Cause"), SPECIAL), {"relation": {"entities": "markers"}}),
}


def write_checkpoint(folder: Path, name: str) -> Path:
    task, learnt, sections = TASKS[name]
    data = {"block_length": 24, "lengths": 1}
    return write_tuned(folder / name, task, learnt, data=data, **sections)


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """Those of TASKS, and the pre-trained one "gaps"."""
    gaps = write_pretrained(folder / "gaps", random_weights(WORDPIECE))
    return {name: write_checkpoint(folder, name) for name in TASKS} | {"gaps": gaps}
