"""Small fine-tuned checkpoints that nobody trained: random parameters, so that predictions differ from text to text."""

import dataclasses
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.convert.names import Params
from spanbert_jax.tasks.finetuning import Learnt
from spanbert_jax.tasks.registry import AnyTask, finetuning_task
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from spanbert_jax.training.checkpoint import BEST, TOKENIZER, write_params
from spanbert_jax.training.metadata import Metadata
from tests.support.synthetic import small_config

LETTERS = string.ascii_lowercase
WORDPIECE = Tokenizer(
    "wordpiece", "\n".join([*SPECIALS, *LETTERS, *(f"##{x}" for x in LETTERS), *string.punctuation, ""]).encode(), True
)
MODEL = {"layers": 1, "embed": 16, "heads": 2, "mlp": 16, "max_length": 24, "span_offset_embed": 8}


def write_tuned(
    workdir: Path,
    name: str,
    learnt: Learnt,
    tokenizer: Tokenizer = WORDPIECE,
    fit: Callable[[AnyTask, Params], Params] = lambda task, params: params,
    **sections: dict[str, Any],
) -> Path:
    """A run's best checkpoint for the task `name`, with rows of up to 24 pieces; keywords are sections. fit: makes the
    parameters of the random ones."""
    windows = {"stride": 5, "max_question": 6, "max_answer": 7}
    small = {"data": {"block_length": 24, "lengths": 2}, "model": MODEL, "question_answering": windows}
    config = dataclasses.replace(small_config(**{**small, "classification": {"name": "custom"}, **sections}), task=name)
    task = task_of(config, learnt, tokenizer)
    model, rng = task.model("cpu"), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: task.init_params(model, jax.random.key(0)))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(float(path[-1].key == "scale"), 0.3, leaf.shape).astype(np.float32)

    metadata = Metadata(task=name, step=3, config=config, **dataclasses.asdict(learnt))
    tokenizer.save(workdir / TOKENIZER)
    params = fit(task, jax.tree_util.tree_map_with_path(draw, shapes))
    write_params(epath.Path(workdir / BEST), params, metadata)
    return workdir


def task_of(config: Config, learnt: Learnt, tokenizer: Tokenizer = WORDPIECE) -> AnyTask:
    return finetuning_task(config.task, config)(config, tokenizer, learnt)


def random_texts(rng: np.random.Generator, count: int) -> list[str]:
    """Texts of 1 to 12 words of 1 to 4 letters."""
    return [
        " ".join("".join(rng.choice(list(LETTERS), rng.integers(1, 5))) for _ in range(rng.integers(1, 13)))
        for _ in range(count)
    ]


def assert_close(one: Any, other: Any) -> None:
    """Equal, but for the rounding of numbers that are no integers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        assert one == other
