"""MRQA's sets of extractive questions: NewsQA, TriviaQA, SearchQA, HotpotQA, Natural Questions, SQuAD.

Command:   python -m spanbert_jax.main --config configs/mrqa.py --config.init_from=runs/base --workdir runs/newsqa
           --config.data.train=mrqa/trivia_qa --config.data.dev=mrqa/trivia_qa takes another set of TFDS.
           --config.data.train=NewsQA.train.jsonl.gz --config.data.dev=NewsQA.dev.jsonl.gz reads MRQA 2019's files.
Recipe:    as in squad.py, with 5 evaluations an epoch (SpanBERT's README, run_mrqa.py). The model learns the first
           answer that is found in the text. Unlike in the authors' code, each epoch has another order of batches.
Hardware:  as for squad.py; contexts have up to 800 words, so rows are longer.
Expect:    the paper's F1 (large), on halves of MRQA's dev sets that were not released: NewsQA 73.6, TriviaQA 83.6,
           SearchQA 84.8, HotpotQA 83.0, Natural Questions 82.5.
"""

from ml_collections import ConfigDict

from configs import squad


def get_config() -> ConfigDict:
    """SQuAD 1.1's settings on NewsQA, evaluated half as often."""
    config = squad.get_config()
    config.data.update(train="mrqa/news_qa", dev="mrqa/news_qa")
    config.finetuning.eval_every_epochs = 0.2
    return config
