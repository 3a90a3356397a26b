"""Rows padded to few lengths: the same losses as rows of one length, and each shape compiled once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import monitoring

from spanbert_jax.config import Config
from spanbert_jax.corpus.masked_batches import train_batches
from spanbert_jax.model import pretraining_heads
from spanbert_jax.runs.pretraining import make_recipe
from spanbert_jax.runs.start_from import StartingWeights
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import loop
from tests.support.fake_blocks import TOKENIZER, FakeBlocks, block_ids, one_device
from tests.support.quick_keys import quick_key
from tests.support.synthetic import small_config

BLOCKS = FakeBlocks(96)


def config_of(lengths: int, **train: Any) -> Config:
    model = {"dropout": 0.0, "attention_dropout": 0.0}
    return small_config(data={"lengths": lengths}, model=model, train={"steps": 24, **train})


def losses_of_blocks(lengths: int) -> dict[int, tuple[float, float]]:
    """Block -> the sums of its MLM and SBO losses, over an epoch of rows padded to so many lengths."""
    config = config_of(lengths)
    model = pretraining_heads.pretraining_model(config, TOKENIZER.vocab_size, "cpu")
    params = jax.jit(lambda: pretraining_heads.init_params(model, quick_key(0)))()
    loss = objective(model, 5).loss
    of_row = jax.jit(lambda row: loss(params, row, (1.0, 1.0), None, None)[1])
    found = {}
    for batch in train_batches(config, BLOCKS, TOKENIZER, one_device(), 0, 12):  # type: ignore[arg-type]
        rows = {name: np.asarray(value) for name, value in batch.items()}
        full = np.flatnonzero(rows["lengths"])
        for row, block in zip(full, block_ids(rows), strict=True):
            if block not in found:  # of the first epoch
                sums = of_row({name: value[row : row + 1] for name, value in rows.items()})
                found[block] = float(sums["mlm_loss"]), float(sums["sbo_loss"])
        if len(found) == len(BLOCKS):
            break
    return found


def test_a_block_has_the_same_loss_whatever_length_its_row_is_padded_to() -> None:
    one, three = losses_of_blocks(1), losses_of_blocks(3)
    assert sorted(one) == sorted(three) == list(range(96))
    for block in one:
        np.testing.assert_allclose(three[block], one[block], rtol=1e-6)


def test_each_shape_is_compiled_once(tmp_path: Path) -> None:
    compiled: list[str] = []
    monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    config = config_of(2, steps=24, eval_every=12, log_every=4)
    recipe = make_recipe(config, TOKENIZER, BLOCKS, FakeBlocks(24), StartingWeights(config))
    seen: list[tuple[tuple[int, ...], int]] = []

    def counted(layout: Any, first: int, last: int) -> Iterator[Any]:
        for batch in recipe.train_batches(layout, first, last):
            seen.append((batch["input_ids"].shape, len(compiled)))
            yield batch

    assert loop.run(config, recipe._replace(train_batches=counted), epath.Path(tmp_path)).finished
    shapes = {shape for shape, _ in seen}
    assert {length for _, length in shapes} == {24, 32} and len(shapes) == 2
    after_an_evaluation = [count for _, count in seen[13:]]
    assert after_an_evaluation[0] > 0 and after_an_evaluation[0] == after_an_evaluation[-1]
