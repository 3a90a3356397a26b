"""SQuAD 2.0: a question may have no answer in the text.

Command:   python -m spanbert_jax.main --config configs/squad2.py --config.init_from=runs/base --workdir runs/squad2
           --config.data.train=train-v2.0.json --config.data.dev=dev-v2.0.json reads files instead of TFDS's.
Recipe:    as in squad.py. The checkpoint with the best F1 over all no-answer thresholds is kept, with that threshold;
           predictions.json has "" where "no answer" scores higher by more than the threshold, and null_odds.json has
           that difference for each question.
Hardware:  one GPU or TPU chip for base and large. 16,300 steps, 46 PFLOP for base.
Expect:    dev F1 83.6 with base (the authors' README); test EM / F1 85.7 / 88.7 with large (the paper).
"""

from ml_collections import ConfigDict

from configs import squad


def get_config() -> ConfigDict:
    """SQuAD 1.1's settings, with questions that have no answer."""
    config = squad.get_config()
    config.data.update(train="squad/v2.0", dev="squad/v2.0")
    config.question_answering.unanswerable = True
    return config
