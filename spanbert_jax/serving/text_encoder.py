"""Computes the encoder's hidden states of texts, with the place of each piece in its text, and vectors of whole texts.

Invariant: a text's pieces, offsets and hidden states have one order and one length, [CLS] and [SEP] included. Hidden
states are computed in float32, by the engine's models and by the function that is exported and compared with PyTorch. A
text's vectors do not depend on the other texts beyond rounding.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.errors import UserError, quoted
from spanbert_jax.model.row_pooling import ROW_POOLINGS
from spanbert_jax.model.span_pooling import POOLINGS, pool_spans
from spanbert_jax.serving.engine import compute_all, cut_items
from spanbert_jax.serving.predictor import Params
from spanbert_jax.serving.text_models import EmbeddingModel, PieceModel, Text, TextModel, pieces_of_spans
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import field

_ModelT = TypeVar("_ModelT", bound=TextModel)


class Encoding(NamedTuple):
    """A text as the encoder sees it: [CLS], pieces, [SEP]."""

    pieces: list[str]  # as the vocabulary writes them: "##ing", "▁the"
    offsets: np.ndarray  # int32 [pieces, 2]: each piece's characters [start, end) in the text; 0, 0 of [CLS] and [SEP]
    hidden_states: np.ndarray  # float32 [pieces, embed], of one layer
    cut: bool  # whether the text has more pieces than the model takes; the last ones are then left out


class TextEncoder:
    """The encoder of any weights, with or without a head."""

    def __init__(self, weights: Weights, params: Params, layout: NamedSharding):
        """layout: divides the rows of a batch among the devices."""
        self._weights, self._params, self._layout = weights, params, layout
        self._models: dict[tuple[type[TextModel], int | None], TextModel] = {}

    def hidden_states(self, texts: Sequence[str], layer: int = -1) -> list[Encoding]:
        """The encoding of each text, in their order. A program is compiled for each new shape of batch.

        layer: 0 for the embeddings, 1 for the first layer's output, ...; negative numbers count from the last layer,
        -1. They are transformers' `hidden_states`, so the last one includes a norm that follows the last layer. Raises
        UserError on another layer, on a value that is no text, and where a number is not finite.
        """
        model, tokenizer = self._model(PieceModel, layer), self._weights.tokenizer
        found = [tokenizer.tokenize_with_offsets(text) for text in _checked(texts)]
        rows = [model.row(ids) for ids, _ in found]
        encodings = []
        for row, (_, offsets), (output,) in zip(rows, found, compute_all(model, [[row] for row in rows]), strict=True):
            ids: list[int] = row["input_ids"]
            places = [(0, 0), *offsets[: len(ids) - 2], (0, 0)]
            pieces, states = [tokenizer.piece(id) for id in ids], output["states"][: len(ids)]
            encodings.append(Encoding(pieces, np.array(places, np.int32), states, bool(row["cut"])))
        return encodings

    def embed(self, texts: Sequence[str], pooling: str, layer: int, normalise: bool) -> np.ndarray:
        """A vector of each text, float32 [texts, embed], pooled on the device by `pool_rows`.

        pooling: "mean", "cls" or "max", over all pieces of the row, [CLS] and [SEP] included, as sentence-transformers
        pools. layer: as for `hidden_states`. normalise: whether to scale each vector to length 1. A warning on stderr
        counts the texts that were cut. Raises UserError on another pooling or layer, on a value that is no text, on a
        text without a piece, and where a number is not finite.
        """
        if pooling not in ROW_POOLINGS:
            raise UserError(f"pooling is {quoted(pooling)}; it must be one of {', '.join(map(repr, ROW_POOLINGS))}")
        model = self._model(EmbeddingModel, layer)
        items = [Text(text, pooling, normalise) for text in _checked(texts)]
        rows = model.rows(items)
        cut = cut_items(rows)
        if cut:
            what = f"{len(cut):,} of {len(items):,} texts are longer than {model.longest} pieces and were cut"
            print(f"warning: {what}; the first: texts[{cut[0]}]", file=sys.stderr)
        vectors = [output["embedding"] for (output,) in compute_all(model, rows)]
        return np.stack(vectors) if vectors else np.zeros((0, self._weights.config.model.embed), np.float32)

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]], pooling: str, layer: int = -1) -> np.ndarray:
        """The vectors of spans of characters [start, end) of the text, float32 [spans, parts * embed]; pooling: as for
        `pool_spans`; layer: as for `hidden_states`. A span covers every piece that has one of its characters.

        Raises UserError on another pooling or layer, and on a span that has no piece: one that is empty, of white space
        alone, outside of the text, or beyond the pieces that the model takes.
        """
        if pooling not in POOLINGS:
            raise UserError(f"pooling is {quoted(pooling)}; it must be one of {', '.join(map(repr, POOLINGS))}")
        for span in spans:
            if not isinstance(span, tuple | list | np.ndarray) or len(span) != 2 or not all(map(_is_whole, span)):
                raise UserError(f"{quoted(span)} is no span; give spans (start, end), two numbers of characters each")
        encoding = self.hidden_states([text], layer)[0]
        found = pieces_of_spans(text, spans, encoding.offsets[1:-1], encoding.cut)
        ends = jnp.array([found], jnp.int32).reshape(1, -1, 2)
        return np.asarray(pool_spans(jnp.asarray(encoding.hidden_states)[None], ends[..., 0], ends[..., 1], pooling))[0]

    def _model(self, kind: type[_ModelT], layer: int) -> _ModelT:
        """The engine's model of a kind for a layer, which stays here with its programs."""
        layers, longest = self._weights.config.model.layers, self._weights.config.model.max_length
        if not isinstance(layer, int | np.integer) or not -layers - 1 <= layer <= layers:
            raise UserError(
                f"layer is {quoted(layer)}; the model has {layers} layers: give 0 for the embeddings, 1 to {layers}, "
                f"or -{layers + 1} to -1, which is the last layer"
            )
        number = int(layer) % (layers + 1)
        wanted = None if number == layers else number  # the whole encoder, with all that follows its last layer
        if (kind, wanted) not in self._models:
            made = kind("texts", self._weights, self._params, self._layout, longest, layer=wanted, called="texts")
            self._models[kind, wanted] = made
        model = self._models[kind, wanted]
        assert isinstance(model, kind)
        return model


def _checked(texts: Sequence[str]) -> list[str]:
    """The texts, with U+FFFD for each lone surrogate; raises UserError, naming its number, on a value that is no
    text."""
    return [field({"text": text}, "text", str, f"texts[{number}]") for number, text in enumerate(texts)]


def _is_whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)
