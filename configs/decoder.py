"""A decoder of masked spans on top of a pre-trained run: writes a span piece by piece, and says where the span ends.

Command:   python -m spanbert_jax.main --config configs/decoder.py --config.init_from=runs/tiny
           --config.data.dir=runs/tiny/data
           trains on the blocks of configs/tiny.py. On a run of another configuration, such as configs/base.py, it is
           --config configs/decoder.py:base, with that run's corpus.
           --config.train.only= trains the encoder and the span-boundary head too.
Hardware:  two CPU cores, 4 GB; minutes.
Expect:    on a run of configs/small.py: 4.58 nats a held-out piece, 21% right, given the pieces before it; 0.41 nats
           for the span's end (docs/pretraining.md has the curve).
Recipe:    two causal layers over the span, with attention to the row. The encoder and the other heads stay as they are;
           the scores begin as those of the span-boundary objective (model/span_decoder.py).
"""

import importlib
from pathlib import Path

from ml_collections import ConfigDict


def get_config(run: str = "tiny") -> ConfigDict:
    """The decoder alone. run: the configuration of the run that the decoder starts from, a file beside this one, which
    says what the rows are."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    if run not in names:
        raise ValueError(f"there is no configs/{run}.py, only {', '.join(names)}; name one of pre-training")
    config: ConfigDict = importlib.import_module(f"configs.{run}").get_config()
    if config.task != "pretraining":
        raise ValueError(f"configs/{run}.py is for {config.task}; name a configuration of pre-training, such as tiny")
    config.init_from = f"runs/{run}"
    config.masking.collapse_spans = True
    config.model.update(decoder_layers=2, dropout=0.0, attention_dropout=0.0)
    config.optimizer.update(name="muon", learning_rate=3e-3, warmup_steps=50, weight_decay=0.01)
    config.train.update(batch_size=32, steps=800, only="decoder", log_every=50, eval_every=200, checkpoint_every=200)
    return config
