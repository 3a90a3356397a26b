"""A third pre-training head is one more row of HEADS: it is trained, logged, evaluated, reported, saved and resumed."""

import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from spanbert_jax.batch import Batch
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.linear import Dense, initializer
from spanbert_jax.model.pretraining_heads import Head, HeadModule
from spanbert_jax.training import flops
from tests.support import runs
from tests.support.synthetic import small_config


class LeftHead(HeadModule):
    """The piece of a span from the hidden state on the span's left alone."""

    def setup(self) -> None:
        model = self.config.model
        self.dense = Dense((model.embed,), initializer(model), self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab,))

    def __call__(self, batch: Batch, *hidden: jax.Array) -> jax.Array:
        (left,) = hidden
        return self.dense(left)


LEFT = Head(
    name="left",
    title="LEFT",
    description="left neighbour",
    module=LeftHead,
    reads=("span_left",),
    weights="span_weights",
    normaliser=lambda count: count + 1.0,
    loss_weight=lambda config: 0.5,
    multiply_adds=lambda model: model.embed**2,
    axes=(("bias", ("vocab",)), ("dense/kernel", ("embed", None)), ("dense/bias", (None,))),
)


def test_a_third_head_is_one_row_in_one_place(
    finished: tuple[Path, str], topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining_heads, "HEADS", (*pretraining_heads.HEADS, LEFT))
    workdir, every = tmp_path / "run", {name: 1 for name in ("log_every", "eval_every", "checkpoint_every")}
    fields = {
        "corpus__files": topics,
        "data__dir": finished[0] / "data",
        "data__lengths": 1,
        "train__steps": 2,
        "train__eval_blocks": 32,
        "optimizer__name": "adamw",  # its step compiles faster than Muon's
        "compute__dtype": "bfloat16",  # in which this run evaluates, saves and goes on, too
        "optimizer__warmup_steps": 1,
    }
    fields |= {f"train__{name}": value for name, value in every.items()}
    printed = runs.call(workdir, **fields).stdout

    logged = runs.metrics(workdir, "train/left_loss")
    assert set(logged) == {1, 2} and abs(logged[1] - np.log(600)) < 0.5
    measures = ("loss", "accuracy", "accuracy_mask", "accuracy_kept", "commonest", "neighbours_mask")
    for measure in measures:
        assert set(runs.metrics(workdir, f"held_out/left_{measure}")) == {1, 2}
    # It predicts the pieces that SBO does, so the guesses without a model are the same.
    for guess in ("commonest", "neighbours_mask", "neighbours_loss_mask", "share_kept"):
        assert runs.metrics(workdir, f"held_out/left_{guess}") == runs.metrics(workdir, f"held_out/sbo_{guess}")
    assert "Step 2, held out: MLM " in printed and ", LEFT " in printed
    assert "Held-out LEFT on [MASK] pieces: loss " in printed

    first, last = runs.params(workdir, 1), runs.params(workdir, 2)
    of_head = [name for name in last if name.startswith("['left']")]
    assert len(of_head) == 3
    assert all(not np.array_equal(first[name], last[name]) for name in of_head)

    shutil.rmtree(workdir / "checkpoints" / "2")
    again = runs.call(workdir, **fields).stdout
    assert "Step 1 of 2" in again
    resumed = runs.params(workdir, 2)
    assert all(np.array_equal(resumed[name], last[name]) for name in last)
    assert runs.metrics(workdir, "train/left_loss") == logged


def test_a_head_without_a_weight_is_not_computed_and_one_more_head_counts_in_the_flops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, counted = small_config(), []
    for heads in (pretraining_heads.HEADS, (*pretraining_heads.HEADS, LEFT)):
        monkeypatch.setattr(pretraining_heads, "HEADS", heads)
        counted.append(flops.pretraining_row_flops(config, 131, 32))
    assert counted[1] - counted[0] == 3 * 2 * 8 * (24**2 + 24 * 131)
    without = small_config(train={"sbo_weight": 0.0})
    assert [head.name for head in pretraining_heads.trained_heads(without)] == ["mlm", "left"]
