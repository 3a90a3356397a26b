"""What a route is: its method, path and types, and the function that answers it.

Invariant: the app, the OpenAPI document and the tests all read the same rows of `Route`.
"""

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import orjson

from spanbert_jax.service.problems import Form
from spanbert_jax.service.service import Service
from spanbert_jax.serving.engine import Answered


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a request. A field that it does not have is refused."""


class Nothing(Body):
    """The body of a request that has none."""


class Call(NamedTuple):
    """One request, as a handler sees it."""

    service: Service
    path: Mapping[str, str]  # the parameters in the path
    deadline: float  # by time.monotonic
    binary: bytes = b""  # that follows the JSON (service/binary_tensors.py)

    @property
    def seconds(self) -> float:
        """What is left of the time."""
        return self.deadline - time.monotonic()


@dataclasses.dataclass
class Reply:
    """The answer of a handler: `value` becomes JSON, NumPy arrays included; bytes are sent as they are."""

    value: Any
    answered: Answered | None = None  # by the engine, for the headers
    media_type: str = "application/json"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def content(self) -> bytes:
        """The body."""
        if isinstance(self.value, bytes):
            return self.value
        return orjson.dumps(self.value, option=orjson.OPT_SERIALIZE_NUMPY, default=msgspec.to_builtins)


Handler = Callable[[Call, Any], Awaitable[Reply]]


class Route(NamedTuple):
    """A row of the table of routes."""

    method: str
    path: str
    summary: str
    handler: Handler
    request: type[Body] = Nothing
    response: Any = dict[str, Any]
    problems: tuple[str, ...] = ()  # names in PROBLEMS, beside those that every route of its method has
    form: Form = "openai"
    is_public: bool = False  # whether it answers without a key


# Problems of every route that takes a body and waits: for a thread, or (COMPUTES) for the engine.
WAITS = ("malformed", "too_large", "invalid", "overloaded", "failed", "late")
COMPUTES = (*WAITS, "not_serving")
TRUNCATED = "X-Truncated-Inputs"  # the header with the indices of the inputs that were cut
