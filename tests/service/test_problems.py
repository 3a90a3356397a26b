"""Every row of the table of problems is provoked; the service goes on after each; nothing that was sent is logged."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from spanbert_jax.service.app import ROUTES, application
from spanbert_jax.service.aside import Aside
from spanbert_jax.service.openapi import problems_of
from spanbert_jax.service.problems import PROBLEMS
from spanbert_jax.service.service import Service, Settings
from spanbert_jax.serving.scheduler import Limits, Overloaded
from spanbert_jax.serving.slot_scores import NotFinite
from spanbert_jax.serving.text_models import Text
from tests.support.fake_model import FAILS_AT_END, NOT_FINITE
from tests.support.fake_service import FakeEmbedding, fake_service, hold_device, vector

LIMITS = Limits(batch_pieces=64, queued_pieces=64, queued_inputs=8)
SETTINGS = Settings(max_body_bytes=400, max_inputs=6, deadline=30, limits=LIMITS)
SECRET = "Xq7"
FIND = "/spans/find"


@pytest.fixture
def started() -> Iterator[Callable[..., tuple[TestClient, Service, FakeEmbedding]]]:
    """started(is_ready=..., **settings): a client, the service and its model."""
    services, gates = [], []

    def start(is_ready: bool = True, **changes: Any) -> tuple[TestClient, Service, FakeEmbedding]:
        service, model = fake_service(Settings(**{**vars(SETTINGS), **changes}), is_ready)
        services.append(service)
        gates.append(model.gate)
        return TestClient(application(service), raise_server_exceptions=False), service, model

    yield start
    for gate, service in zip(gates, services, strict=True):
        gate.set()
        service.close()


def embed(client: TestClient, text: Any = "abc", **fields: Any) -> Any:
    return client.post("/v1/embeddings", json={"input": text, "model": "fake", **fields})


def post(body: bytes, path: str = "/v1/embeddings") -> Callable[[TestClient], Any]:
    return lambda client: client.post(path, content=body)


def body(**fields: Any) -> bytes:
    return json.dumps({"input": "abc", "model": "fake", **fields}).encode()


def tensor(count: int, size: int) -> bytes:
    text = {"name": "text", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [text]}).encode()


def binary(head: bytes, tail: bytes, size: str | None = None) -> Callable[[TestClient], Any]:
    headers = {"Inference-Header-Content-Length": size or str(len(head))}
    return lambda client: client.post("/v2/models/fake/infer", content=head + tail, headers=headers)


CASES: list[tuple[str, str, Callable[[TestClient], Any]]] = [
    ("malformed", "not JSON in UTF-8: Input data was truncated", post(b'{"input": "abc"')),
    ("malformed", "not JSON in UTF-8: Input data was truncated", post(b"")),
    ("malformed", "Invalid UTF-8", post(b'{"input": "\xff", "model": "fake"}')),
    ("malformed", "not JSON", post(b'{"input": "\\ud800", "model": "fake"}')),
    ("invalid", "Expected `object`, got `array`", post(b"[" * 300)),
    ("invalid", "unknown field `inputs`", post(body(inputs="x"))),
    ("invalid", "missing required field `input`", post(b'{"model": "fake"}')),
    ("invalid", "Expected `str | array`, got `int` - at `$.input`", post(body(input=3))),
    ("invalid", "input is empty; give texts, or ids", post(body(input=[]))),
    ("invalid", "input is of several kinds; give texts, or ids", post(body(input=["x", 3]))),
    ("invalid", "Invalid enum value", post(body(encoding_format="raw"))),
    ("invalid", "dimensions is 3; this model's vectors have 768", post(body(dimensions=3))),
    ("no_model", "no checkpoint named 'other' is served, only fake", post(body(model="other"))),
    ("no_route", "there is no such path", lambda client: client.get("/v1/embedding")),
    ("wrong_method", "GET is not for this path", lambda client: client.get("/v1/embeddings")),
    ("too_large", "the body has more than 400 bytes", post(body(input="x" * 400))),
    ("too_large", "the request has 7 inputs; 6 are the most", post(body(input=["x"] * 7))),
    (
        "too_large",
        "the request has 7 inputs",
        post(b'{"text": "x", "rules": ["%s"]}' % b"; ".join([b"sentence"] * 7), FIND),
    ),
    ("no_head", "the checkpoint fake was not fine-tuned; /predict needs one for", post(b'{"inputs": "x"}', "/predict")),
    ("no_head", "/entities needs one for token_class", post(b'{"inputs": ["x"]}', "/entities")),
    ("invalid", "raw_scores", post(b'{"inputs": "x", "raw_scores": 3}', "/predict")),
    ("invalid", "rule 'gazetteer:/x' reads", post(b'{"text": "x", "rules": ["gazetteer:/x"]}', "/spans/find")),
    ("malformed", "the header inference-header-content-length is '9' for a body of 2", binary(b"{}", b"", "9")),
    ("malformed", "is '-1' for a body", binary(b"{}", b"", "-1")),
    ("invalid", "the binary tensor ends inside of element 1", binary(tensor(1, 9), b"\x01\0\0\0a\x02\0\0\0")),
    ("invalid", "the binary tensor ends inside of element 0", binary(tensor(1, 2), b"\x01\0")),
    ("invalid", "element 0 of the binary tensor is not UTF-8", binary(tensor(1, 5), b"\x01\0\0\0\xff")),
    ("invalid", "5 bytes follow the JSON, and binary_data_size is 4", binary(tensor(1, 4), b"\x01\0\0\0a")),
    ("invalid", "the shape is [2] for 1 texts; expected [n] or [n, 1]", binary(tensor(2, 5), b"\x01\0\0\0a")),
    ("invalid", "the inputs are \\[\\]; expected one tensor", post(b'{"inputs": []}', "/v2/models/fake/infer")),
]


@pytest.mark.parametrize(("name", "message", "ask"), CASES, ids=[f"{case[0]}: {case[1][:30]}" for case in CASES])
def test_a_bad_request_gets_its_status_and_the_service_goes_on(
    name: str, message: str, ask: Callable[[TestClient], Any], started: Callable[..., Any]
) -> None:
    client, _, _ = started()
    assert_problem(ask(client), name, message)
    assert_answered(client)


def assert_problem(response: Any, name: str, message: str) -> None:
    assert response.status_code == PROBLEMS[name].status
    error = response.json()["error"]
    found = error if isinstance(error, str) else error["message"]
    assert message.replace("\\", "") in found
    if isinstance(error, dict):
        assert error["code"] == name and error.keys() == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]


def assert_answered(client: TestClient) -> None:
    assert vector_of(embed(client)) == vector("abc")[0]


def vector_of(response: Any) -> np.float32:
    """The number of which the vector consists."""
    assert response.status_code == 200
    (first,) = set(response.json()["data"][0]["embedding"])
    return np.float32(first)


def test_a_key_is_asked_for_but_not_for_health(started: Callable[..., Any]) -> None:
    client, _, _ = started(keys=(b"one", b"two"))
    for given in ({}, {"Authorization": "Bearer on"}, {"Authorization": "one"}, {"Authorization": "Bearer \xe9"}):
        encoded = {name: value.encode("latin-1") for name, value in given.items()}
        response = client.post("/v1/embeddings", content=body(), headers=encoded)
        assert_problem(response, "unauthorized", "the key is missing or wrong")
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("one", "two"):
        response = client.post("/v1/embeddings", content=body(), headers={"Authorization": f"bearer {key}"})
        assert response.status_code == 200
    for route in ROUTES:
        if route.is_public:
            assert client.get(route.path.replace("{name}", "style.css")).status_code == 200
        elif "{" not in route.path:
            assert client.request(route.method, route.path).status_code == 401


def test_an_overload_is_refused_at_once_with_the_time_to_come_again(started: Callable[..., Any]) -> None:
    client, service, model = started()
    gate = hold_device(service, model)
    waiting = service.engine.submit(model, [Text("x" * 9)] * 3, 60)  # 48 pieces beside the 8 on the device
    until(lambda: "spanbert_queue_pieces 56" in client.get("/metrics").text)
    assert_problem(embed(client, "x" * 9), "overloaded", "56 pieces are waiting; 64 are the most")
    response = embed(client, ["x"] * 6)
    assert_problem(response, "overloaded", "5 inputs are waiting; 8 are the most")
    assert response.headers["retry-after"] == "1"
    gate.set()
    assert len(waiting.result(30).answers) == 3
    assert_problem(embed(client, ["x" * 9] * 5), "too_large", "80 pieces with their padding; 64 are the most")
    assert_answered(client)


def test_under_three_times_the_load_each_client_gets_its_own_answer_or_429(started: Callable[..., Any]) -> None:
    _, service, model = started(limits=Limits(64, queued_pieces=10_000, queued_inputs=50))
    web, random = application(service), np.random.default_rng(0)
    texts = ["".join(map(chr, random.integers(97, 123, random.integers(1, 17)))) for _ in range(150)]
    model.gate.clear()

    async def ask(client: httpx2.AsyncClient, inputs: list[str]) -> int:
        response = await client.post("/v1/embeddings", json={"input": inputs, "model": "fake"})
        if response.status_code == 200:
            found = [one["embedding"][0] for one in response.json()["data"]]
            assert found == pytest.approx([float(vector(text)[0]) for text in inputs])
        else:
            assert_problem(response, "overloaded", "are waiting")
            assert int(response.headers["retry-after"]) >= 1
        return response.status_code

    async def load() -> list[int]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(web), base_url="http://test") as client:
            asking = [asyncio.ensure_future(ask(client, texts[i : i + 5])) for i in range(0, 150, 5)]
            while service.counters.value("spanbert_rejected_total", reason="Overloaded") < 20:
                await asyncio.sleep(0.01)
            model.gate.set()
            return await asyncio.gather(*asking)

    statuses = asyncio.run(load())
    assert statuses.count(200) == 10 and statuses.count(429) == 20
    assert service.engine.drain(5) and set(model.batches) <= set(model.table)


def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("does not come to hold")


def test_late_answers_are_given_up(started: Callable[..., Any]) -> None:
    client, service, model = started(deadline=0.5)
    gate = hold_device(service, model)
    assert_problem(embed(client), "late", "the deadline passed")
    gate.set()
    until(lambda: "spanbert_queue_inputs 0" in client.get("/metrics").text)
    assert_answered(client)


@pytest.mark.parametrize("bad", [FAILS_AT_END, NOT_FINITE])
def test_a_model_that_fails_is_told_without_the_text(
    bad: int, started: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, _, _ = started()
    with caplog.at_level(logging.DEBUG):
        response = embed(client, SECRET + chr(bad))
    assert_problem(response, "failed", "not finite" if bad == NOT_FINITE else "the model failed: ValueError")
    assert response.headers["x-request-id"] in caplog.text and SECRET not in caplog.text + response.text
    assert_answered(client)


def test_a_server_that_is_not_ready_or_draining_says_so(started: Callable[..., Any]) -> None:
    client, service, _ = started(is_ready=False)
    assert_problem(embed(client), "not_serving", "fake/embed is being compiled")
    assert client.get("/health/ready").status_code == client.get("/v2/health/ready").status_code == 503
    assert client.get("/health/live").status_code == client.get("/v2/health/live").status_code == 200
    for one in service.engine.models:
        for shape in one.table:
            one.prepare(shape)
    assert client.get("/health/ready").status_code == 200
    assert_answered(client)
    service.engine.drain(0)
    response = embed(client)
    assert_problem(response, "not_serving", "the server is shutting down")
    assert response.headers["retry-after"] == "1" and client.get("/health/ready").status_code == 503


def asgi(service: Service, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the application sends for a request whose client sends these messages, and then nothing more."""
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b""}
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        message = next(left, None)
        return message if message is not None else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(application(service)(scope, receive, send))  # type: ignore[arg-type]
    return sent


