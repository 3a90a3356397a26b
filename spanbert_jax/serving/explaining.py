"""Attributions: how much each piece, or each word, of a record contributes to one of a model's scores.

Invariant: attributions of integrated gradients add up to score - baseline - gap, and the gap, the error of the
numerical integral, is reported. All scores are computed in float32, and a row's scores do not depend on the other rows
beyond rounding.

F is a score, e the word embeddings of a record's pieces, and e' as many times that of [MASK]. Integrated gradients
(Sundararajan et al. 2017, arXiv:1703.01365) attribute to piece t the product of e_t - e'_t and the integral over a in
[0, 1] of F's gradient with respect to e_t at e' + a (e - e'). So F at e' is the score of the record with all pieces
masked. Occlusion (Li et al. 2016, arXiv:1612.08220) attributes to a word the score minus the score with [MASK] in the
place of the word's pieces.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape, plan_batches, shape_table
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError, quoted
from spanbert_jax.model import pretraining_heads
from spanbert_jax.serving.answers import Answerer
from spanbert_jax.serving.explained_rows import Place, given_spans, masked_case, occluded, task_case
from spanbert_jax.serving.functions import EXACT
from spanbert_jax.serving.predictor import Outputs, Params, Predictor
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import Record, checked_record
from spanbert_jax.tasks.rows import Row, make_rows

METHODS = ("integrated_gradients", "occlusion")
# Rows x length of the largest batch with a backward pass, which keeps some 400 kB a position of the base model.
_GRADIENT_POSITIONS = 2048


@dataclasses.dataclass(frozen=True)
class Token:
    """A piece (integrated gradients) or a word or given span (occlusion) with its attribution."""

    text: str  # the characters [start, end) of the text in `field`
    field: str
    start: int
    end: int
    attribution: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The attributions of a record to the score of a target."""

    target: Any  # in the form in which `explain` takes it
    method: str
    score: float
    baseline: float | None  # the score with all pieces masked; None of occlusion
    gap: float | None  # score - baseline - the sum of the attributions; None of occlusion
    texts: dict[str, str]  # field -> the text that offsets refer to
    tokens: list[Token]  # of the explained row, in its order
    cut: bool  # whether that row lacks text of the record, which was too long

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return dataclasses.asdict(self)


class Head(NamedTuple):
    """A head whose scores are explained, and the fields of a batch that it reads."""

    scores: Callable[[Params, Batch], jax.Array]  # (params, batch) -> float32 [batch, ...]
    inputs: tuple[str, ...]
    padding: Mapping[str, int]  # column of rows -> padding that is not 0


