"""The routes of Hugging Face's text-embeddings-inference (1.9), which its clients use.

Invariant: the first checkpoint that can answer does. Errors have the form {"error", "error_type"}.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import numpy as np

from spanbert_jax.service.openai import Inputs, texts_of
from spanbert_jax.service.problems import Problem
from spanbert_jax.service.routes import COMPUTES, WAITS, Body, Call, Nothing, Reply, Route
from spanbert_jax.serving.task_model import Predicted, TaskModel
from spanbert_jax.serving.text_models import Text
from spanbert_jax.tasks.text_classification.files import columns_of
from spanbert_jax.version import VERSION

CLASSIFIER = "sequence_classification"


class EmbedRequest(Body):
    """Texts to embed. "truncate" null: as the server was started."""

    inputs: Inputs
    normalize: bool = True
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] = "right"
    prompt_name: None = None
    dimensions: int | None = None


class EmbedAllRequest(Body):
    """Texts whose pieces are embedded, [CLS] and [SEP] included."""

    inputs: Inputs
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] = "right"
    prompt_name: None = None


class PredictRequest(Body):
    """A text, a pair of texts ["a", "b"], or a list of either in lists: [["text"], ["a", "b"]]. "model" is our own."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False
    truncate: bool | None = None
    model: str | None = None


class TokenizeRequest(Body):
    """Texts to cut into pieces."""

    inputs: str | list[str]
    add_special_tokens: bool = True


class Label(msgspec.Struct):
    """A label with its probability; in a regression the one label "score" with the number."""

    label: str
    score: float


