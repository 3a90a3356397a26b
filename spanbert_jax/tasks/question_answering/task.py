"""Extractive question answering: the span of a text that answers a question, or none (SQuAD 1.1, 2.0, MRQA).

Invariant: an answer is exactly context[start:end], for every text and vocabulary. The facts are those of SpanBERT's
run_squad.py and run_mrqa.py, but these join pieces to get an answer's text.
"""

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError, quoted
from spanbert_jax.metrics import squad
from spanbert_jax.model import linear_heads
from spanbert_jax.model.linear_heads import TaskModel
from spanbert_jax.tasks.example_files import Record, Role, Source, warn_of_one_type
from spanbert_jax.tasks.finetuning import (
    NOTHING,
    FineTuning,
    Learnt,
    Prediction,
    checked_span,
    cross_entropy_sum,
    mean_loss,
    row_logits,
)
from spanbert_jax.tasks.question_answering import files
from spanbert_jax.tasks.question_answering.files import Question
from spanbert_jax.tasks.question_answering.rows import QuestionRowMaker
from spanbert_jax.tasks.rows import Featurise, Row, Rows
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.step import Objective, Sums

_NAME = re.compile(r"[A-Z][\w'-]*(?: [A-Z][\w'-]*)+")
_AT_ONCE = 256  # rows whose spans are searched together


class Spans(NamedTuple):
    """n spans of rows, as arrays [n]: each span's row, first and last position, and score."""

    row: np.ndarray  # int64
    first: np.ndarray  # int64
    last: np.ndarray  # int64
    score: np.ndarray  # float64


