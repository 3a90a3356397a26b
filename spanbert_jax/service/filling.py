"""Routes of the heads that predict pieces: gaps of a text are filled, texts are scored.

Invariant: the answers are those of `load(...).infill` and `load(...).score`. Requests are answered one at a time beside
the engine, because each takes several steps that depend on each other.
"""

from typing import Literal

from spanbert_jax.service.offsets import Offsets, Span, Unit
from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import COMPUTES, Body, Call, Reply, Route
from spanbert_jax.service.service import Checkpoint
from spanbert_jax.serving.infilling import ALTERNATIVES, BEAM, ORDER, WORDS, Infilled
from spanbert_jax.serving.scheduler import NotServing
from spanbert_jax.serving.scoring import Scored


class InfillRequest(Body):
    """A text with gaps, [MASK] (one piece) or ___ (some words), or with spans to replace. words: of a gap of open
    length, a number or the fewest and the most. mix: SBO's weight, null: as fitted."""

    text: str
    spans: list[Span] | None = None
    words: int | tuple[int, int] = WORDS
    order: Literal["parallel", "confidence", "left_to_right", "beam"] = ORDER  # type: ignore[assignment]
    beam: int = BEAM
    mix: float | None = None
    alternatives: int = ALTERNATIVES
    offsets: Unit = "characters"
    model: str | None = None


class ScoreRequest(Body):
    """A text whose pseudo-log-likelihood is asked for, or that of a span in it."""

    text: str
    span: Span | None = None
    rest_of_word: bool = False
    offsets: Unit = "characters"
    model: str | None = None


def _able(call: Call, name: str | None, route: str) -> Checkpoint:
    """The checkpoint of the name, or the first that predicts pieces; raises Problem where it does not."""
    service = call.service
    if service.engine.is_draining:
        raise NotServing("the server is shutting down; send the request to another one")
    able = [one for one in service.checkpoints.values() if one.loaded.piece_heads]
    one = able[0] if name is None and able else service.checkpoint(name)
    if not one.loaded.piece_heads:
        message = f"the checkpoint {one.name} has no head that predicts pieces; {route} needs a pre-training run"
        raise Problem("no_head", message, "model")
    return one


async def infill(call: Call, body: InfillRequest) -> Reply:
    """The text with its gaps filled."""
    one, offsets = _able(call, body.model, "/infill"), Offsets(body.text, body.offsets)
    spans = None
    if body.spans is not None:
        spans = [offsets.read(span, f"spans[{i}]") for i, span in enumerate(body.spans)]

    def fill() -> Infilled:
        numbers = (body.order, body.beam, body.mix, body.alternatives)
        return one.loaded.infill(body.text, spans, body.words, *numbers)

    found = (await call.service.filling.run(fill)).to_json()
    filled = Offsets(found["text"], body.offsets)
    for gap in found["gaps"]:
        gap["replaced"] = offsets.show(gap["replaced"])
        for part in (gap, *gap["pieces"]):
            part["start"], part["end"] = filled.show((part["start"], part["end"]))
    return Reply(found)


async def score(call: Call, body: ScoreRequest) -> Reply:
    """The pseudo-log-likelihood."""
    one, offsets = _able(call, body.model, "/score"), Offsets(body.text, body.offsets)
    span = None if body.span is None else offsets.read(body.span, "span")
    found = (await call.service.filling.run(lambda: one.loaded.score(body.text, span, body.rest_of_word))).to_json()
    for piece in found["pieces"]:
        piece["start"], piece["end"] = offsets.show((piece["start"], piece["end"]))
    return Reply(found)


_PROBLEMS = (*COMPUTES, "no_model", "no_head")
ROUTES = (
    Route("POST", "/infill", "The gaps of a text filled", infill, InfillRequest, Infilled, _PROBLEMS),
    Route("POST", "/score", "The pseudo-log-likelihood of a text", score, ScoreRequest, Scored, _PROBLEMS),
)
