"""Relation extraction on TACRED's JSON or SemEval-2010 Task 8's text, as SpanBERT's run_tacred.py does.

Command:   python -m spanbert_jax.main --config configs/relation.py --config.init_from=DIRECTORY
           --config.data.train=train.json --config.data.dev=dev.json --workdir runs/tacred
           python -m spanbert_jax.main --config configs/relation.py:semeval --config.init_from=DIRECTORY
           --config.data.train=TRAIN_FILE.TXT --config.data.dev=TEST_FILE_FULL.TXT --workdir runs/semeval
Hardware:  one GPU or TPU chip for base and large; minutes on two CPU cores for a tiny encoder.
Expect:    the paper's SpanBERT-large on TACRED: 70.8 F1 (70.8 precision, 70.9 recall); base 68.2.
"""

from ml_collections import ConfigDict

from configs import glue


def get_config(kind: str = "tacred") -> ConfigDict:
    """Learning rate 2e-5, batches of 32 rows of up to 128 pieces, 10 epochs; entities are masked in TACRED, and marked
    in SemEval. kind: "tacred" or "semeval"."""
    config = glue.get_config("sst2")
    config.task = "relation_extraction"
    config.relation.format = kind
    config.relation.entities = "mask" if kind == "tacred" else "markers"  # SemEval's entities have no types to show
    return config