class QuestionAnswering(FineTuning[Question, TaskModel]):
    """The task of configs/squad.py, configs/squad2.py and configs/mrqa.py."""

    task = "question_answering"
    settings: ClassVar[tuple[str, ...]] = ("data.block_length", "model.token_types", "question_answering")
    texts: ClassVar[tuple[str, ...]] = ("question", "context")

    def __init__(self, config: Config, tokenizer: Tokenizer, learnt: Learnt):
        super().__init__(config, tokenizer, learnt)
        self.best = "best_f1" if config.question_answering.unanswerable else "f1"

    @classmethod
    def read(
        cls, config: Config, source: Source, role: Role, learnt: Learnt = NOTHING
    ) -> tuple[list[Question], list[str]]:
        """`files.read`, where the configuration says whether questions may have no answer."""
        examples, warnings = files.read(source, role, config.question_answering.unanswerable)
        return examples, warnings + warn_of_one_type(config.model.token_types, len(examples), str(source))

    def parse(self, record: Record, place: str, name: str) -> Question:
        return files.parse(record, place, name)

    @classmethod
    def row_maker(cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role) -> Featurise[Question]:
        wanted, length = settings.question_answering, settings.data.block_length
        types = settings.model.token_types
        return QuestionRowMaker(tokenizer, length, wanted.stride, wanted.max_question, role == "train", types)

    def model(self, platform: str) -> TaskModel:
        return linear_heads.task_model("question_answering", self.config, self.tokenizer.vocab_size, 0, platform)

    def init_params(self, model: TaskModel, key: jax.Array) -> dict[str, Any]:
        return linear_heads.init_params(model, key)

    def objective(self, model: TaskModel) -> Objective:
        return span_objective(model)

    def outputs(self, model: TaskModel, params: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        logits = self.logits(model, params, batch)
        return {"start": logits[..., 0], "end": logits[..., 1]}

    def logits(self, model: TaskModel, params: dict[str, Any], batch: Batch) -> jax.Array:
        """Float32 [batch, length, 2], of each position as the answer's first and last."""
        return row_logits(model, params, batch)

    def cells(self, example: Question, rows: Sequence[Row], target: Any) -> dict[int, list[int]]:
        """The two logits of an answer, whose target is its characters [start, end) in the context; "" for no answer,
        which has two in every window. Where several windows have the whole answer, that counts which `decode` reads."""
        if target == "":
            return {number: [0, 1] for number in range(len(rows))}
        start, end = checked_span(target, example.context, "(start, end)")
        found = [_covering(row, start, end) for row in rows]
        wanted = {place for covered in found for place in covered.values()}
        whole = [number for number, covered in enumerate(found) if set(covered.values()) == wanted]
        if not wanted or not whole:
            why = "has no piece" if not wanted else "is in no window as a whole"
            raise UserError(f"target is {quoted(target)}, which {why}; give characters (start, end) of an answer")
        read = [number for number in whole if rows[number]["max_context"][min(found[number])]]
        number = (read or whole)[0]
        return {number: [2 * min(found[number]), 2 * max(found[number]) + 1]}

    def target_of(self, prediction: Prediction) -> list[int] | str:
        """The answer's characters [start, end) in the context; "" for no answer."""
        return [prediction["start"], prediction["end"]] if prediction["text"] else ""

    def decode(
        self,
        examples: Sequence[Question],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """{"id", "text", "start", "end", "score", "n_best"} of each question: the best span of all windows.

        "start" and "end" count characters of the context, and "end" is exclusive. "score" is the sum of two logits.
        "n_best" has the best spans, each text once, with probabilities that add up to 1. Where questions may have no
        answer, "n_best" has the text "" too, and there is "no_answer_score": the score of no answer minus that of the
        best span. "text" is "" where "no_answer_score" is above tuned["best_f1_thresh"].
        """
        wanted = self.config.question_answering
        spans = find_spans(rows, outputs, wanted.max_answer, wanted.n_best)
        order = np.lexsort((spans.last, spans.first, spans.row, -spans.score, rows.example[spans.row]))
        bounds = np.searchsorted(rows.example[spans.row[order]], np.arange(len(examples) + 1))
        chars = [
            rows.ragged[name][0][rows.ragged[name][1][spans.row] + place]
            for name, place in (("start_char", spans.first), ("end_char", spans.last))
        ]
        columns = [values[order].tolist() for values in (*chars, spans.score)]
        nothing = np.full(len(examples), np.inf)  # the score of no answer: the least of the windows' (code)
        np.minimum.at(nothing, rows.example, [float(out["start"][0]) + float(out["end"][0]) for out in outputs])
        threshold = tuned.get("best_f1_thresh", math.inf)
        predictions = []
        for number, example in enumerate(examples):
            part = slice(bounds[number], min(bounds[number] + wanted.n_best, bounds[number + 1]))
            found = _distinct(example.context, zip(*(column[part] for column in columns), strict=True))
            no_answer = float(nothing[number]) if wanted.unanswerable else None
            predictions.append(_prediction(example.id, found, no_answer, threshold))
        return predictions

    def metrics(self, examples: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics of the official script of SQuAD 1.1 (which is MRQA's too) or 2.0 for the predictions' texts.

        SQuAD 2.0's best_* are maxima over all thresholds of "no_answer_score". They are computed from the best answer
        of each question, even where the text is "".
        """
        golds = {example.id: example.gold_texts for example in examples}
        texts = {prediction["id"]: prediction["text"] for prediction in predictions}
        if not self.config.question_answering.unanswerable:
            return squad.evaluate_v1(golds, texts)
        if any("no_answer_score" not in prediction for prediction in predictions):  # a file of texts alone
            return squad.evaluate_v2(golds, texts)
        answers = {
            prediction["id"]: next((entry["text"] for entry in prediction["n_best"] if entry["text"]), "")
            for prediction in predictions
        }
        table = squad.evaluate_v2(golds, answers, _no_answer_scores(predictions), na_threshold=math.inf)
        return table if texts == answers else table | squad.evaluate_v2(golds, texts)

    def baseline(self, train: Sequence[Question], examples: Sequence[Question]) -> list[Prediction]:
        """The context's first run of two or more capitalised words, which is often a name; without one its first
        word."""
        texts = ((one, _NAME.search(one.context) or re.match(r"\S*", one.context)) for one in examples)
        return [{"id": one.id, "text": found[0] if found else ""} for one, found in texts]

    def write(self, examples: Sequence[Question], predictions: Sequence[Prediction], directory: Path) -> Path:
        """Writes SQuAD's predictions.json, {id: text}; where questions may have no answer also null_odds.json, {id:
        no_answer_score}. Returns the path of predictions.json."""
        path = directory / "predictions.json"
        texts = {prediction["id"]: prediction["text"] for prediction in predictions}
        path.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if self.config.question_answering.unanswerable:
            scores = json.dumps(_no_answer_scores(predictions), indent=1)
            (directory / "null_odds.json").write_text(scores + "\n", encoding="utf-8")
        return path


def _covering(row: Row, start: int, end: int) -> dict[int, tuple[int, int]]:
    """The positions of a window's pieces with characters of [start, end) -> the characters of each piece."""
    places = enumerate(zip(row["start_char"], row["end_char"], strict=True))
    return {position: (s, e) for position, (s, e) in places if max(s, start) < min(e, end)}


def _no_answer_scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    return {prediction["id"]: prediction["no_answer_score"] for prediction in predictions}


def _distinct(context: str, spans: Iterable[tuple[int, int, float]]) -> list[Prediction]:
    """The spans (start, end, score), best first, whose text no span before has (code: the n-best list)."""
    found: dict[str, Prediction] = {}
    for start, end, score in spans:
        text = context[start:end]
        if text not in found:
            found[text] = {"text": text, "start": start, "end": end, "score": score}
    return list(found.values())


def _prediction(id: str, found: list[Prediction], no_answer: float | None, threshold: float) -> Prediction:
    """The prediction from `found`, the question's distinct spans, best first.

    no_answer: the score of no answer; None where every question has an answer. Where there is no span the answer is ""
    with score 0 (code).
    """
    nothing: Prediction = {"text": "", "start": 0, "end": 0, "score": 0.0 if no_answer is None else no_answer}
    best = found[0] if found else {**nothing, "score": 0.0}
    prediction = {"id": id, **best}
    if no_answer is not None:
        score = no_answer - best["score"]
        prediction = {"id": id, **(nothing if score > threshold else best), "no_answer_score": score}
        found = sorted([*found, nothing], key=lambda entry: -entry["score"])
    scores = np.array([entry["score"] for entry in found])
    odds = np.exp(scores - scores.max(initial=-np.inf))
    for entry, probability in zip(found, (odds / odds.sum()).tolist(), strict=True):
        entry["probability"] = probability
    return {**prediction, "n_best": found}


def find_spans(rows: Rows, outputs: Sequence[Mapping[str, np.ndarray]], max_answer: int, n_best: int) -> Spans:
    """The `n_best` best spans of each row that begin where `max_context` is 1, in any order."""
    parts = []
    for begin in range(0, len(rows), _AT_ONCE):
        numbers = range(begin, min(begin + _AT_ONCE, len(rows)))
        shape = (len(numbers), int(max(rows.lengths[number] for number in numbers)))
        start, end = np.full(shape, -np.inf), np.full(shape, -np.inf)
        for place, number in enumerate(numbers):
            # No span begins or ends at a piece without characters: a SentencePiece space, or a byte piece that is not
            # the last one of its character.
            inside = rows.column("end_char", number) > rows.column("start_char", number)
            may_start = inside & (rows.column("max_context", number) == 1)
            length = rows.lengths[number]
            start[place, :length] = np.where(may_start, outputs[number]["start"][:length], -np.inf)
            end[place, :length] = np.where(inside, outputs[number]["end"][:length], -np.inf)
        found = best_spans(start, end, max_answer, n_best)
        parts.append(found._replace(row=found.row + begin))
    return Spans(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def best_spans(start: np.ndarray, end: np.ndarray, max_answer: int, n_best: int) -> Spans:
    """The `n_best` spans of each row with the highest start + end, of at most `max_answer` positions, in any order.

    start, end: float64 [rows, length], -inf where a span may not begin or end. The search is exact, since the starts of
    the n best spans are among the n starts whose best span is highest. The authors' code combines the 20 best starts
    with the 20 best ends, and finds no span where none of them fit together.
    """
    rows, length = start.shape
    width = min(max_answer, length)
    ends = np.pad(end, ((0, 0), (0, width - 1)), constant_values=-np.inf)
    best = start + functools.reduce(np.maximum, (ends[:, i : i + length] for i in range(width)))
    starts = _highest(best, n_best)
    reach = sliding_window_view(ends, width, axis=1)[np.arange(rows)[:, None], starts]  # [rows, starts, width]
    sums = (np.take_along_axis(start, starts, 1)[:, :, None] + reach).reshape(rows, -1)
    chosen = _highest(sums, n_best)
    score = np.take_along_axis(sums, chosen, 1)
    first = np.take_along_axis(starts, chosen // width, 1)
    valid = np.isfinite(score)
    return Spans(np.nonzero(valid)[0], first[valid], (first + chosen % width)[valid], score[valid])


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """The columns of the `count` highest values in each row of [rows, columns], in any order; int64 [rows, count]."""
    if count >= values.shape[1]:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(-values, count - 1, axis=1)[:, :count]


def span_objective(model: TaskModel) -> Objective:
    """The mean over rows of (cross-entropy of the answer's first position + cross-entropy of its last) / 2."""

    def totals(batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def loss(
        params: dict[str, Any], batch: Batch, count: jax.Array, key: jax.Array | None, row_numbers: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        logits = row_logits(model, params, batch, key, row_numbers)
        positions = jnp.arange(logits.shape[1])
        inside = positions < batch["lengths"][:, None]
        summed = jnp.zeros(())
        for end, name in enumerate(("answer_start", "answer_end")):
            scores = jnp.where(inside, logits[..., end], -1e30)  # finite: an empty row has no position inside
            summed += cross_entropy_sum(scores, batch[name], batch["weights"]) / 2
        return mean_loss(summed, batch["weights"], count, batch)

    return Objective(totals, loss)


def task_class(config: Config) -> type[QuestionAnswering]:
    """The class of the task."""
    return QuestionAnswering
