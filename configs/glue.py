"""GLUE: classifies a sentence or a pair of sentences, as SpanBERT's run_glue.py does.

Command:   python -m spanbert_jax.main --config configs/glue.py:sst2 --config.init_from=DIRECTORY
           --config.data.train=SST-2/train.tsv --config.data.dev=SST-2/dev.tsv --workdir runs/sst2
           The tasks are cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte and wnli; glue.py:task=sst2 means glue.py:sst2.
           A TFDS name such as glue/sst2 may stand for a file.
Hardware:  one GPU or TPU chip for base and large; minutes on two CPU cores for a tiny encoder.
Expect:    the paper's SpanBERT-large: CoLA 64.3, SST-2 94.8, MRPC 90.9 / 87.9, STS-B 89.9 / 89.1, QQP 71.9 / 89.5,
           MNLI 88.1 / 87.7, QNLI 94.3, RTE 79.0 (test sets; Joshi et al. 2020, table 5).
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config(task: str = "sst2") -> ConfigDict:
    """Learning rate 2e-5, batches of 32 rows of up to 128 pieces, 10 epochs (4 for CoLA). task: a name of GLUE's, or
    "custom"."""
    task = task.removeprefix("task=")
    config = default_config()
    config.task = "sequence_classification"
    config.classification.name = task
    config.data.block_length = 128
    config.finetuning.epochs = 4.0 if task == "cola" else 10.0
    config.optimizer.update(learning_rate=2e-5, weight_decay=0.01, decay_scope="matrices", decay_from="warmup_end")
    config.optimizer.update(eps=1e-6, bias_correction=False)
    config.train.update(batch_size=32, log_every=50, checkpoint_every=1_000, keep_checkpoints=1)
    return config
