"""The Open Inference Protocol (KServe V2) over HTTP, with Triton's binary tensors, as a thin adapter.

Invariant: a text is a BYTES tensor of [n] or [n, 1]. Tensors go over the wire flat, row by row, in JSON or after it.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from spanbert_jax.service import health
from spanbert_jax.service.binary_tensors import HEADER, read_texts, write_tensor
from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import COMPUTES, Body, Call, Nothing, Reply, Route
from spanbert_jax.service.service import Checkpoint
from spanbert_jax.service.tei import CLASSIFIER, fields_of, labels_of
from spanbert_jax.serving.engine import Answered
from spanbert_jax.serving.text_models import Text
from spanbert_jax.version import VERSION


class Tensor(Body):
    """An input: texts, flat or as [n, 1]. Without data, "binary_data_size" bytes after the JSON have them."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str | list[str]] | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class WantedOutput(Body):
    """The name of an output that is asked for."""

    name: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class InferRequest(Body):
    """One tensor "text". Without outputs, all outputs of the model are given."""

    inputs: list[Tensor]
    outputs: list[WantedOutput] = msgspec.field(default_factory=list)
    id: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class OutputTensor(msgspec.Struct):
    """An output. Without data, "binary_data_size" bytes after the JSON have it."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float | str] | None = None
    parameters: dict[str, Any] | None = None


class InferResponse(msgspec.Struct):
    """The outputs."""

    model_name: str
    outputs: list[OutputTensor]
    id: str | None = None


def _outputs(one: Checkpoint) -> dict[str, dict[str, Any]]:
    """The metadata of a model's outputs by name. A classifier of two texts has no labels here, where an input is one
    text."""
    embedding = {"name": "embedding", "datatype": "FP32", "shape": [-1, one.loaded.config.model.embed]}
    if one.loaded.task != CLASSIFIER or one.models.task is None or len(fields_of(one.models.task)) > 1:
        return {"embedding": embedding}
    label = {"name": "label", "datatype": "BYTES", "shape": [-1]}
    return {"embedding": embedding, "label": label, "score": {"name": "score", "datatype": "FP32", "shape": [-1]}}


async def server(call: Call, _: Nothing) -> Reply:
    """The server's name and version."""
    return Reply({"name": "spanbert_jax", "version": VERSION, "extensions": ["binary_tensor_data"]})


async def model(call: Call, _: Nothing) -> Reply:
    """A model's inputs and outputs."""
    one = call.service.checkpoint(call.path["model"])
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    outputs = list(_outputs(one).values())
    return Reply({"name": one.name, "platform": "spanbert_jax_jax", "inputs": inputs, "outputs": outputs})


async def model_ready(call: Call, _: Nothing) -> Reply:
    """That requests for a model are taken."""
    one = call.service.checkpoint(call.path["model"])
    await health.ready(call, _)
    return Reply({"name": one.name, "ready": True})


async def infer(call: Call, body: InferRequest) -> Reply:
    """The outputs for texts."""
    service, one = call.service, call.service.checkpoint(call.path["model"])
    known, texts = _outputs(one), _texts(body.inputs, call.binary)
    names = [wanted.name for wanted in body.outputs] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Problem("invalid", f"there is no output {unknown[0][:60]!r}; the model has {', '.join(known)}", "outputs")
    values: dict[str, Any] = {}
    parts: list[Answered] = []
    if "embedding" in names:
        items = [Text(text, truncate=service.settings.truncate) for text in texts]
        parts.append(await service.answer(one.models.embed, items, call.seconds))
        values["embedding"] = np.concatenate(parts[-1].answers)
    if one.models.task is not None and {"label", "score"} & set(names):
        blank = next((i for i, text in enumerate(texts) if not text.strip()), None)
        if blank is not None:
            raise Problem("invalid", f"inputs[{blank}] is blank; give a text that is not blank", "inputs")
        parts.append(await service.answer(one.models.task, texts, call.seconds))
        service.check_cut(parts[-1].cut)
        best = [labels_of(one.models.task, found)[0] for found in parts[-1].answers]
        values |= {"label": [of.label for of in best], "score": [of.score for of in best]}
    binary = [wanted.name for wanted in body.outputs if wanted.parameters.get("binary_data")]
    binary += names if not body.outputs and body.parameters.get("binary_data_output") else []
    outputs, tail = [], []
    for name in names:
        output = {**known[name], "shape": [len(texts), *known[name]["shape"][1:]]}
        if name in binary:
            tail.append(write_tensor(output["datatype"], values[name]))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values[name]
        outputs.append(output)
    reply = Reply({"model_name": one.name, "outputs": outputs, **({"id": body.id} if body.id else {})}, _joined(parts))
    if binary:
        head = reply.content()
        reply.value, reply.media_type = b"".join([head, *tail]), "application/octet-stream"
        reply.headers[HEADER] = str(len(head))
    return reply


def _joined(parts: Sequence[Answered]) -> Answered:
    """What the headers tell of a request that asked several models: all inputs that one of them cut, and each phase's
    seconds in all of them."""
    cut = sorted({item for part in parts for item in part.cut})
    seconds = {phase: sum(part.seconds[phase] for part in parts) for phase in parts[0].seconds}
    return Answered([], sum(part.pieces for part in parts), cut, seconds)


def _texts(inputs: list[Tensor], binary: bytes) -> list[str]:
    """The texts of the one tensor; raises Problem where its name, type, size or shape is another."""
    names = [(tensor.name, tensor.datatype) for tensor in inputs]
    if names != [("text", "BYTES")]:
        raise Problem("invalid", f"the inputs are {names}; expected one tensor, 'text' of BYTES", "inputs")
    (tensor,) = inputs
    size = 0 if tensor.data is not None else tensor.parameters.get("binary_data_size")
    if size != len(binary):
        raise Problem("invalid", f"{len(binary):,} bytes follow the JSON, and binary_data_size is {size}", "inputs")
    if tensor.data is None:
        texts = read_texts(binary)
    else:
        texts = [text for one in tensor.data for text in ([one] if isinstance(one, str) else one)]
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]) or math.prod(tensor.shape) != len(texts):
        raise Problem(
            "invalid", f"the shape is {tensor.shape} for {len(texts)} texts; expected [n] or [n, 1]", "inputs"
        )
    return texts


ROUTES = tuple(
    Route(method, path, f"Open Inference: {summary}", handler, request, response, problems, "inference", is_public)
    for method, path, summary, handler, request, response, problems, is_public in (
        ("GET", "/v2", "the server", server, Nothing, dict[str, Any], (), False),
        ("GET", "/v2/health/live", "whether the process answers", health.live, Nothing, dict[str, bool], (), True),
        (
            "GET",
            "/v2/health/ready",
            "whether requests are taken",
            health.ready,
            Nothing,
            dict[str, bool],
            ("not_serving",),
            True,
        ),
        ("GET", "/v2/models/{model}", "a model", model, Nothing, dict[str, Any], ("no_model",), False),
        (
            "GET",
            "/v2/models/{model}/ready",
            "whether it is ready",
            model_ready,
            Nothing,
            dict[str, Any],
            ("no_model", "not_serving"),
            False,
        ),
        (
            "POST",
            "/v2/models/{model}/infer",
            "outputs for texts",
            infer,
            InferRequest,
            InferResponse,
            (*COMPUTES, "no_model"),
            False,
        ),
    )
)
