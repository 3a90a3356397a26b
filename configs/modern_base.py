"""A modern encoder of ModernBERT-base's shape, with span masking and the span-boundary objective.

Command:   python -m spanbert_jax.main --config configs/modern_base.py --workdir /mnt/shared/modern
           --config.corpus.files='data/*.txt' trains on your text instead of Wikipedia.
           --config.init_from=DIRECTORY goes on from ModernBERT or Ettin.
           --config.data.block_length=8192 --config.train.batch_size=64 trains on long rows.
Compute:   0.8704 TFLOP a row of 1,024, 89 EFLOP in all. At 40% MFU: 2.6 days of one H200, or 10 hours of a TPU v5e-32.
           A row of 8,192 has 11.29 TFLOP.
Recipe:    Warner et al. 2024 (arXiv:2412.13663), table 3: StableAdamW, warm-up, a constant rate, a decay of 1 - sqrt.
           The masking rate falls from 30% to 15%, as Ettin's does. The constant phase can go on for longer, or end
           earlier, from any of its checkpoints (docs/pretraining.md).
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config() -> ConfigDict:
    """22 layers of width 768: rotary positions, pre-LayerNorm, gated networks, windows in two of three layers."""
    config = default_config()
    config.tokenizer.vocab_size = 32_768
    config.data.update(block_length=1024, lengths=20)
    config.masking.update(rate=0.3, final_rate=0.15, rate_steps=100_000)
    config.model.update(
        family="modern",
        layers=22,
        embed=768,
        heads=12,
        mlp=1152,
        max_length=8192,
        dropout=0.0,
        attention_dropout=0.0,
        layer_norm_eps=1e-5,
        pre_norm=True,
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
        norm_bias=False,
        head_bias=False,
        window=64,
        rope_theta=160_000.0,
        init="truncated",
    )
    # ModernBERT's decay of 1e-5 is not multiplied by the learning rate; 0.0125 is the same at the peak.
    config.optimizer.update(
        name="stable_adamw",
        learning_rate=8e-4,
        warmup_steps=2_000,
        schedule="wsd",
        decay_steps=10_000,
        beta2=0.98,
        eps=1e-6,
        weight_decay=0.0125,
        decay_scope="matrices",
        clip_norm=0.0,
    )
    config.train.update(batch_size=1024, steps=100_000)
    return config