class Attributor:
    """Scores of rows with the column "cells", and their attributions."""

    def __init__(self, head: Head, params: Params, layout: NamedSharding, longest: int, lengths: int, mask_id: int):
        """params: on the devices of `layout`, which divides the rows of a batch. longest: pieces in the longest row.
        lengths: as for `shape_table`."""
        self._params, self._mask_id = params, mask_id
        self._inputs, self._padding = (*head.inputs, "cells"), {**head.padding, "cells": -1}

        def chosen(params: Params, batch: Batch) -> jax.Array:
            scores, cells = head.scores(params, batch), batch["cells"]
            found = jnp.take_along_axis(scores.reshape(len(scores), -1), jnp.maximum(cells, 0), axis=1)
            return jnp.sum(jnp.where(cells >= 0, found, 0.0), axis=1)

        def score(params: Params, batch: Batch) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("highest"):
                return {"score": chosen(params, batch)}

        def slope(params: Params, batch: Batch) -> dict[str, jax.Array]:
            words = params["embeddings"]["word"]
            begin = jnp.take(words, batch["baseline"], axis=0)
            change = jnp.take(words, batch["input_ids"], axis=0) - begin  # [batch, length, embed]

            def summed(vectors: jax.Array) -> jax.Array:
                return jnp.sum(chosen(params, {**batch, "word_vectors": vectors}))

            with jax.default_matmul_precision("highest"):
                gradient = jax.grad(summed)(begin + batch["share"][:, None, None] * change)
            return {"slope": jnp.sum(gradient * change, axis=-1)}

        self._score, self._slope = Predictor(score, layout), Predictor(slope, layout)
        self._table = shape_table(longest, lengths, self._score.multiple)
        self._small = tuple(
            shape
            for shape in self._table
            if shape.rows * shape.length <= _GRADIENT_POSITIONS or shape.rows == self._score.multiple
        )

    def scores(self, rows: Sequence[Row]) -> np.ndarray:
        """The target's score of each row, float64 [rows]."""
        outputs = self._outputs(self._score, rows, self._table, self._inputs)
        return np.array([output["score"] for output in outputs], np.float64)

    def integrate(self, row: Row, positions: Sequence[int], steps: int) -> tuple[float, float, np.ndarray]:
        """(score, score with [MASK] at the positions, attribution of each position: float64 [positions]) by integrated
        gradients from [MASK], with `steps` Gauss-Legendre points."""
        ids = np.array(row["input_ids"])
        ids[list(positions)] = self._mask_id
        baseline = ids.tolist()
        ends = self.scores([row, {**row, "input_ids": baseline}])
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        rows = [{**row, "baseline": baseline, "share": share} for share in ((nodes + 1) / 2).astype(np.float32)]
        outputs = self._outputs(self._slope, rows, self._small, (*self._inputs, "baseline", "share"))
        slopes = np.stack([output["slope"][list(positions)] for output in outputs])
        return float(ends[0]), float(ends[1]), (weights / 2) @ slopes.astype(np.float64)

    def occlude(self, row: Row, groups: Sequence[Sequence[int]]) -> tuple[float, np.ndarray]:
        """(score, score minus the score with [MASK] at the positions of each group: float64 [groups])."""
        scores = self.scores([row, *(occluded(row, group, self._mask_id) for group in groups)])
        return float(scores[0]), scores[0] - scores[1:]

    def _outputs(
        self, predictor: Predictor, rows: Sequence[Row], table: Sequence[Shape], names: Sequence[str]
    ) -> Outputs:
        made = make_rows([rows])

        def batches() -> Iterator[tuple[np.ndarray, NumpyBatch]]:
            for indices, shape in plan_batches(made.lengths, table):
                batch = made.collate(indices, shape.length, self._padding)
                yield indices, {name: batch[name] for name in names}

        return predictor.outputs(self._params, batches(), len(made))


