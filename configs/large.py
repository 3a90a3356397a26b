"""SpanBERT-large: 24 layers of width 1024, the recipe of the paper's section 4.2.

Command:   python -m spanbert_jax.main --config configs/large.py --workdir /mnt/shared/large
           --config.corpus.files='data/*.txt' trains on your text instead of Wikipedia.
Compute:   1.0356 TFLOP a row, 636 EFLOP in all; the paper's run took 15 days on 32 V100.
Expect:    after fine-tuning, test F1 of SQuAD 1.1 / 2.0 94.6 / 88.7 (the paper's table 1).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Base, wider and deeper, with smaller batches and a smaller learning rate."""
    config = base.get_config()
    config.model.update(layers=24, embed=1024, heads=16, mlp=4096)
    config.optimizer.learning_rate = 1e-4
    config.train.update(batch_size=256, steps=2_400_000, eval_every=50_000, checkpoint_every=5_000)
    return config
