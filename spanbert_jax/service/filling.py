"""Gaps of texts are filled, texts are scored, and answers are explained.

Invariant: the answers are those of `load(...).infill`, `.score` and `.explain`. Requests are answered one at a time
beside the engine, because each takes several steps that depend on each other.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec

from spanbert_jax.service.offsets import Offsets, Span, Unit
from spanbert_jax.service.own import RelationRequest, record_of
from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import COMPUTES, TRUNCATED, Body, Call, Reply, Route
from spanbert_jax.service.service import Checkpoint
from spanbert_jax.serving.explaining import Explanation
from spanbert_jax.serving.infilling import ALTERNATIVES, BEAM, MIXTURE, ORDER, WORDS, Infilled
from spanbert_jax.serving.scheduler import NotServing
from spanbert_jax.serving.scoring import Scored

_T = TypeVar("_T")
# So that a request does not keep the thread for long:
_STEPS = 256  # of integrated gradients
_SPANS = 512  # to occlude
_ROWS = 32  # that a record is cut into


class InfillRequest(Body):
    """A text with gaps, [MASK] (one piece) or ___ (some words), or with spans to replace. words: of a gap of open
    length, a number or the fewest and the most. mix: SBO's weight, null: as fitted. heads: MLM and SBO together, or the
    span decoder."""

    text: str
    spans: list[Span] | None = None
    words: int | tuple[int, int] = WORDS
    order: Literal["parallel", "confidence", "left_to_right", "beam"] = ORDER  # type: ignore[assignment]
    beam: int = BEAM
    mix: float | None = None
    alternatives: int = ALTERNATIVES
    heads: Literal["mixture", "decoder"] = MIXTURE  # type: ignore[assignment]
    offsets: Unit = "characters"
    model: str | None = None


class ScoreRequest(Body):
    """A text whose pseudo-log-likelihood is asked for, or that of a span in it."""

    text: str
    span: Span | None = None
    rest_of_word: bool = False
    offsets: Unit = "characters"
    model: str | None = None


class ExplainRequest(Body):
    """A record as the checkpoint's task reads it, a text, {"question", "context"}, ..., or the fields of /relation.
    target and spans: as of `load(...).explain`, in characters; null: the prediction, and words. offsets: of the tokens
    in the answer."""

    record: str | dict[str, Any]
    target: Any = None
    method: Literal["integrated_gradients", "occlusion"] = "integrated_gradients"
    steps: int = 32
    spans: list[list[int | str]] | None = None
    offsets: Unit = "characters"
    model: str | None = None


def _pieces(call: Call, name: str | None, route: str) -> Checkpoint:
    return call.service.able(name, route, lambda one: one.loaded.piece_heads, "one with a head that predicts pieces")


async def _aside(call: Call, function: Callable[[], _T]) -> _T:
    if call.service.engine.is_draining:
        raise NotServing("the server is shutting down; send the request to another one")
    return await call.service.filling.run(function)


async def infill(call: Call, body: InfillRequest) -> Reply:
    """The text with its gaps filled."""
    one, offsets = _pieces(call, body.model, "/infill"), Offsets(body.text, body.offsets)
    spans = None
    if body.spans is not None:
        spans = [offsets.read(span, f"spans[{i}]") for i, span in enumerate(body.spans)]

    def fill() -> Infilled:
        settings = (body.order, body.beam, body.mix, body.alternatives, body.heads)
        return one.loaded.infill(body.text, spans, body.words, *settings)

    found = (await _aside(call, fill)).to_json()
    filled = Offsets(found["text"], body.offsets)
    for gap in found["gaps"]:
        gap["replaced"] = offsets.show(gap["replaced"])
        for part in (gap, *gap["pieces"]):
            part["start"], part["end"] = filled.show((part["start"], part["end"]))
    return Reply(found)


async def score(call: Call, body: ScoreRequest) -> Reply:
    """The pseudo-log-likelihood."""
    one, offsets = _pieces(call, body.model, "/score"), Offsets(body.text, body.offsets)
    span = None if body.span is None else offsets.read(body.span, "span")
    found = (await _aside(call, lambda: one.loaded.score(body.text, span, body.rest_of_word))).to_json()
    for piece in found["pieces"]:
        piece["start"], piece["end"] = offsets.show((piece["start"], piece["end"]))
    return Reply(found)


async def explain(call: Call, body: ExplainRequest) -> Reply:
    """The attributions of pieces or words to a score."""

    def can(one: Checkpoint) -> bool:
        return bool(one.loaded.task) or "mlm" in one.loaded.piece_heads

    one = call.service.able(body.model, "/explain", can, "one with a task or a masked-language-model head")
    if body.steps > _STEPS:
        raise Problem("invalid", f"steps is {body.steps}; {_STEPS} are the most", "steps")
    if body.spans is not None and len(body.spans) > _SPANS:
        raise Problem("too_large", f"spans has {len(body.spans):,} spans; {_SPANS} are the most", "spans")
    record = body.record
    if one.loaded.task == "relation_extraction" and isinstance(record, dict) and "subject" in record:
        record = record_of(msgspec.convert(record, RelationRequest))
    arguments = (record, body.target, body.method, body.steps, body.spans, _ROWS)
    found = (await _aside(call, lambda: one.loaded.explain(*arguments))).to_json()
    cut = [0] if found["cut"] else []
    call.service.check_cut(cut)
    by_field = {field: Offsets(text, body.offsets) for field, text in found["texts"].items()}
    for token in found["tokens"]:
        token["start"], token["end"] = by_field[token["field"]].show((token["start"], token["end"]))
    return Reply(found, headers={TRUNCATED: "0"} if cut else {})


_PROBLEMS = (*COMPUTES, "no_model", "no_head")
ROUTES = (
    Route("POST", "/infill", "The gaps of a text filled", infill, InfillRequest, Infilled, _PROBLEMS),
    Route("POST", "/score", "The pseudo-log-likelihood of a text", score, ScoreRequest, Scored, _PROBLEMS),
    Route("POST", "/explain", "What an answer is due to", explain, ExplainRequest, Explanation, _PROBLEMS),
)
