"""Trained weights for use from Python, as `spanbert_jax.load` returns them.

Invariant: predictions are those of tools/predict.py, and hidden states are those of an export.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.serving.answers import Answerer
from spanbert_jax.serving.explaining import Explainer, Explanation
from spanbert_jax.serving.gaps import Span, Words
from spanbert_jax.serving.infilling import ALTERNATIVES, BEAM, MIXTURE, ORDER, WORDS, Infilled, Infiller
from spanbert_jax.serving.scoring import Scored, TextScorer
from spanbert_jax.serving.served_models import ServedModels, served_models
from spanbert_jax.serving.slot_scores import piece_heads
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
      task: the task that the weights were fine-tuned for, such as "question_answering", or "".
      labels: of a classifier, in its order.
      piece_heads: the names of the heads that `infill` and `score` use: of "mlm" and "sbo".
      tokenizer: the weights' vocabulary.
      config: the run's; for others' weights the defaults, with these weights' model, vocabulary and task.
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
        self.piece_heads = tuple(head.name for head in piece_heads(self._weights, params))
        self.tokenizer, self.config = self._weights.tokenizer, self._weights.config

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """One prediction for each record, in their order: the objects that tools/predict.py writes as JSON lines.

        records: texts, where the task reads texts, or objects with the task's fields: {"question": ..., "context":
        ...}, {"words": [...]}, {"text": ...}. A record may have an "id". Raises UserError where the weights were not
        fine-tuned, or the task cannot read a record.
        """
        return self._answerer.answer(_listed(records))

    def hidden_states(self, texts: Sequence[str], layer: int = -1) -> list[Encoding]:
        """The `Encoding` of each text, in their order: pieces, offsets, hidden states, and whether the text was cut.
        layer: 0 for the embeddings, -1 for the last layer, as `TextEncoder.hidden_states`."""
        return self._encoder.hidden_states(_listed(texts), layer)

    def embed(
        self, texts: Sequence[str], pooling: str = "mean", layer: int = -1, normalise: bool = False
    ) -> np.ndarray:
        """A vector of each text, float32 [texts, embed], as `TextEncoder.embed`. pooling: "mean", "cls" or "max", over
        all pieces with [CLS] and [SEP]. normalise: whether to scale each vector to length 1."""
        return self._encoder.embed(_listed(texts), pooling, layer, normalise)

    def embed_spans(
        self, text: str, spans: Sequence[tuple[int, int]], pooling: str = "mean", layer: int = -1
    ) -> np.ndarray:
        """Vectors of spans of characters [start, end) of a text, float32 [spans, parts * embed], as
        `TextEncoder.embed_spans`. pooling: "mean", "ends", "boundary", "attention" or "all" (model/span_pooling.py)."""
        return self._encoder.embed_spans(text, spans, pooling, layer)

    def explain(
        self,
        record: Record,
        target: Any = None,
        method: str = "integrated_gradients",
        steps: int = 32,
        spans: Sequence[Sequence[Any]] | None = None,
        most_rows: int | None = None,
    ) -> Explanation:
        """How much each piece of a record (method "integrated_gradients", with `steps` points) or each word or span
        ("occlusion") contributes to a score, as `Explainer.explain`.

        target: by default the model's prediction; otherwise a label, a relation, [start, end, type] of an entity,
        [start, end] of an answer or "" for none. Without a fine-tuned head: [start, end] of the text that is masked,
        whose log-probability is explained. spans: [start, end], or [field, start, end] where the record has several
        texts. most_rows: that a record may be cut into; None: any number.
        """
        return self._explainer.explain(record, target, method, steps, spans, most_rows)

    def served(self, name: str, longest: int, deterministic: bool = False, dtype: str = "float32") -> ServedModels:
        """Models of the engine with these weights; the arguments are those of `served_models`."""
        return served_models(name, self._weights, self._params, self._layout, longest, deterministic, dtype)

    def infill(
        self,
        text: str,
        spans: Sequence[Span] | None = None,
        words: Words = WORDS,
        order: str = ORDER,
        beam: int = BEAM,
        mix: float | None = None,
        alternatives: int = ALTERNATIVES,
        heads: str = MIXTURE,
    ) -> Infilled:
        """The text with its gaps filled: "The [MASK] sat on the ___.", or the characters in `spans`. The arguments are
        those of `Infiller.infill`, which fills many texts at once."""
        of_text = None if spans is None else [spans]
        return self.infiller.infill([text], of_text, words, order, beam, mix, alternatives, heads)[0]

    def score(self, text: str, span: Span | None = None, rest_of_word: bool = False) -> Scored:
        """The pseudo-log-likelihood of a text, or of its characters [start, end) in their context, as `TextScorer`
        gives it for many texts at once. rest_of_word: a masked piece does not see the pieces after it in its word."""
        return self.scorer.score([text], None if span is None else [span], rest_of_word)[0]

    @functools.cached_property
    def scorer(self) -> TextScorer:
        """The scorer of texts; raises UserError where the weights have no head that predicts pieces."""
        return TextScorer(self.infiller.scorer, self.tokenizer)

    @functools.cached_property
    def infiller(self) -> Infiller:
        """The infiller of these weights; raises UserError where they have no head that predicts pieces."""
        return Infiller(self._weights, self._params, self._layout)

    @functools.cached_property
    def _answerer(self) -> Answerer:
        return Answerer(self._weights, self._params, self._layout)

    @functools.cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self._weights, self._params, self._layout)

    @functools.cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self._weights, self._params, self._layout, self._answerer if self.task else None)


def _listed(values: Sequence[_T]) -> Sequence[_T]:
    """The values; raises UserError for a single text or object, whose characters or names would be read as values."""
    if isinstance(values, str | Mapping):
        raise UserError(f"expected a list, found one {type(values).__name__} ({str(values)[:40]!r}); put it in a list")
    return values
