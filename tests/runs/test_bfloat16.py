"""Training in bfloat16 follows training in float32: the same corpus, masks and parameters at the start."""

from pathlib import Path

import numpy as np

from tests.support import runs

# The layers of configs/tiny.py over a smaller vocabulary and shorter rows of one length, with fewer rows a step and a
# shorter warm-up.
TINY = {
    "tokenizer.vocab_size": 1_000,
    "data.lengths": 1,
    "model.embed": 128,
    "model.mlp": 512,
    "optimizer.warmup_steps": 50,
    "train.steps": 500,
    "train.log_every": 25,
    "train.eval_every": 500,
    "train.checkpoint_every": 500,
}


def test_over_500_steps_of_the_tiny_model_bfloat16_stays_within_two_percent_of_float32(
    topics: Path, tmp_path: Path
) -> None:
    fields = {**TINY, "corpus.files": str(topics), "data.dir": str(tmp_path / "data")}
    both = [[str(tmp_path / dtype), {**fields, "compute.dtype": dtype}] for dtype in ("float32", "bfloat16")]
    runs.run_together(both, XLA_FLAGS="")  # optimised: many steps
    for name in ("train/mlm_loss", "train/sbo_loss"):
        wide, narrow = (runs.metrics(tmp_path / dtype, name) for dtype in ("float32", "bfloat16"))
        assert list(wide) == list(narrow) == [1, *range(25, 501, 25)]
        apart = np.array([narrow[step] / wide[step] - 1 for step in wide])
        assert np.abs(apart).max() < 0.02 and abs(apart.mean()) < 0.005, apart
        assert np.abs(apart).max() > 0  # it was not the same run twice
        assert wide[500] < 0.8 * wide[1]  # and it learnt
