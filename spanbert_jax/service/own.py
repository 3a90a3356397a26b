"""This project's own routes: spans, entities, answers, relations.

Invariant: scores and texts are those of tools/predict.py. Offsets are characters of the text as it was sent, or UTF-16
units where the request says so.
"""

import bisect
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from spanbert_jax.errors import UserError
from spanbert_jax.service.offsets import Offsets, Span, Unit
from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import COMPUTES, WAITS, Body, Call, Reply, Route
from spanbert_jax.service.tei import Label, labels_of
from spanbert_jax.serving.text_models import TextWithSpans
from spanbert_jax.text.span_syntax import parse_rules
from spanbert_jax.text.spans import SpanFinder, spans_of_text

_SAFE_RULES = ("sentence", "capitals", "regex", "pos")  # those that read no file of the server


class SpansText(Body):
    """A text and spans [start, end) in it."""

    text: str
    spans: list[Span]


class SpansEmbedRequest(Body):
    """Texts with spans to embed. pooling: docs/serving.md."""

    inputs: list[SpansText]
    pooling: Literal["mean", "ends", "boundary", "attention"] = "mean"
    offsets: Unit = "characters"
    model: str | None = None


class SpanEmbedding(msgspec.Struct):
    """The vector of a span."""

    start: int
    end: int
    embedding: list[float]


class SpansFindRequest(Body):
    """A text, and rules that find spans in it, such as "sentence", "capitals" or "pos:NP=D?[AC]*N+" (docs/spans.md)."""

    text: str
    rules: list[str]
    language: str = "en"
    offsets: Unit = "characters"


class FoundSpan(msgspec.Struct):
    """A span that a rule found."""

    start: int
    end: int
    kind: str


class EntitiesRequest(Body):
    """Texts in which entities are found. threshold: of the score. flat: whether of entities that overlap only the best
    one is kept."""

    inputs: list[str]
    threshold: float = 0.0
    flat: bool = False
    offsets: Unit = "characters"
    model: str | None = None


class Entity(msgspec.Struct):
    """An entity with its label and the label's probability."""

    start: int
    end: int
    text: str
    label: str
    score: float


class AnswerRequest(Body):
    """A question about a text."""

    question: str
    context: str
    top_k: int = 5
    offsets: Unit = "characters"
    model: str | None = None


class Answer(msgspec.Struct):
    """A span of the context. score: the sum of two logits. Probabilities add up to 1 with those of no answer."""

    start: int
    end: int
    text: str
    score: float
    probability: float


class AnswerResponse(msgspec.Struct):
    """text: the answer, "" where there is none. none_probability: null where every question has an answer."""

    text: str
    answers: list[Answer]
    none_probability: float | None


class RelationRequest(Body):
    """A text with two entities, [start, end). The types, such as PERSON, are used by models that mask entities."""

    text: str
    subject: Span
    object: Span
    subject_type: str | None = None
    object_type: str | None = None
    offsets: Unit = "characters"
    model: str | None = None


async def embed_spans(call: Call, body: SpansEmbedRequest) -> Reply:
    """The vectors of spans."""
    model = call.service.checkpoint(body.model).models.spans
    items = []
    for number, one in enumerate(body.inputs):
        offsets = Offsets(one.text, body.offsets)
        spans = [offsets.read(span, f"inputs[{number}].spans[{i}]") for i, span in enumerate(one.spans)]
        items.append(TextWithSpans(one.text, spans, body.pooling))
    answered = await call.service.answer(model, items, call.seconds)
    call.service.check_cut(answered.cut)
    found = [
        [
            {"start": start, "end": end, "embedding": np.ascontiguousarray(vector)}
            for (start, end), vector in zip(one.spans, vectors, strict=True)
        ]
        for one, vectors in zip(body.inputs, answered.answers, strict=True)
    ]
    return Reply(found, answered)


@functools.lru_cache(maxsize=16)
def _finder(rules: str) -> SpanFinder:
    return SpanFinder(rules)


async def find_spans(call: Call, body: SpansFindRequest) -> Reply:
    """The spans that rules find."""
    rules = "; ".join(body.rules)
    parsed = parse_rules(rules)
    call.service.check_count(parsed)
    unsafe = [rule.written for rule in parsed if rule.name not in _SAFE_RULES]
    if unsafe:
        raise Problem(
            "invalid", f"the rule {unsafe[0][:60]!r} reads files of the server; give {', '.join(_SAFE_RULES)}"
        )

    def find() -> list[FoundSpan]:
        finder, offsets = _finder(rules), Offsets(body.text, body.offsets)
        found = spans_of_text(body.text, finder, body.language, "sentencex")
        return [FoundSpan(*offsets.show((start, end)), finder.kinds[kind - 1]) for start, end, kind in found.spans]

    return Reply(await call.service.finding.run(find))


