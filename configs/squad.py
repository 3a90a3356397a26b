"""SQuAD 1.1: every question has its answer in the text.

Command:   python -m spanbert_jax.main --config configs/squad.py --config.init_from=runs/base --workdir runs/squad
           --config.data.train=train-v1.1.json --config.data.dev=dev-v1.1.json reads files instead of TFDS's "squad".
Recipe:    the authors' (SpanBERT's README, run_squad.py): 4 epochs of 32 rows, learning rate 2e-5, linear warm-up over
           10% of the steps and linear decay, no weight decay on biases and LayerNorm, Adam without bias correction,
           10 evaluations an epoch; the checkpoint with the best F1 is kept. Their search: 5e-6 to 5e-5, 16 and 32 rows.
Hardware:  one GPU or TPU chip for base and large. 11,000 steps of 32 rows of 167 pieces on average: 31 PFLOP for base.
Expect:    dev F1 92.4 with base (the authors' README); test EM / F1 88.8 / 94.6 with large (the paper).
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config() -> ConfigDict:
    """The authors' recipe, in windows of 512 pieces that begin 128 pieces apart."""
    config = default_config()
    config.task = "question_answering"
    config.data.update(train="squad", dev="squad", block_length=512)
    config.optimizer.update(
        learning_rate=2e-5,
        decay_from="warmup_end",
        eps=1e-6,
        bias_correction=False,
        weight_decay=0.01,
        decay_scope="matrices",
        clip_norm=1.0,
    )
    config.train.update(batch_size=32, seed=42, log_every=50, checkpoint_every=500, keep_checkpoints=1)
    config.finetuning.update(epochs=4.0, warmup_share=0.1, eval_every_epochs=0.1)
    config.question_answering.update(stride=128, max_question=64, max_answer=30, n_best=20)
    return config
