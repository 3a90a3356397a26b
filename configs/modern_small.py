"""A modern encoder of Ettin-17M's shape: 7 layers of width 256.

Command:   python -m spanbert_jax.main --config configs/modern_small.py --config.corpus.files='data/*.txt'
           --workdir runs/modern_small
Compute:   0.0316 TFLOP a row of 512, 1.6 EFLOP in all: an hour or two of one accelerator.
Recipe:    that of configs/modern_base.py, with Muon for the hidden matrices and the learning rate of Ettin's 17M model
           (Weller et al. 2025, arXiv:2507.11412).
"""

from ml_collections import ConfigDict

from configs import modern_base


def get_config() -> ConfigDict:
    """Modern base at a third of its width and depth."""
    config = modern_base.get_config()
    config.data.update(block_length=512)
    config.model.update(layers=7, embed=256, heads=4, mlp=384)
    config.optimizer.update(name="muon", learning_rate=3e-3, weight_decay=0.01, clip_norm=1.0)
    config.train.update(batch_size=512, steps=100_000)
    return config
