"""BERT-base as published: pairs of texts, 15% of the pieces masked one by one, next-sentence prediction, no SBO.

Command:   python -m spanbert_jax.main --config configs/bert.py --config.tokenizer.vocab_file=vocab.txt
           --workdir /mnt/shared/bert
           vocab.txt is that of bert-base-uncased; with --config configs/bert.py:cased it is that of bert-base-cased.
           --config.corpus.files='data/*.txt' trains on your text instead of Wikipedia.
           --config.init_from=DIRECTORY --config.tokenizer.vocab_file= goes on from Google's BERT.
Recipe:    Devlin et al. 2019 (arXiv:1810.04805), section 3.1 and appendix A.2: 256 rows of 512 pieces, 1,000,000 steps,
           learning rate 1e-4. Adam is that of google-research/bert's optimization.py. The paper's text also has the
           BooksCorpus, and 90% of its steps have rows of 128 pieces.
Compute:   0.3014 TFLOP a row, 77 EFLOP in all. At 40% MFU: 2.3 days of one H200.
Expect:    97% to 98% of the pairs right (the paper's section 3.1). After fine-tuning, dev F1 of SQuAD 1.1 88.5 (its
           table 2).
"""

from ml_collections import ConfigDict

from spanbert_jax.config import default_config


def get_config(text: str = "uncased") -> ConfigDict:
    """The paper's recipe, with 20 lengths of rows. text: "uncased" or "cased", as the vocabulary is."""
    if text not in ("uncased", "cased"):
        raise ValueError(f"unknown kind of text {text!r}; it is one of uncased, cased")
    config = default_config()
    config.corpus.pairs = True
    config.tokenizer.update(kind="wordpiece", vocab_file="vocab.txt", lowercase=text == "uncased")
    config.data.lengths = 20
    config.masking.update(scheme="subword", granularity="piece")
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.01, decay_scope="matrices")
    config.optimizer.update(eps=1e-6, eps_placement="uncorrected", bias_correction=False)
    config.train.update(batch_size=256, steps=1_000_000, nsp_weight=1.0, sbo_weight=0.0)
    return config
