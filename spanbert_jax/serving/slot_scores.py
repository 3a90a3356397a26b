"""Computes the heads' log-probabilities at masked positions, their mixture, and the best pieces of each class.

Invariant: what leaves the device is a few numbers for each masked position, never scores of the whole vocabulary. The
distribution of a head, and the mixture s = (1 - weight) log p_MLM + weight log p_SBO, are normalised over the pieces
that count: all of the vocabulary, or those that can be text. The span of a masked position is the run of masked
positions around it, so its boundaries move as pieces are filled in.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape, plan_batches, shape_table
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.encoder import table_rows
from spanbert_jax.serving.decoding import Query, Scores
from spanbert_jax.serving.functions import EXACT
from spanbert_jax.serving.gaps import CONTINUES, JOINED, SPACED
from spanbert_jax.serving.mixture import Mixture
from spanbert_jax.serving.predictor import AbstractBatch, Params, Predictor
from spanbert_jax.serving.weights import Weights
from spanbert_jax.training.progress import Show, quiet

BEST = 10  # the pieces of each class that are returned, which is the widest beam and the most alternatives
_SLOTS = (8, 32, 128)  # masked positions of a row, padded to one of these
_ROWS = 16  # of the largest batch: each slot takes the scores of a vocabulary for each head
_NEVER = -1e9  # score of pieces that do not count


class NotFinite(UserError):
    """The heads give numbers that are not finite."""


class Given(NamedTuple):
    """The scores of given pieces, each float32 [wanted, mixtures] but the likeliest pieces, which are int32."""

    log_probs: np.ndarray
    likeliest: np.ndarray
    begins: np.ndarray  # log-probabilities that a piece which begins a word stands there


class SlotScorer:
    """The heads of any weights that have them: MLM, SBO or both.

    Attributes:
      heads: the names of the heads, of "mlm" and "sbo", in this order.
      longest: pieces in the longest row.
    """

    def __init__(self, weights: Weights, params: Params, layout: NamedSharding, classes: np.ndarray):
        """layout: divides the rows of a batch among the devices. classes: bool [CLASSES, vocab_size], the pieces that
        can be text. Raises UserError where the weights have no head that predicts pieces."""
        heads = piece_heads(weights, params)
        if not heads:
            raise UserError(
                f"{weights.source}: has no head that predicts masked pieces, neither MLM nor SBO; name a pre-training "
                "run, or published weights with a masked-language-model head"
            )
        self._source = weights.source
        self.heads = tuple(head.name for head in heads)
        self.longest, masking = weights.config.model.max_length, weights.config.masking
        if weights.span_boundary:  # of others' weights, which need not have the configuration's
            masking = dataclasses.replace(masking, max_span_offset=weights.span_boundary[0])
        self._offsets, self._outside = masking.max_span_offset, 1 if masking.boundaries == "external" else 0
        config = dataclasses.replace(weights.config, compute=EXACT, masking=masking)
        vocab = weights.tokenizer.vocab_size
        self._model = pretraining_heads.pretraining_model(config, vocab, "cpu", heads)
        self._best = Predictor(self._compute_best, layout)
        self._given = Predictor(self._compute_given, layout)
        groups = {name: params[name] for name in (*ENCODER, *self.heads) if name in params}
        padded = np.zeros((len(classes), table_rows(config.model, vocab)), np.bool_)
        padded[:, :vocab] = classes
        whole = padded.copy()
        whole[CONTINUES, :vocab] |= ~classes.any(axis=0)
        self._params = self._best.place({"model": groups, "classes": padded})  # pieces that can be text count
        self._whole = self._params | self._best.place({"classes": whole})  # every piece counts
        table = shape_table(self.longest, weights.config.data.lengths, self._best.multiple)
        self._table = [shape for shape in table if shape.rows <= max(_ROWS, self._best.multiple)]

    def warm_up(self, show: Show = quiet) -> None:
        """Compiles the programs of `best` for rows with up to 32 masked positions, and those of `given` for rows with
        up to 8 and one mixture."""
        shapes = [self._abstract(shape, slots) for shape in self._table for slots in _SLOTS[:2]]
        self._best.warm_up(self._params, shapes, show)
        given = []
        for abstract in (self._abstract(shape, _SLOTS[0]) for shape in self._table):
            size = abstract["mix"].shape
            mix = jax.ShapeDtypeStruct((*size, 1), np.float32)
            given.append({**abstract, "masked_ids": jax.ShapeDtypeStruct(size, np.int32), "mix": mix})
        self._given.warm_up(self._whole, given, show)

    def best(self, queries: Sequence[Query], mixture: Mixture, whole: bool = False) -> list[Scores]:
        """The BEST pieces of each class at each wanted position of each query.

        whole: every piece of the vocabulary counts, and those that are no text are in the class CONTINUES; otherwise
        those count that can be text. Raises NotFinite where a class's mass is NaN.
        """
        rows = []
        for query in queries:
            row, length = self._row(query)
            rows.append(row | {"mix": mixture.weight(row["span_offset"], length) * row["span_weights"]})
        params = self._whole if whole else self._params
        outputs = self._best.outputs(params, self._batches(queries, rows), len(queries))
        found = [
            Scores(*(output[name][: len(query.wanted)] for name in Scores._fields))
            for query, output in zip(queries, outputs, strict=True)
        ]
        self._check(not any(np.isnan(one.masses).any() for one in found))  # that of a class without pieces is -inf
        return found

    def given(
        self, queries: Sequence[Query], pieces: Sequence[Sequence[int]], mixtures: Sequence[Mixture], whole: bool
    ) -> list[Given]:
        """For each query the scores of given pieces by each of the mixtures.

        pieces: of each query, a piece for each wanted position. whole: whether every piece of the vocabulary counts, or
        those that can be text. Raises NotFinite where a piece's log-probability is not finite.
        """
        rows = []
        for query, of in zip(queries, pieces, strict=True):
            row, length = self._row(query)
            mix = np.stack([mixture.weight(row["span_offset"], length) for mixture in mixtures], axis=-1)
            rows.append(row | {"masked_ids": np.array(of, np.int32), "mix": mix * row["span_weights"][:, None]})
        params = self._whole if whole else self._params
        outputs = self._given.outputs(params, self._batches(queries, rows), len(queries))
        found = [
            Given(*(output[name][: len(query.wanted)] for name in Given._fields))
            for query, output in zip(queries, outputs, strict=True)
        ]
        self._check(all(np.isfinite(one.log_probs).all() for one in found))
        return found

    def _check(self, is_finite: bool) -> None:
        if not is_finite:
            raise NotFinite(
                f"{self._source}: the model's numbers are not finite; name an earlier checkpoint, or other weights"
            )

    def _row(self, query: Query) -> tuple[NumpyBatch, np.ndarray]:
        """(fields of the batch for the wanted positions of a query, each [wanted]; the lengths of their spans).

        SBO predicts as many pieces of a span as its table has offsets, and none of a span that touches [CLS] or [SEP]:
        its boundaries are then no text, and it was not trained on such spans.
        """
        masked, wanted = np.array(query.masked), np.array(query.wanted)
        cuts = np.diff(masked) > 1
        first, last = masked[np.r_[True, cuts]], masked[np.r_[cuts, True]]  # of each span
        span = np.searchsorted(last, wanted)
        start, end, offset = first[span], last[span], wanted - first[span]
        predicts = (start > 1) & (end < len(query.ids) - 2) & (offset < self._offsets)
        fields = {
            "masked_positions": wanted,
            "span_left": start - self._outside,
            "span_right": end + self._outside,
            "span_offset": offset,
        }
        row = {name: values.astype(np.int32) for name, values in fields.items()}
        return row | {"span_weights": predicts.astype(np.float32)}, end - start + 1

    def _batches(self, queries: Sequence[Query], rows: Sequence[NumpyBatch]) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
        lengths = np.array([len(query.ids) for query in queries])
        for indices, shape in plan_batches(lengths, self._table) if rows else ():
            most = max(len(queries[i].wanted) for i in indices if i >= 0)
            slots = next(slots for slots in _SLOTS if slots >= most)
            batch = {
                "input_ids": np.zeros((shape.rows, shape.length), np.int32),
                "lengths": np.zeros(shape.rows, np.int32),
            }
            for name, values in rows[0].items():
                batch[name] = np.zeros((shape.rows, slots, *values.shape[1:]), values.dtype)
            for place, i in enumerate(indices):
                if i >= 0:
                    batch["input_ids"][place, : lengths[i]], batch["lengths"][place] = queries[i].ids, lengths[i]
                    for name, values in rows[i].items():
                        batch[name][place, : len(values)] = values
            yield indices, batch

    def _abstract(self, shape: Shape, slots: int) -> AbstractBatch:
        """The shapes of a batch of `best`."""
        whole = [("input_ids", (shape.rows, shape.length)), ("lengths", (shape.rows,))]
        of_slots = ("masked_positions", "span_left", "span_right", "span_offset")
        whole += [(name, (shape.rows, slots)) for name in of_slots]
        abstract = {name: jax.ShapeDtypeStruct(size, np.int32) for name, size in whole}
        weights = jax.ShapeDtypeStruct((shape.rows, slots), np.float32)
        return abstract | {"span_weights": weights, "mix": weights}

    def _log_probs(self, params: Params, batch: Batch) -> list[jax.Array]:
        """The log-probabilities of each head, float32 [batch, slots, vocab] each."""
        with jax.default_matmul_precision("highest"):
            scores = pretraining_heads.apply(self._model, params["model"], batch)
        counts = params["classes"].any(axis=0)
        return [jax.nn.log_softmax(jnp.where(counts, scores[name], _NEVER)) for name in self.heads]

    def _compute_best(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        heads = self._log_probs(params, batch)
        mixed = _mixed(heads, batch["mix"])
        usable = [batch["span_weights"] if len(heads) > 1 and name == "sbo" else None for name in self.heads]
        found: dict[str, list[jax.Array]] = {name: [] for name in Scores._fields}
        for of_class in params["classes"]:
            log_probs, pieces = jax.lax.top_k(jnp.where(of_class, mixed, -jnp.inf), BEST)  # [batch, slots, BEST]
            by_head = [jnp.take_along_axis(head, pieces, axis=-1) for head in heads]
            by_head = [
                values if used is None else jnp.where(used[..., None] > 0, values, jnp.nan)
                for values, used in zip(by_head, usable, strict=True)
            ]
            mass = jax.nn.logsumexp(mixed, axis=-1, where=of_class)  # [batch, slots]
            for name, values in zip(Scores._fields, (pieces, log_probs, jnp.stack(by_head, -1), mass), strict=True):
                found[name].append(values)
        return {name: jnp.stack(values, axis=2) for name, values in found.items()}

    def _compute_given(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        heads = self._log_probs(params, batch)

        begin = params["classes"][SPACED] | params["classes"][JOINED]

        def by_mixture(weight: jax.Array) -> dict[str, jax.Array]:
            mixed = _mixed(heads, weight)
            of_piece = jnp.take_along_axis(mixed, batch["masked_ids"][..., None], axis=-1)[..., 0]
            begins = jax.nn.logsumexp(mixed, axis=-1, where=begin)
            return {"log_probs": of_piece, "likeliest": jnp.argmax(mixed, axis=-1), "begins": begins}

        found = jax.lax.map(by_mixture, jnp.moveaxis(batch["mix"], -1, 0))  # each [mixtures, batch, slots]
        return {name: jnp.moveaxis(values, 0, -1) for name, values in found.items()}


def piece_heads(weights: Weights, params: Params) -> list[pretraining_heads.Head]:
    """The heads of the weights that predict masked pieces: MLM, SBO, both or none."""
    known = (pretraining_heads.MLM, pretraining_heads.SBO)
    # A run without a head's loss has the head's parameters as they were drawn. But a run that trained the span decoder
    # has those of the weights that it started from.
    masking = dataclasses.replace(weights.config.masking, collapse_spans=False)
    config = dataclasses.replace(weights.config, masking=masking)
    return [head for head in known if head.name in params and head.loss_weight(config) > 0]


def _mixed(heads: Sequence[jax.Array], weight: jax.Array) -> jax.Array:
    """The mixture of log-probabilities [batch, slots, vocab] with the second's weight [batch, slots]; of one head, its
    own."""
    if len(heads) == 1:
        return heads[0]
    weight = weight[..., None]
    return jax.nn.log_softmax((1 - weight) * heads[0] + weight * heads[1])