class Token(msgspec.Struct):
    """A piece with its characters [start, stop) in the text; both are null for a special piece."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(msgspec.Struct):
    """The first checkpoint and the limits, as text-embeddings-inference tells them; and every checkpoint."""

    model_id: str
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    checkpoints: list[dict[str, Any]]


def labels_of(model: TaskModel, found: Predicted) -> list[Label]:
    """Every label with its score, the highest first."""
    scores = found.outputs[0]["scores"].tolist()
    named = [Label(*of) for of in zip(model.task.learnt.labels, scores, strict=True)]
    return sorted(named, key=lambda one: -one.score)


async def embed(call: Call, body: EmbedRequest) -> Reply:
    """A vector for each text."""
    checkpoint, truncate = call.service.checkpoint(None), call.service.truncates(body.truncate)
    checkpoint.check_dimensions(body.dimensions)
    items = [Text(text, "mean", body.normalize, truncate) for text in texts_of(body.inputs, "inputs")]
    answered = await call.service.answer(checkpoint.models.embed, items, call.seconds)
    return Reply(answered.answers, answered)


async def embed_all(call: Call, body: EmbedAllRequest) -> Reply:
    """A vector for each piece of each text."""
    truncate = call.service.truncates(body.truncate)
    items = [Text(text, truncate=truncate) for text in texts_of(body.inputs, "inputs")]
    answered = await call.service.answer(call.service.checkpoint(None).models.pieces, items, call.seconds)
    return Reply([np.ascontiguousarray(states) for states in answered.answers], answered)


async def predict(call: Call, body: PredictRequest) -> Reply:
    """Every label of each text, or pair of texts, with its probability."""
    model = call.service.task(body.model, "/predict", CLASSIFIER)
    if body.raw_scores:
        raise Problem("invalid", "raw_scores is true; this server gives probabilities alone", "raw_scores")
    inputs = body.inputs
    many = isinstance(inputs, list) and all(isinstance(one, list) for one in inputs)
    if not many and isinstance(inputs, list) and not all(isinstance(one, str) for one in inputs):
        raise Problem("invalid", 'inputs mixes texts and lists; write a batch as [["text"], ["a", "b"]]', "inputs")
    groups: list[Any] = inputs if many else [[inputs] if isinstance(inputs, str) else inputs]  # type: ignore[assignment]
    records = [_record(model, i, group) for i, group in enumerate(groups)]
    answered = await call.service.answer(model, records, call.seconds)
    call.service.check_cut(answered.cut, body.truncate)
    found = [labels_of(model, one) for one in answered.answers]
    return Reply(found if many else found[0], answered)


def _record(model: TaskModel, number: int, texts: list[str]) -> Any:
    """The record of one text or of two, under the names of fields that the task reads."""
    fields = fields_of(model)
    if len(texts) != len(fields):
        raise Problem("invalid", f"inputs[{number}] has {len(texts)} texts; this checkpoint reads {len(fields)}")
    if not all(text.strip() for text in texts):
        raise Problem("invalid", f"inputs[{number}] has a blank text; give one that is not blank")
    return dict(zip(fields, texts, strict=True))


def fields_of(model: TaskModel) -> list[str]:
    """The names of the one or two fields with texts that a classifier reads."""
    wanted = model.task.config.classification
    columns = columns_of(wanted.name, wanted.text, wanted.second, wanted.label)
    return [name for name in (columns.text, columns.second) if name]


async def tokenize(call: Call, body: TokenizeRequest) -> Reply:
    """The pieces of each text."""
    tokenizer = call.service.checkpoint(None).loaded.tokenizer
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    call.service.check_count(texts)

    def tokens(text: str) -> Iterator[Token]:
        ids, offsets = tokenizer.tokenize_with_offsets(text)
        if body.add_special_tokens:
            yield Token(tokenizer.cls_id, tokenizer.piece(tokenizer.cls_id), True, None, None)
        for id, (start, end) in zip(ids, offsets, strict=True):
            yield Token(id, tokenizer.piece(id), False, start, end)
        if body.add_special_tokens:
            yield Token(tokenizer.sep_id, tokenizer.piece(tokenizer.sep_id), True, None, None)

    def written() -> bytes:
        # Tokens are encoded one by one, because a thread that encodes a long list keeps all other threads waiting.
        encode = msgspec.json.Encoder().encode
        found = (b"[%b]" % b",".join([encode(token) for token in tokens(text)]) for text in texts)
        return b"[%b]" % b",".join(found)

    return Reply(await call.service.finding.run(written))


async def info(call: Call, _: Nothing) -> Reply:
    """The checkpoints and the limits."""
    service, settings = call.service, call.service.settings
    first = service.checkpoint(None)
    kind: dict[str, Any] = {"embedding": {"pooling": "mean"}}
    if first.loaded.task == CLASSIFIER:
        names = dict(enumerate(first.loaded.labels))
        labels = {"id2label": {str(i): name for i, name in names.items()}}
        kind = {"classifier": {**labels, "label2id": {name: i for i, name in names.items()}}}
    served = [
        {
            "id": one.name,
            "task": one.loaded.task,
            "heads": list(one.loaded.piece_heads),
            "labels": list(one.loaded.labels),
            "embed": one.loaded.config.model.embed,
        }
        for one in service.checkpoints.values()
    ]
    return Reply(
        Info(
            first.name,
            settings.dtype,
            kind,
            settings.limits.queued_inputs,
            first.models.embed.longest,
            settings.limits.batch_pieces,
            settings.max_inputs,
            settings.truncate,
            settings.workers,
            VERSION,
            served,
        )
    )


ROUTES = tuple(
    Route(method, path, f"TEI: {summary}", handler, request, response, problems, "tei")
    for method, path, summary, handler, request, response, problems in (
        ("POST", "/embed", "a vector for each text", embed, EmbedRequest, list[list[float]], COMPUTES),
        (
            "POST",
            "/embed_all",
            "a vector for each piece",
            embed_all,
            EmbedAllRequest,
            list[list[list[float]]],
            COMPUTES,
        ),
        (
            "POST",
            "/predict",
            "labels of texts, from a classifier",
            predict,
            PredictRequest,
            list[Label | list[Label]],
            (*COMPUTES, "no_model", "no_head"),
        ),
        (
            "POST",
            "/tokenize",
            "the pieces of texts",
            tokenize,
            TokenizeRequest,
            list[list[Token]],
            WAITS,
        ),
        ("GET", "/info", "the checkpoints and the limits", info, Nothing, Info, ()),
    )
)
