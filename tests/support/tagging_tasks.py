"""Named-entity recognition on a vocabulary of 16 letters: a small configuration, its task, and rows of examples."""

import dataclasses
from typing import Any

from spanbert_jax.config import Config
from spanbert_jax.tasks.entities.rows import WordExample
from spanbert_jax.tasks.entities.tagging import Tagging
from spanbert_jax.tasks.entities.task import task_class
from spanbert_jax.tasks.rows import Rows, make_rows
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from tests.support.synthetic import small_config

LETTERS = "abcdefghijklmnop"
VOCABULARY = "".join(f"{piece}\n" for piece in (*SPECIALS, *LETTERS, "😀", *(f"##{char}" for char in LETTERS)))
TOKENIZER = Tokenizer("wordpiece", VOCABULARY.encode())


def config_of(head: str, **more: Any) -> Config:
    model = {
        "layers": 1,
        "embed": 32,
        "heads": 2,
        "mlp": 64,
        "max_length": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    config = small_config(
        model=model,
        data={"block_length": 32, "train": "train.conll"},
        compute={"dtype": "float32"},
        tagging={"head": head, **more},
    )
    return dataclasses.replace(config, task="token_classification")


def task_of(head: str, examples: list[WordExample], **more: Any) -> Tagging[Any]:
    config = config_of(head, **more)
    kind = task_class(config)
    return kind(config, TOKENIZER, kind.learn(config, TOKENIZER, examples))


def rows_of(task: Tagging[Any], examples: list[WordExample]) -> Rows:
    return make_rows(task.featuriser("train")(examples))
