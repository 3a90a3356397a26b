"""SpanBERT-base: 12 layers of width 768, single sequences of 512 pieces, spans masked, SBO.

Command:   python -m spanbert_jax.main --config configs/base.py --workdir /mnt/shared/base
           --config.corpus.files='data/*.txt' trains on your text instead of Wikipedia.
           --config.tokenizer.kind=wordpiece --config.tokenizer.vocab_file=vocab.txt takes BERT's vocabulary.
Recipe:    the authors' for base (SpanBERT issue 6): 8 times the batch of large, 300,000 steps, learning rate 5e-4.
Compute:   0.3125 TFLOP a row, 192 EFLOP in all. At 40% MFU: 5.6 days of one H200, or 21 hours of a TPU v5e-32.
Expect:    after fine-tuning, dev F1 of SQuAD 1.1 / 2.0 92.4 / 83.6 (the authors' table for base).
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config() -> ConfigDict:
    """The defaults, with 20 lengths of rows: a run of days can afford to compile for each."""
    config = default_config()
    config.data.lengths = 20
    return config
