"""Training in bfloat16 follows training in float32: the same corpus, masks and parameters at the start."""

from pathlib import Path

import numpy as np

from tests.support import runs

# The layers of configs/tiny.py, with two extensions, at a quarter of its width, over a smaller vocabulary and shorter
# rows of one length, with fewer rows a step and a shorter warm-up.
TINY = {
    "data__block_length": 32,
    "data__lengths": 1,
    "model__max_length": 32,
    "model__head_scales": "full",
    "model__context_encoder": "mingru",
    "optimizer__warmup_steps": 50,
    "train__batch_size": 4,
    "train__steps": 500,
    "train__log_every": 25,
    "train__eval_every": 500,
    "train__checkpoint_every": 500,
    "train__eval_blocks": 16,
}


def test_over_500_steps_of_a_tiny_model_bfloat16_stays_within_two_percent_of_float32(tmp_path: Path) -> None:
    runs.write_corpus(tmp_path / "topics.txt", topics=30)
    fields = {**TINY, "corpus__files": tmp_path / "topics.txt", "data__dir": tmp_path / "data"}
    for dtype in ("float32", "bfloat16"):
        runs.call(tmp_path / dtype, compute__dtype=dtype, **fields)
    for name in ("train/mlm_loss", "train/sbo_loss"):
        wide, narrow = (runs.metrics(tmp_path / dtype, name) for dtype in ("float32", "bfloat16"))
        assert list(wide) == list(narrow) == [1, *range(25, 501, 25)]
        apart = np.array([narrow[step] / wide[step] - 1 for step in wide])
        assert np.abs(apart).max() < 0.02 and abs(apart.mean()) < 0.005, apart
        assert np.abs(apart).max() > 0  # it was not the same run twice
        assert wide[500] < 0.8 * wide[1]  # and it learnt
