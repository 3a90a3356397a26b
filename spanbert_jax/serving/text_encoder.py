"""Computes the encoder's hidden states of texts, with the place of each piece in its text, and vectors of whole texts.

Invariant: a text's pieces, offsets and hidden states have one order and one length, [CLS] and [SEP] included. Hidden
states are computed in float32, by the function that is exported and compared with PyTorch, and a text's vectors do not
depend on the other texts beyond rounding.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import plan_batches, shape_table
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError, quoted
from spanbert_jax.model.row_pooling import ROW_POOLINGS, pool_rows, unit
from spanbert_jax.model.span_pooling import POOLINGS, pool_spans
from spanbert_jax.serving.functions import encode_function
from spanbert_jax.serving.predictor import Outputs, Params, Predictor
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import field
from spanbert_jax.tasks.rows import Rows, make_rows


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
        self._tokenizer, self._config, self._layout = weights.tokenizer, weights.config, layout
        self._room = weights.config.model.max_length - 2
        self._predictors: dict[tuple[int | None, str, bool], Predictor] = {}
        first = self._predictor(None, "", False)
        self._params = first.place({group: params[group] for group in ENCODER if group in params})
        self._table = shape_table(self._room + 2, weights.config.data.lengths, first.multiple)

    def hidden_states(self, texts: Sequence[str], layer: int = -1) -> list[Encoding]:
        """The encoding of each text, in their order. A program is compiled for each new shape of batch.

        layer: 0 for the embeddings, 1 for the first layer's output, ...; negative numbers count from the last layer,
        -1. They are transformers' `hidden_states`, so the last one includes a norm that follows the last layer. Raises
        UserError on another layer, and on a value that is no text.
        """
        predictor = self._predictor(self._numbered(layer), "", False)
        found = [self._tokenizer.tokenize_with_offsets(text) for text in _checked(texts)]
        outputs = self._outputs(predictor, [ids for ids, _ in found])
        tokenizer = self._tokenizer
        encodings = []
        for (ids, offsets), output in zip(found, outputs, strict=True):
            row = [tokenizer.cls_id, *ids[: self._room], tokenizer.sep_id]
            pieces, places = [tokenizer.piece(id) for id in row], [(0, 0), *offsets[: self._room], (0, 0)]
            states = output["states"][: len(row)]
            encodings.append(Encoding(pieces, np.array(places, np.int32), states, len(ids) > self._room))
        return encodings

    def embed(self, texts: Sequence[str], pooling: str, layer: int, normalise: bool) -> np.ndarray:
        """A vector of each text, float32 [texts, embed], pooled on the device by `pool_rows`.

        pooling: "mean", "cls" or "max", over all pieces of the row, [CLS] and [SEP] included, as sentence-transformers
        pools. layer: as for `hidden_states`. normalise: whether to scale each vector to length 1. A warning on stderr
        counts the texts that were cut. Raises UserError on another pooling or layer, on a value that is no text, and on
        a text without a piece.
        """
        if pooling not in ROW_POOLINGS:
            raise UserError(f"pooling is {quoted(pooling)}; it must be one of {', '.join(map(repr, ROW_POOLINGS))}")
        predictor = self._predictor(self._numbered(layer), pooling, normalise)
        ids = self._tokenizer.tokenize_batch(_checked(texts))
        for number, (text, row) in enumerate(zip(texts, ids, strict=True)):
            if not row:
                raise UserError(f"texts[{number}] is {quoted(text)}, which has no pieces; leave it out")
        cut = [number for number, row in enumerate(ids) if len(row) > self._room]
        if cut:
            what = f"{len(cut):,} of {len(ids):,} texts are longer than {self._room + 2} pieces and were cut"
            print(f"warning: {what}; the first: texts[{cut[0]}]", file=sys.stderr)
        vectors = [output["states"] for output in self._outputs(predictor, ids)]
        return np.stack(vectors) if vectors else np.zeros((0, self._config.model.embed), np.float32)

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]], pooling: str, layer: int = -1) -> np.ndarray:
        """The vectors of spans of characters [start, end) of the text, float32 [spans, parts * embed]; pooling: as for
        `pool_spans`; layer: as for `hidden_states`. A span covers every piece that has one of its characters.

        Raises UserError on another pooling or layer, and on a span that has no piece: one that is empty, of white space
        alone, outside of the text, or beyond the pieces that the model takes.
        """
        if pooling not in POOLINGS:
            raise UserError(f"pooling is {quoted(pooling)}; it must be one of {', '.join(map(repr, POOLINGS))}")
        encoding = self.hidden_states([text], layer)[0]
        found = pieces_of_spans(text, spans, encoding.offsets[1:-1], encoding.cut)
        ends = jnp.array([found], jnp.int32).reshape(1, -1, 2)
        return np.asarray(pool_spans(jnp.asarray(encoding.hidden_states)[None], ends[..., 0], ends[..., 1], pooling))[0]

    def _numbered(self, layer: int) -> int | None:
        """The number of layers to compute; None for the whole encoder, with all that follows its last layer."""
        layers = self._config.model.layers
        if not isinstance(layer, int | np.integer) or not -layers - 1 <= layer <= layers:
            raise UserError(
                f"layer is {quoted(layer)}; the model has {layers} layers: give 0 for the embeddings, 1 to {layers}, "
                f"or -{layers + 1} to -1, which is the last layer"
            )
        number = int(layer) % (layers + 1)
        return None if number == layers else number

    def _predictor(self, layer: int | None, pooling: str, normalise: bool) -> Predictor:
        """The function that returns "states": of each position or, with a pooling, one vector of each row."""
        key = (layer, pooling, normalise)
        if key not in self._predictors:
            encode = encode_function(self._config, self._tokenizer.vocab_size, layer)

            def compute(params: Params, batch: Batch) -> dict[str, jax.Array]:
                with jax.default_matmul_precision("highest"):
                    states = encode(params, batch["input_ids"], batch["lengths"], batch["token_type_ids"])
                    states = pool_rows(states, batch["lengths"], pooling) if pooling else states
                    return {"states": unit(states) if normalise else states}

            self._predictors[key] = Predictor(compute, self._layout)
        return self._predictors[key]

    def _outputs(self, predictor: Predictor, ids: Sequence[Sequence[int]]) -> Outputs:
        """The outputs of each text's row. ids: of each text, without [CLS] and [SEP]; of a long one the end is cut."""
        cls, sep = self._tokenizer.cls_id, self._tokenizer.sep_id
        whole = [[cls, *row[: self._room], sep] for row in ids]
        rows = make_rows([[{"input_ids": row, "token_type_ids": [0] * len(row)}] for row in whole])
        return predictor.outputs(self._params, self._batches(rows), len(rows)) if len(rows) else []

    def _batches(self, rows: Rows) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
        for indices, shape in plan_batches(rows.lengths, self._table):
            batch = rows.collate(indices, shape.length, {})
            yield indices, {name: batch[name] for name in ("input_ids", "lengths", "token_type_ids")}


def pieces_of_spans(
    text: str, spans: Sequence[tuple[int, int]], offsets: np.ndarray, cut: bool
) -> list[tuple[int, int]]:
    """The positions, in a row that begins with [CLS], of the first and the last piece of each span of characters.

    offsets: int32 [pieces, 2], those of the text's pieces. cut: whether the row lacks the text's last pieces. Raises
    UserError for a span that has no piece.
    """
    begin, end = offsets.T
    places = [np.flatnonzero((begin < last) & (end > first)) + 1 for first, last in spans]
    for (first, last), pieces in zip(spans, places, strict=True):
        if not 0 <= first < last <= len(text) or not len(pieces):
            what = f"the text has {len(text)} characters" + (" and was cut" if cut else "")
            raise UserError(f"the span ({first}, {last}) has no piece: {what}; give spans (start, end) in it")
    return [(int(pieces[0]), int(pieces[-1])) for pieces in places]


def _checked(texts: Sequence[str]) -> list[str]:
    """The texts, with U+FFFD for each lone surrogate; raises UserError, naming its number, on a value that is no
    text."""
    return [field({"text": text}, "text", str, f"texts[{number}]") for number, text in enumerate(texts)]
