"""Computes the encoder's hidden states of texts, with the place of each piece in its text.

Invariant: a text's pieces, offsets and hidden states have one order and one length, [CLS] and [SEP] included. Hidden
states are computed in float32, by the function that is exported and compared with PyTorch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import plan_batches, shape_table
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError
from spanbert_jax.model.span_pooling import POOLINGS, pool_spans
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.predictor import Params, Predictor
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.rows import Rows, make_rows


class Encoding(NamedTuple):
    """A text as the encoder sees it: [CLS], pieces, [SEP]."""

    pieces: list[str]  # as the vocabulary writes them: "##ing", "▁the"
    offsets: np.ndarray  # int32 [pieces, 2]: each piece's characters [start, end) in the text; 0, 0 of [CLS] and [SEP]
    hidden_states: np.ndarray  # float32 [pieces, embed], of the last layer
    cut: bool  # whether the text has more pieces than the model takes; the last ones are then left out


class TextEncoder:
    """The encoder of any weights, with or without a head."""

    def __init__(self, weights: Weights, params: Params, layout: NamedSharding):
        """layout: divides the rows of a batch among the devices."""
        self._tokenizer, self._longest = weights.tokenizer, weights.config.model.max_length
        encode = functions(weights.config, ENCODER, weights.tokenizer.vocab_size, 0)["encode"]

        def compute(params: Params, batch: Batch) -> dict[str, jax.Array]:
            return {"hidden_states": encode(params, batch["input_ids"], batch["lengths"], batch["token_type_ids"])}

        self._predictor = Predictor(compute, layout)
        self._params = self._predictor.place({group: params[group] for group in ENCODER if group in params})
        self._table = shape_table(self._longest, weights.config.data.lengths, self._predictor.multiple)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The encoding of each text, in their order. A program is compiled for each new shape of batch."""
        if not texts:
            return []
        tokenizer, room = self._tokenizer, self._longest - 2
        found = [tokenizer.tokenize_with_offsets(text) for text in texts]
        ids = [[tokenizer.cls_id, *pieces[:room], tokenizer.sep_id] for pieces, _ in found]
        rows = make_rows([[{"input_ids": row, "token_type_ids": [0] * len(row)}] for row in ids])
        outputs = self._predictor.outputs(self._params, self._batches(rows), len(rows))
        return [
            Encoding(
                [tokenizer.piece(piece) for piece in row],
                np.array([(0, 0), *offsets[:room], (0, 0)], np.int32),
                output["hidden_states"][: len(row)],
                len(pieces) > room,
            )
            for row, (pieces, offsets), output in zip(ids, found, outputs, strict=True)
        ]

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]], pooling: str) -> np.ndarray:
        """The vectors of spans of characters [start, end) of the text, float32 [spans, parts * embed]; pooling: as for
        `pool_spans`. A span covers every piece that has one of its characters.

        Raises UserError on another pooling, and on a span that has no piece: one that is empty, of white space alone,
        outside of the text, or beyond the pieces that the model takes.
        """
        if pooling not in POOLINGS:
            raise UserError(f"pooling is {pooling!r}; it must be one of {', '.join(map(repr, POOLINGS))}")
        encoding = self.encode([text])[0]
        found = pieces_of_spans(text, spans, encoding.offsets[1:-1], encoding.cut)
        ends = jnp.array([found], jnp.int32).reshape(1, -1, 2)
        return np.asarray(pool_spans(jnp.asarray(encoding.hidden_states)[None], ends[..., 0], ends[..., 1], pooling))[0]

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
