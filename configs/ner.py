"""Named-entity recognition on a CoNLL file: a word and its tag on each line.

Command:   python -m spanbert_jax.main --config configs/ner.py --config.init_from=runs/base
           --config.data.train=train.conll --config.data.dev=dev.conll --workdir runs/ner
           --config.tagging.head=span scores spans instead of words. --config.tagging.document_context=True adds the
           sentences around to a row, and needs files: TFDS keeps neither the order of sentences nor documents. Without
           it, --config.data.train=conll2003 --config.data.dev=conll2003 reads TFDS's set.
           tools/predict.py takes such columns too, or plain text in a .txt with a sentence on each line.
Recipe:    the fine-tuning of the SpanBERT paper's appendix B: AdamW without bias correction, 10% warm-up, linear decay.
Hardware:  for BERT-base one GPU of 16 GB: minutes for CoNLL-2003. CPU cores alone take hours.
Expect:    on CoNLL-2003 a base model reaches test F1 92.4 with the token head and document context (Devlin et al. 2018,
           table 7).
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config() -> ConfigDict:
    """The token head, rows of up to 256 pieces, 10 epochs."""
    config = default_config()
    config.task = "token_classification"
    config.data.block_length = 256
    config.finetuning.update(epochs=10.0, eval_every_epochs=1.0)
    config.optimizer.update(
        learning_rate=2e-5,
        decay_from="warmup_end",
        eps=1e-6,
        bias_correction=False,
        weight_decay=0.01,
        decay_scope="matrices",
    )
    config.train.update(batch_size=32, log_every=50)
    return config
