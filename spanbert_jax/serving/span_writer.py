"""Writes the pieces of spans that are one [MASK] each, with the span decoder of trained weights, and scores given ones.

Invariant: the strings of a span and their scores depend on its own row alone, and every shape of batch has one compiled
program. The beam search is in span_beam.py; given strings have the losses of training.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape, plan_batches, shape_table
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError
from spanbert_jax.model.encoder import table_rows
from spanbert_jax.model.pretraining_heads import DECODER, SBO, losses, pretraining_model
from spanbert_jax.serving.functions import EXACT
from spanbert_jax.serving.predictor import AbstractBatch, Params, Predictor
from spanbert_jax.serving.span_beam import span_strings
from spanbert_jax.serving.weights import Weights
from spanbert_jax.training.progress import Show, quiet

_ROWS = 16  # of the largest batch: each string of a beam takes the scores of a vocabulary twice


class SpanQuery(NamedTuple):
    """A span to write."""

    ids: Sequence[int]  # [CLS] text [SEP], with one [MASK] for this span, and one for each other span
    position: int  # of this span's [MASK]
    pieces: int = 0  # 0: any number
    words: tuple[int, int] = (1, 2**15)  # the fewest and the most
    first: frozenset[int] = frozenset()  # classes of the first piece; empty: any


class WrittenSpan(NamedTuple):
    """A string for a span."""

    pieces: tuple[int, ...]
    log_prob: float  # of the string and its length together; those of all strings add up to 1
    piece_log_probs: tuple[float, ...]  # of each piece, given the ones before and whether the string ends there


class SpanWriter:
    """The span decoder of trained weights.

    Attributes:
      longest: pieces in the longest row.
      most: pieces in the longest string.
    """

    def __init__(self, weights: Weights, params: Params, layout: NamedSharding, classes: np.ndarray, beam: int = 8):
        """layout: divides the rows of a batch among the devices. classes: bool [classes, vocab_size], as in
        `span_strings`. beam: strings that are kept at each step, and returned. Raises UserError where the weights have
        no decoder."""
        missing = [group for group in (DECODER.name, SBO.name) if group not in params]
        if missing:
            raise UserError(
                f"{weights.source}: has no span decoder; train one with --config configs/decoder.py "
                "--config.init_from=DIRECTORY, or fill in spans with MLM and SBO"
            )
        config = dataclasses.replace(weights.config, compute=EXACT)
        vocab = weights.tokenizer.vocab_size
        self.longest, self.most = config.model.max_length, config.masking.max_span_offset

        def compute(params: Params, batch: Batch) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("highest"):
                given = params["model"], params["classes"], params["ends_word"]
                return span_strings(config, vocab, beam, *given, batch)

        model = pretraining_model(config, vocab, "cpu", (SBO, DECODER))

        def score(params: Params, batch: Batch) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("highest"):
                lost = losses(model, params["model"], batch, heads=(DECODER,))[DECODER.name]
            return {"pieces": -lost.loss, "ends": -lost.further["end"]}

        self._predictor, self._scorer = Predictor(compute, layout), Predictor(score, layout)
        rows = table_rows(config.model, vocab)
        padded, ends_word = np.zeros((len(classes), rows), np.bool_), np.zeros(rows, np.bool_)
        padded[:, :vocab], ends_word[:vocab] = classes, weights.tokenizer.ends_word
        groups = {name: params[name] for name in (*ENCODER, SBO.name, DECODER.name) if name in params}
        self._params = self._predictor.place({"model": groups, "classes": padded, "ends_word": ends_word})
        self._classes = len(classes)
        table = shape_table(self.longest, config.data.lengths, self._predictor.multiple)
        self._table = [shape for shape in table if shape.rows <= max(_ROWS, self._predictor.multiple)]

    def warm_up(self, show: Show = quiet) -> None:
        """Compiles the programs of all shapes."""
        abstract: list[AbstractBatch] = [
            {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self._empty(shape).items()}
            for shape in self._table
        ]
        self._predictor.warm_up(self._params, abstract, show)

    def write(self, queries: Sequence[SpanQuery]) -> list[list[WrittenSpan]]:
        """The likeliest strings of each span, best first: as many as the beam, or fewer where no others are allowed.

        A span of more than `most` pieces has none.
        """
        outputs = self._predictor.outputs(self._params, self._batches(queries), len(queries))
        found = []
        for output in outputs:
            strings = []
            for string in np.flatnonzero(output["log_prob"] > -np.inf):
                count = output["lengths"][string]
                pieces, of_pieces = (output[name][string, :count] for name in ("pieces", "piece_log_probs"))
                of_string = float(output["log_prob"][string])
                strings.append(WrittenSpan(tuple(pieces.tolist()), of_string, tuple(of_pieces.tolist())))
            found.append(strings)
        return found

    def given(
        self, queries: Sequence[SpanQuery], strings: Sequence[Sequence[int]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query and its string of at most `most` pieces: the log-probabilities of the pieces, given whether
        the string ends there, and those of going on or ending, float32 [pieces] each. Their sum is that of the string.
        """
        outputs = self._scorer.outputs(self._params, self._scored_batches(queries, strings), len(queries))
        lengths = map(len, strings)
        return [(out["pieces"][:n], out["ends"][:n]) for out, n in zip(outputs, lengths, strict=True)]

    def _scored_batches(
        self, queries: Sequence[SpanQuery], strings: Sequence[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
        """The collapsed batches of training, of rows with one span."""
        slots = np.arange(self.most)
        for indices, batch in self._batches(queries):
            ids = np.zeros((len(indices), self.most), np.int32)
            for place, i in enumerate(indices):
                if i >= 0:
                    ids[place, : len(strings[i])] = strings[i]
            lengths = np.array([len(strings[i]) if i >= 0 else 0 for i in indices])
            span = np.where(slots < lengths[:, None], batch["span"][:, None], 0).astype(np.int32)
            inside = span > 0
            yield (
                indices,
                {
                    "input_ids": batch["input_ids"],
                    "lengths": batch["lengths"],
                    "masked_ids": ids,
                    "masked_positions": span,
                    "span_left": (span - 1) * inside,
                    "span_right": (span + 1) * inside,
                    "span_offset": (slots * inside).astype(np.int32),
                },
            )

    def _batches(self, queries: Sequence[SpanQuery]) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
        lengths = np.array([len(query.ids) for query in queries])
        for indices, shape in plan_batches(lengths, self._table):
            batch = self._empty(shape)
            for place, query in ((place, queries[i]) for place, i in enumerate(indices) if i >= 0):
                batch["input_ids"][place, : len(query.ids)] = query.ids
                batch["lengths"][place], batch["span"][place] = len(query.ids), query.position
                batch["count"][place], batch["words"][place] = query.pieces, query.words
                batch["first"][place] = [not query.first or number in query.first for number in range(self._classes)]
            yield indices, batch

    def _empty(self, shape: Shape) -> NumpyBatch:
        """A batch of rows whose search is over after one step."""
        return {
            "input_ids": np.zeros(shape, np.int32),
            "lengths": np.zeros(shape.rows, np.int32),
            "span": np.ones(shape.rows, np.int32),
            "count": np.zeros(shape.rows, np.int32),
            "words": np.zeros((shape.rows, 2), np.int32),
            "first": np.zeros((shape.rows, self._classes), np.bool_),
        }
