"""OpenAI's routes: embeddings and the list of models.

Invariant: a request that OpenAI's own client makes is answered in OpenAI's form. With "base64", which that client asks
for, a vector is its float32 bytes, the least significant byte first.
"""

import base64
from typing import Any, Literal

import msgspec
import numpy as np

from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import COMPUTES, Body, Call, Nothing, Reply, Route
from spanbert_jax.serving.text_models import Text

Inputs = str | list[str | int | list[int]]  # a text, ids of a text's pieces, or a list of either


class EmbeddingRequest(Body):
    """Texts to embed. "truncate" and "pooling" are this server's own: OpenAI has no such fields."""

    input: Inputs
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    truncate: bool | None = None
    pooling: Literal["mean", "cls", "max"] = "mean"


class Embedding(msgspec.Struct):
    """One vector."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Usage(msgspec.Struct):
    """How many pieces were computed, and the indices of the inputs that were cut."""

    prompt_tokens: int
    total_tokens: int
    truncated: list[int]


class EmbeddingResponse(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"


class ModelEntry(msgspec.Struct):
    """A checkpoint that is served. "task" is "" where it was not fine-tuned."""

    id: str
    task: str
    object: str = "model"
    created: int = 0
    owned_by: str = "spanbert_jax"


class ModelList(msgspec.Struct):
    """All checkpoints, the one that answers by default first."""

    data: list[ModelEntry]
    object: str = "list"


def texts_of(inputs: Inputs, field: str) -> list[str | list[int]]:
    """The inputs one by one; raises Problem where kinds are mixed or there is none."""
    if isinstance(inputs, str):
        return [inputs]
    kinds = {type(one) for one in inputs}
    if kinds == {int}:
        return [inputs]  # type: ignore[list-item]
    if kinds in ({str}, {list}):
        return inputs  # type: ignore[return-value]
    raise Problem("invalid", f"{field} is {'empty' if not kinds else 'of several kinds'}; give texts, or ids", field)


async def embeddings(call: Call, body: EmbeddingRequest) -> Reply:
    """The vectors of texts, of length 1."""
    checkpoint, truncate = call.service.checkpoint(body.model), call.service.truncates(body.truncate)
    checkpoint.check_dimensions(body.dimensions)
    items = [Text(text, body.pooling, True, truncate) for text in texts_of(body.input, "input")]
    answered = await call.service.answer(checkpoint.models.embed, items, call.seconds)
    vectors: list[Any] = answered.answers
    if body.encoding_format == "base64":
        vectors = [base64.b64encode(np.ascontiguousarray(v, "<f4").tobytes()).decode() for v in vectors]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = Usage(answered.pieces, answered.pieces, answered.cut)
    return Reply({"object": "list", "data": data, "model": checkpoint.name, "usage": usage}, answered)


async def models(call: Call, _: Nothing) -> Reply:
    """The checkpoints that are served."""
    return Reply(ModelList([ModelEntry(one.name, one.loaded.task) for one in call.service.checkpoints.values()]))


ROUTES = (
    Route(
        "POST",
        "/v1/embeddings",
        "OpenAI: vectors of texts",
        embeddings,
        EmbeddingRequest,
        EmbeddingResponse,
        (*COMPUTES, "no_model"),
    ),
    Route("GET", "/v1/models", "OpenAI: the checkpoints that are served", models, response=ModelList),
)
