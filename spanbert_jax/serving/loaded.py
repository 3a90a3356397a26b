"""Trained weights for use from Python: what `spanbert_jax.load` returns.

Invariant: predictions are those of tools/predict.py, and hidden states those that exports are compared with.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.serving.answers import Answerer, kept_metrics, trained_task
from spanbert_jax.serving.text_encoder import Encoding, TextEncoder
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.tasks.example_files import Record
from spanbert_jax.tasks.finetuning import Prediction
from spanbert_jax.training import sharding

_T = TypeVar("_T")


class Loaded:
    """Trained weights, on this machine's devices.

    Attributes:
      source: the checkpoint, or the path of others' weights.
      task: what the weights were fine-tuned for, such as "question_answering"; "" where they were not.
      labels: of a classifier, in its order.
      tokenizer: the weights' vocabulary.
      config: of the run; for others' weights the defaults with their model and vocabulary.
    """

    def __init__(self, path: Path, vocab: Path | None = None):
        """path, vocab: as for `open_weights`, whose errors are raised here."""
        self._layout = sharding.batch_sharding(sharding.make_mesh(Config().mesh))
        with open_weights(path, vocab) as self._weights:
            params, _ = self._weights.load()
        self._params = jax.device_put(params, NamedSharding(self._layout.mesh, PartitionSpec()))
        saved = self._weights.metadata
        self.source, self.labels = self._weights.source, self._weights.labels
        self.task = "" if saved is None or saved.task in ("pretraining", "imported") else saved.task
        self.tokenizer, self.config = self._weights.tokenizer, self._weights.config

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """One prediction a record, in their order, each a dict as a line of tools/predict.py's JSON lines.

        records: texts, where the task reads texts, or its fields: {"question": ..., "context": ...}, {"words": [...]},
        {"text": ...}; "id" may be among them. Raises UserError where the weights were not fine-tuned, or a record is
        not what the task reads.
        """
        return self._answerer.answer(_listed(records))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """(pieces, offsets, hidden states, cut) of each text, in their order; see `Encoding`."""
        return self._encoder.encode(_listed(texts))

    @functools.cached_property
    def _answerer(self) -> Answerer:
        return Answerer(trained_task(self._weights), self._params, kept_metrics(self._weights.metadata))

    @functools.cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self._weights, self._params, self._layout)


def _listed(values: Sequence[_T]) -> Sequence[_T]:
    """The values; raises UserError for one text or object, of which each character or name would be taken for one."""
    if isinstance(values, str | Mapping):
        raise UserError(f"expected a list, found one {type(values).__name__} ({str(values)[:40]!r}); put it in a list")
    return values
