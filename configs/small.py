"""A small modern encoder on 10 MB of text, masked anew in each of five epochs.

Command:   python -m spanbert_jax.main --config configs/small.py --config.corpus.files='data/*.txt'
           --workdir runs/small
Hardware:  two CPU cores, 4 GB; 45 minutes.
Expect:    on ten files of English Wikipedia (3.2 million pieces) MLM's held-out accuracy on pieces that became [MASK]
           is 14.5%, with 5.34 nats, and SBO's 13.1%, with 5.43. The best guess from the visible pieces beside a masked
           one is right on 10.4%, with 6.02 nats.
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config() -> ConfigDict:
    """Four layers of width 192, rows of up to 128 pieces; no dropout, since 10 MB come five times, masked anew."""
    config = default_config()
    config.corpus.held_out = 0.04
    config.tokenizer.vocab_size = 4_096
    config.tokenizer.sample_bytes = 10_000_000
    config.data.update(block_length=128, lengths=4)
    config.model.update(family="modern", pre_norm=True, gated_mlp=True, layers=4, embed=192, heads=3, mlp=384)
    config.model.update(max_length=128, dropout=0.0, attention_dropout=0.0)
    config.model.update(attention_bias=False, mlp_bias=False, norm_bias=False, head_bias=False)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=400, beta2=0.98)
    config.optimizer.update(weight_decay=0.01, decay_scope="matrices")
    config.train.update(batch_size=32, steps=4_800, log_every=100, eval_every=400, checkpoint_every=400)
    return config
