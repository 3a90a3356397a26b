"""A modern encoder of ModernBERT-large's shape: 28 layers of width 1024.

Command:   python -m spanbert_jax.main --config configs/modern_large.py --workdir /mnt/shared/modern_large
Compute:   2.3993 TFLOP a row of 1,024, 246 EFLOP in all. At 40% MFU: 7 days of one H200, or 27 hours of a TPU v5e-32.
Recipe:    that of configs/modern_base.py with ModernBERT-large's learning rate.
"""

from ml_collections import ConfigDict

from configs import modern_base


def get_config() -> ConfigDict:
    """Modern base, wider and deeper, with a smaller learning rate."""
    config = modern_base.get_config()
    config.model.update(layers=28, embed=1024, heads=16, mlp=2624)
    config.optimizer.update(learning_rate=5e-4, weight_decay=0.02)
    return config
