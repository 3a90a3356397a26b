"""Rows of 2,048 pieces: documents are cut to them, and windowed attention trains on them alike in both of its forms."""

from pathlib import Path

import jax
import numpy as np
import pytest

from spanbert_jax.corpus.blocks import open_blocks
from spanbert_jax.corpus.build import build_blocks
from spanbert_jax.corpus.masked_batches import train_batches
from spanbert_jax.model.kernels.attention_banded import Band
from spanbert_jax.training.sharding import batch_sharding, make_mesh
from tests.support import runs
from tests.support.steps import training_of
from tests.support.synthetic import small_config
from tests.support.tuned import WORDPIECE

LENGTH, WINDOW = 2048, 8


def test_blocks_of_2048_pieces_train_with_equal_losses_in_the_banded_and_the_dense_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.write_corpus(tmp_path / "topics.txt", topics=4)
    config = small_config(
        corpus={"files": str(tmp_path / "topics.txt"), "workers": 1, "held_out": 0.3},
        data={"block_length": LENGTH, "lengths": 1},
        model={"family": "modern", "max_length": LENGTH, "window": WINDOW, "full_every": 2, "init_std": 0.3},
        train={"batch_size": 1},
    )
    build_blocks(config, WORDPIECE, tmp_path / "blocks")
    blocks = open_blocks(tmp_path / "blocks", "train")
    assert max(blocks.lengths) > LENGTH // 2
    layout = batch_sharding(make_mesh(config.mesh))
    batches = list(train_batches(config, blocks, WORDPIECE, layout, 0, 2))
    losses: dict[str, list[float]] = {"banded": [], "dense": []}
    for form, found in losses.items():
        monkeypatch.setattr(Band, "is_cheaper", lambda band, form=form: form == "banded" and band == (LENGTH, WINDOW))
        training = training_of.__wrapped__(config)  # anew, with this form of attention
        with jax.set_mesh(training.mesh):
            state = training.first()
            for batch in batches:
                state, sums = training.step(state, batch)
                found += [float(sums[name]) for name in ("mlm_loss", "sbo_loss", "gradient_norm")]
    assert np.isfinite(losses["banded"]).all() and losses["banded"][0] > 0
    assert losses["banded"] == pytest.approx(losses["dense"], rel=1e-5)
    assert losses["banded"] != losses["dense"]  # rounding: the two forms were not the same
