"""Training in bfloat16 follows training in float32: the same corpus, masks and parameters at the start."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.tiny import get_config
from spanbert_jax.config import Config, from_dict
from spanbert_jax.corpus.blocks import open_blocks
from spanbert_jax.corpus.build import build_blocks
from spanbert_jax.corpus.masked_batches import train_batches
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.text.tokenizer import load_tokenizer
from spanbert_jax.training import sharding
from spanbert_jax.training.step import abstract_state, init_state, make_train_step
from tests.support import runs

STEPS, WINDOW = 500, 25
# Layers of configs/tiny.py, with two extensions, at a quarter of its width, over a smaller vocabulary and shorter rows
# of one length, with fewer rows a step and a shorter warm-up.
TINY: dict[str, Any] = {
    "data__block_length": 32,
    "data__lengths": 1,
    "model__max_length": 32,
    "model__head_scales": "full",
    "model__context_encoder": "mingru",
    "optimizer__warmup_steps": 50,
    "train__batch_size": 4,
    "train__steps": STEPS,
}


def configuration(corpus: Path, dtype: str) -> Config:
    config = get_config()
    config.update_from_flattened_dict(runs.overrides({**TINY, "corpus__files": str(corpus), "compute__dtype": dtype}))
    return from_dict(config.to_dict())


def losses(config: Config, vocab_size: int, batches: list[Any]) -> dict[str, np.ndarray]:
    """The mean loss by head: of the first step, of the other steps of the first window, and of each later window."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = pretraining_heads.pretraining_model(config, vocab_size, "cpu")
        init = functools.partial(pretraining_heads.init_params, model)
        abstract = abstract_state(config, init, mesh)
        state, step = init_state(config, init, abstract), make_train_step(config, objective(model, 0), abstract)
        every = []
        for batch in batches:
            state, sums = step(state, batch)
            every.append({name: float(sums[name]) for name in ("mlm_loss", "mlm_count", "sbo_loss", "sbo_count")})
    first = [0, 1, *range(WINDOW, STEPS, WINDOW)]  # of each window
    of = {name: np.add.reduceat([sums[name] for sums in every], first) for name in every[0]}
    return {name: of[f"{name}_loss"] / of[f"{name}_count"] for name in ("mlm", "sbo")}


def test_over_500_steps_of_a_tiny_model_bfloat16_stays_within_two_percent_of_float32(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    runs.write_corpus(tmp_path / "topics.txt", topics=30)
    config = configuration(tmp_path / "topics.txt", "float32")
    tokenizer = load_tokenizer(finished[0] / "tokenizer")
    build_blocks(config, tokenizer, tmp_path / "blocks")
    layout = sharding.batch_sharding(sharding.make_mesh(config.mesh))
    blocks = open_blocks(tmp_path / "blocks", "train")
    batches = list(train_batches(config, blocks, tokenizer, layout, 0, STEPS))
    wide, narrow = (
        losses(configuration(tmp_path / "topics.txt", dtype), tokenizer.vocab_size, batches)
        for dtype in ("float32", "bfloat16")
    )
    for name in ("mlm", "sbo"):
        apart = narrow[name] / wide[name] - 1
        assert len(apart) == 1 + STEPS // WINDOW
        assert np.abs(apart).max() < 0.02 and abs(apart.mean()) < 0.005, apart
        assert np.abs(apart).max() > 0  # it was not the same run twice
        assert wide[name][-1] < 0.8 * wide[name][0]  # and it learnt
