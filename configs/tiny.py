"""A small SpanBERT on the documentation strings of this machine's Python: minutes on two cores, no network.

Command:   make pretrain, or python -m spanbert_jax.main --config configs/tiny.py
           --config.corpus.files='data/*.txt' trains on your text instead. configs/tiny.py:bert is the paper's
           architecture instead of a modern encoder.
Hardware:  two CPU cores, 4 GB; 5 to 8 minutes.
Expect:    MLM's held-out accuracy on pieces that became [MASK] is 16%, with 5.11 nats, and SBO's 13%. Always naming
           the commonest piece scores 8%, and the best guess from the visible pieces beside a masked one 12%, with 5.73
           nats.
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config(architecture: str = "modern") -> ConfigDict:
    """Three layers of width 128, rows of up to 128 pieces; no dropout, since a block comes once or twice. architecture:
    "modern" or "bert"."""
    if architecture not in ("modern", "bert"):
        raise ValueError(f"unknown architecture {architecture!r}; it is one of modern, bert")
    config = default_config()
    config.corpus.name = "docstrings"
    config.corpus.held_out = 0.02
    config.tokenizer.vocab_size = 4_096
    config.tokenizer.sample_bytes = 10_000_000
    config.data.update(block_length=128, lengths=4)
    config.model.update(layers=3, embed=128, heads=2, mlp=384, max_length=128, dropout=0.0, attention_dropout=0.0)
    if architecture == "modern":
        biases = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "head_bias"), False)
        config.model.update(family="modern", pre_norm=True, gated_mlp=True, mlp=256, **biases)
        config.optimizer.update(learning_rate=1e-2)
    else:
        config.model.update(init="local", init_std=0.05)
        config.optimizer.update(learning_rate=2e-3, muon_rms=1.0)
    config.optimizer.update(name="muon", warmup_steps=200, beta2=0.98, weight_decay=0.01, decay_scope="matrices")
    config.train.update(batch_size=32, steps=1_600, log_every=50, eval_every=250, checkpoint_every=250)
    return config
