"""Everything that a response can say instead of an answer: names, statuses, and the form of each protocol.

Invariant: `PROBLEMS` is the one table of statuses. The OpenAPI document is made from it, and a test provokes every row.
"""

import math
import traceback
from typing import Any, Literal, NamedTuple

import msgspec

from spanbert_jax.errors import UserError, shortened
from spanbert_jax.serving.engine import ModelFailed
from spanbert_jax.serving.scheduler import Expired, NotServing, Overloaded, TooLarge

Form = Literal["openai", "tei", "inference"]  # of the body of an error


class Kind(NamedTuple):
    """A row of the table."""

    status: int
    tei: str  # the error_type of text-embeddings-inference that is nearest
    meaning: str


_MOST = 400  # characters of a message

PROBLEMS: dict[str, Kind] = {
    "malformed": Kind(400, "validation", "The body is not JSON in UTF-8."),
    "unauthorized": Kind(401, "unauthorized", "The key is missing or wrong: send Authorization: Bearer KEY."),
    "no_route": Kind(404, "validation", "There is no such path."),
    "no_model": Kind(404, "model_not_found", "No checkpoint of this name is served."),
    "no_head": Kind(404, "model_type", "The checkpoint was not trained for this."),
    "wrong_method": Kind(405, "validation", "The path takes another method."),
    "too_large": Kind(413, "batch_size", "The body, the inputs or their pieces are more than the server ever takes."),
    "invalid": Kind(422, "validation", "The JSON has an unknown field, a wrong type or a value that cannot be used."),
    "overloaded": Kind(429, "overloaded", "Too much is waiting. Come again after Retry-After seconds."),
    "failed": Kind(500, "backend", "The server or the model failed, or the model's numbers are not finite."),
    "not_serving": Kind(503, "unhealthy", "The programs are being compiled, or the server is shutting down."),
    "late": Kind(504, "timeout", "The deadline passed before the answer was there."),
}


class Problem(Exception):
    """A response that is no answer."""

    def __init__(self, name: str, message: str, param: str | None = None, retry_after: float | None = None):
        """name: of the row in `PROBLEMS`. param: the field that is wrong. retry_after: seconds. A message that quotes
        much of a request is shortened, and so is the name of a field."""
        super().__init__(message)
        self.name, self.message, self.retry_after = name, shortened(message, _MOST), retry_after
        self.param = None if param is None else shortened(param)

    @property
    def status(self) -> int:
        """The status of the response."""
        return PROBLEMS[self.name].status

    def body(self, form: Form) -> dict[str, Any]:
        """The response in the form of a protocol."""
        if form == "inference":
            return {"error": self.message}
        if form == "tei":
            return {"error": self.message, "error_type": PROBLEMS[self.name].tei}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.name}}


def problem_of(error: BaseException) -> Problem:
    """The response for any exception of a handler or of the engine."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, msgspec.ValidationError):
        place = str(error).partition(" - at ")[2]
        return Problem("invalid", str(error), place.strip("`").removeprefix("$.") or None)
    if isinstance(error, msgspec.DecodeError | UnicodeDecodeError):
        return Problem("malformed", f"the body is not JSON in UTF-8: {error}")
    if isinstance(error, RecursionError):
        return Problem("malformed", "the body is JSON that is nested too deeply")
    if isinstance(error, UserError):
        return Problem("invalid", str(error))
    if isinstance(error, TooLarge):
        return Problem("too_large", str(error))
    if isinstance(error, Overloaded):
        return Problem("overloaded", str(error), retry_after=error.seconds)
    if isinstance(error, NotServing):
        return Problem("not_serving", str(error), retry_after=1.0)
    if isinstance(error, Expired | TimeoutError):
        return Problem("late", "the deadline passed before the answer was there; send less at once, or come later")
    if isinstance(error, ModelFailed):
        return Problem("failed", str(error))
    return Problem("failed", f"the server failed: {type(error).__name__}")


def retry_after(seconds: float) -> str:
    """The value of the header: whole seconds, 1 at least."""
    return str(max(1, math.ceil(seconds)))


def where(error: BaseException) -> str:
    """The type of an exception and of its causes with their traces, for the log. Messages are left out, because they
    may have text of a request."""
    parts = []
    found: BaseException | None = error
    while found is not None:
        parts.append("".join(traceback.format_tb(found.__traceback__)) + type(found).__name__)
        found = found.__cause__ or found.__context__
    return "\ncaused by\n".join(parts)
