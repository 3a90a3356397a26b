"""Classifies your own texts with your own labels, from a TSV, CSV or JSONL file with named columns.

Command:   python -m spanbert_jax.main --config configs/classify.py --config.init_from=DIRECTORY
           --config.data.train=train.csv --config.data.dev=dev.csv --config.classification.text=review
           --config.classification.label=stars --workdir runs/reviews
           --config.classification.second=COLUMN names the second text, where examples have two.
Hardware:  one GPU or TPU chip for base and large; minutes on two CPU cores for a tiny encoder.
Expect:    accuracy and macro-F1 on the dev file, every tenth of an epoch; the best checkpoint is kept.
"""

from ml_collections import ConfigDict

from configs import glue


def get_config() -> ConfigDict:
    """GLUE's settings, with rows of up to 256 pieces and 4 epochs."""
    config = glue.get_config("custom")
    config.data.block_length = 256
    config.finetuning.epochs = 4.0
    return config