class Explainer:
    """Explains the scores of trained weights: of the fine-tuned head or, without one, of the masked language model."""

    def __init__(self, weights: Weights, params: Params, layout: NamedSharding, answerer: Answerer | None):
        """params, layout: as for `Attributor`. answerer: of fine-tuned weights; None for others. Raises UserError where
        the weights have no head to explain."""
        self._tokenizer, self._answerer = weights.tokenizer, answerer
        config, mask_id = weights.config, weights.tokenizer.mask_id
        self._longest = config.data.block_length if answerer else config.model.max_length
        if answerer is None and pretraining_heads.MLM.name not in params:
            raise UserError(
                f"{weights.source} has no head to explain, only {', '.join(params)}; give a model that this program "
                "fine-tuned, or one with the masked language model's head"
            )
        head = _task_head(answerer) if answerer else _masked_head(config, weights.tokenizer.vocab_size)
        self._attributor = Attributor(head, params, layout, self._longest, config.data.lengths, mask_id)

    def explain(
        self,
        record: Record,
        target: Any,
        method: str,
        steps: int,
        spans: Sequence[Sequence[Any]] | None,
        most_rows: int | None = None,
    ) -> Explanation:
        """The attributions of a record's pieces or words to a target's score.

        record: as for `Answerer.answer`; for a masked language model a text or {"text": ...}. target: None for the
        prediction, or as for the `cells` of the task; for a masked language model as for `masked_case`. method: one of
        `METHODS`. steps: points of integrated gradients. spans: of occlusion, in the place of words, as for
        `given_spans`. most_rows: of the record; None: any number. Raises UserError on any other value, and on a record
        without a piece to explain; and `TooLarge` on one with more rows.
        """
        record = checked_record(record, "the record")
        if method not in METHODS:
            raise UserError(f"method is {quoted(method)}; it must be one of {', '.join(map(repr, METHODS))}")
        if not isinstance(steps, int) or steps < 1:
            raise UserError(f"steps is {quoted(steps)}; expected a whole number from 1")
        if spans is not None and method != "occlusion":
            raise UserError(f"spans are masked by method='occlusion'; {method} attributes to every piece")
        if self._answerer:
            answer = functools.partial(self._answerer.answer, warns=False)  # the explanation has `cut`
            case = task_case(self._answerer.task, record, target, lambda record: answer([record])[0], most_rows)
        else:
            case = masked_case(self._tokenizer, self._longest, record, target)
        number = int(np.argmin(self._attributor.scores(case.rows))) if len(case.rows) > 1 else 0
        row, places = case.rows[number], case.places[number]
        positions = {position: place for position, place in enumerate(places) if place}
        if not positions:
            raise UserError("the record has no piece to explain; give one with more text")
        score: float
        baseline: float | None = None
        gap: float | None = None
        if method == "integrated_gradients":
            explained = list(positions.values())
            score, baseline, values = self._attributor.integrate(row, list(positions), steps)
            gap = score - baseline - float(values.sum())
        else:
            explained, groups = _groups(given_spans(case, spans) if spans is not None else case.words, positions)
            if spans is not None and len(groups) < len(spans):
                raise UserError(
                    f"spans is {quoted(spans)}; some have no piece in the row that is explained; leave them out"
                )
            score, values = self._attributor.occlude(row, groups)
        tokens = [
            Token(case.texts[place.field][place.start : place.end], *place, float(value))
            for place, value in zip(explained, values, strict=True)
        ]
        return Explanation(case.target, method, score, baseline, gap, case.texts, tokens, bool(row.get("cut")))


def _groups(spans: Sequence[Place], positions: Mapping[int, Place]) -> tuple[list[Place], list[list[int]]]:
    """The spans that have a piece, and the positions of the pieces of each."""
    ends: dict[str, tuple[int, int]] = {}  # of the row's part of each text, which may be small
    for place in positions.values():
        first, last = ends.get(place.field, (place.start, place.end))
        ends[place.field] = min(first, place.start), max(last, place.end)
    inside = [span for span in spans if span.field in ends and span.overlaps(Place(span.field, *ends[span.field]))]
    found = [(span, [at for at, place in positions.items() if place.overlaps(span)]) for span in inside]
    return [span for span, group in found if group], [group for _, group in found if group]


def _task_head(answerer: Answerer) -> Head:
    """The head of a fine-tuned task, in float32, with kernels that every device has."""
    task = answerer.task
    exact = type(task)(dataclasses.replace(task.config, compute=EXACT), task.tokenizer, task.learnt)
    model = exact.model("cpu")
    return Head(lambda params, batch: exact.logits(model, params, batch), tuple(exact.inputs), exact.padding)


def _masked_head(config: Config, vocab_size: int) -> Head:
    """The log-probabilities of a masked language model at `masked_positions`: [batch, slots, vocab_size]."""
    head = pretraining_heads.MLM
    whole = Config(model=config.model, compute=EXACT, masking=config.masking)
    model = pretraining_heads.pretraining_model(whole, vocab_size, "cpu", (head,))

    def scores(params: Params, batch: Batch) -> jax.Array:
        found = pretraining_heads.apply(model, params, batch, heads=(head,))[head.name]
        return jax.nn.log_softmax(found[..., :vocab_size])

    return Head(scores, ("input_ids", "lengths", "token_type_ids", "masked_positions"), {})