def test_the_work_for_a_client_that_went_away_is_dropped(started: Callable[..., Any]) -> None:
    client, service, model = started()
    gate = hold_device(service, model)
    asgi(service, [{"type": "http.request", "body": body()}, {"type": "http.disconnect"}])
    assert service.counters.value("spanbert_rejected_total", reason="Cancelled") == 1
    gate.set()
    until(lambda: "spanbert_queue_inputs 0" in client.get("/metrics").text)
    assert len(model.batches) == 2
    assert_answered(client)


def test_a_client_that_never_ends_its_body_is_given_up(started: Callable[..., Any]) -> None:
    client, service, _ = started(deadline=0.3)
    start, *_ = asgi(service, [{"type": "http.request", "body": body()[:5], "more_body": True}])
    assert start["status"] == 504
    assert_answered(client)


def test_a_fault_of_the_program_is_a_500_without_its_message(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, service, _ = started()

    async def answer(*_: Any) -> Any:
        raise KeyError(SECRET)

    monkeypatch.setattr(service, "answer", answer)
    response = embed(client)
    assert_problem(response, "failed", "the server failed: KeyError")
    assert SECRET not in response.text + caplog.text and "KeyError" in caplog.text


def test_work_beside_the_engine_has_a_bound_too(started: Callable[..., Any]) -> None:
    client, service, _ = started()
    service.finding, gate = Aside("find spans", most=2), threading.Event()
    body = {"text": "Ada", "rules": ["sentence"]}

    async def overload() -> None:
        waiting = [asyncio.ensure_future(service.finding.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 requests are waiting; 2 are the most"):
            await service.finding.run(gate.wait)
        gate.set()
        assert await asyncio.gather(*waiting) == [True, True]

    asyncio.run(overload())
    assert client.post("/spans/find", json=body).json() == [{"start": 0, "end": 3, "kind": "sentence"}]
    assert_problem(
        client.post("/score", json={"text": "x"}), "no_head", "/score needs one with a head that predicts pieces"
    )


def test_numbers_that_are_not_finite_are_a_failure_without_the_checkpoint_s_path(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, service, _ = started()

    def score(*_: Any) -> Any:
        raise NotFinite(f"{SECRET}: the model's numbers are not finite")

    loaded = service.checkpoints["fake"].loaded
    monkeypatch.setattr(loaded, "piece_heads", ("mlm",))
    monkeypatch.setattr(loaded, "score", score, raising=False)
    response = client.post("/score", json={"text": "x"})
    assert_problem(response, "failed", "the model's numbers are not finite")
    assert SECRET not in response.text


def test_a_long_text_to_tokenise_does_not_stop_the_server(started: Callable[..., Any]) -> None:
    client, service, _ = started(deadline=2)
    begun, gate, web = threading.Event(), threading.Event(), application(service)

    def slow(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        begun.set()
        gate.wait(1)
        return [5], [(0, len(text))]

    service.checkpoints["fake"].loaded.tokenizer = SimpleNamespace(tokenize_with_offsets=slow, piece=lambda _: "x")
    asked = {"inputs": "x", "add_special_tokens": False}

    async def ask() -> Any:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(web), base_url="http://test") as asking:
            pieces = asyncio.ensure_future(asking.post("/tokenize", json=asked))
            assert await asyncio.to_thread(begun.wait, 10)
            live = await asking.get("/health/live")
            assert live.status_code == 200 and not pieces.done()
            gate.set()
            return (await pieces).json()

    assert asyncio.run(ask()) == [[{"id": 5, "text": "x", "special": False, "start": 0, "stop": 1}]]
    service.settings = replace(service.settings, deadline=0.1)
    gate.clear()
    assert_problem(client.post("/tokenize", json=asked), "late", "the deadline passed")


def test_each_protocol_has_its_form_of_an_error(started: Callable[..., Any]) -> None:
    client, _, _ = started()
    assert client.post("/embed", content=b"{").json().keys() == {"error", "error_type"}
    assert client.post("/embed", json={"inputs": []}).json()["error_type"] == "validation"
    assert client.post("/v2/models/none/infer", json={"inputs": []}).json().keys() == {"error"}
    assert client.get("/v2/models/none").status_code == 404


def test_texts_that_are_odd_are_no_problem(started: Callable[..., Any]) -> None:
    client, _, _ = started()
    for text in ("<script>", "a\x00b", "\u202eabc", "😀" * 3, "\ufeff", "a\u0301"):
        assert vector_of(embed(client, text)) == vector(text)[0]


def test_every_problem_that_a_route_may_have_is_in_the_table_and_every_row_is_used() -> None:
    named = {name for route in ROUTES for name in problems_of(route)}
    assert named | {"no_route", "wrong_method"} == set(PROBLEMS)