async def entities(call: Call, body: EntitiesRequest) -> Reply:
    """The entities of each text."""
    model = call.service.task(body.model, "/entities", "token_classification")
    answered = await call.service.answer(model, body.inputs, call.seconds)
    call.service.check_cut(answered.cut)
    found = []
    for text, one in zip(body.inputs, answered.answers, strict=True):
        offsets = Offsets(text, body.offsets)
        kept = [of for of in one.prediction["entities"] if of["score"] >= body.threshold]
        kept = _flat(kept) if body.flat else kept
        found.append(
            [Entity(*offsets.show((of["start"], of["end"])), of["text"], of["type"], of["score"]) for of in kept]
        )
    return Reply(found, answered)


def _flat(entities: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entities that no better one overlaps, in the order of the text."""
    kept: list[Mapping[str, Any]] = []
    for one in sorted(entities, key=lambda entity: -entity["score"]):
        place = bisect.bisect_left(kept, one["start"], key=lambda entity: entity["start"])
        is_after = place == 0 or kept[place - 1]["end"] <= one["start"]
        if is_after and (place == len(kept) or one["end"] <= kept[place]["start"]):
            kept.insert(place, one)
    return kept


async def answer(call: Call, body: AnswerRequest) -> Reply:
    """The answers to a question, the best first."""
    model = call.service.task(body.model, "/answer", "question_answering")
    if not body.question.strip() or not body.context.strip():
        raise Problem("invalid", "question and context must not be blank", "question")
    most = model.task.config.question_answering.n_best
    if not 1 <= body.top_k <= most:
        raise Problem("invalid", f"top_k is {body.top_k}; expected 1 to {most}", "top_k")
    record = {"question": body.question, "context": body.context}
    answered = await call.service.answer(model, [record], call.seconds)
    call.service.check_cut(answered.cut)
    prediction, offsets = answered.answers[0].prediction, Offsets(body.context, body.offsets)
    entries = prediction["n_best"]
    found = [
        Answer(*offsets.show((one["start"], one["end"])), one["text"], one["score"], one["probability"])
        for one in entries
        if one["text"]
    ]
    none = [one["probability"] for one in entries if not one["text"]]
    return Reply(AnswerResponse(prediction["text"], found[: body.top_k], none[0] if none else None), answered)


async def relation(call: Call, body: RelationRequest) -> Reply:
    """Every relation with its probability, the most probable first."""
    model = call.service.task(body.model, "/relation", "relation_extraction")
    answered = await call.service.answer(model, [record_of(body)], call.seconds)
    call.service.check_cut(answered.cut)
    return Reply(labels_of(model, answered.answers[0]), answered)


def record_of(body: RelationRequest) -> dict[str, Any]:
    """The request as a record of the task; raises UserError as `Offsets.read` and `relation_record` do."""
    offsets = Offsets(body.text, body.offsets)
    spans = offsets.read(body.subject, "subject"), offsets.read(body.object, "object")
    return relation_record(body.text, *spans, body.subject_type, body.object_type)


def relation_record(
    text: str, subject: Span, object: Span, subject_type: str | None, object_type: str | None
) -> dict[str, Any]:
    """The sentence in TACRED's fields: words, which end at white space and at both ends of each entity. Raises
    UserError where an entity has no word, or the two have characters in common."""
    if subject[0] < object[1] and object[0] < subject[1]:
        raise UserError(
            f"subject {list(subject)} and object {list(object)} have characters in common; give two entities"
        )
    cuts = sorted({0, *subject, *object, len(text)})
    words: list[str] = []
    place: dict[int, int] = {}  # of a cut -> the number of words before it
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        place[start] = len(words)
        words += text[start:end].split()
    record: dict[str, Any] = {"token": words}
    for role, name, (start, end), kind in (
        ("subj", "subject", subject, subject_type),
        ("obj", "object", object, object_type),
    ):
        if place[start] == place[end]:
            raise UserError(f"{name} [{start}, {end}] has no word; give a span that is not blank")
        record |= {f"{role}_start": place[start], f"{role}_end": place[end] - 1}
        record |= {f"{role}_type": kind} if kind else {}
    return record


_HEAD = (*COMPUTES, "no_model", "no_head")
ROUTES = (
    Route(
        "POST",
        "/spans/embed",
        "Vectors of spans",
        embed_spans,
        SpansEmbedRequest,
        list[list[SpanEmbedding]],
        (*COMPUTES, "no_model"),
    ),
    Route(
        "POST",
        "/spans/find",
        "Spans that rules find",
        find_spans,
        SpansFindRequest,
        list[FoundSpan],
        WAITS,
    ),
    Route("POST", "/entities", "Entities of texts", entities, EntitiesRequest, list[list[Entity]], _HEAD),
    Route("POST", "/answer", "The answers to a question about a text", answer, AnswerRequest, AnswerResponse, _HEAD),
    Route("POST", "/relation", "The relation of two entities", relation, RelationRequest, list[Label], _HEAD),
)
