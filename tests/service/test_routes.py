"""Every route on real checkpoints: what it answers is what the Python interface and tools/predict.py give."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from spanbert_jax.errors import UserError
from spanbert_jax.service.app import ROUTES, application
from spanbert_jax.service.openapi import document, problems_of
from spanbert_jax.service.own import relation_record
from spanbert_jax.service.problems import PROBLEMS
from spanbert_jax.service.routes import Nothing, Route
from spanbert_jax.service.service import Service, Settings, open_service
from spanbert_jax.serving.engine import ModelFailed
from spanbert_jax.serving.scheduler import Expired, NotServing, Overloaded
from spanbert_jax.tasks.finetuning import Learnt
from tests.support.served import TASKS
from tests.support.tuned import WORDPIECE, assert_close, random_texts, write_tuned

TEXTS = [text for text in random_texts(np.random.default_rng(0), 30) if len(WORDPIECE.tokenize(text)) <= 14][:6]
TEXT = "ab cd 😀, e fghi"
EXAMPLES: dict[str, Any] = {
    "/v1/embeddings": {"input": TEXTS, "model": "labels"},
    "/spans/embed": {"inputs": [{"text": TEXT, "spans": [[0, 2], [3, 6]]}], "pooling": "ends", "model": "tags"},
    "/spans/find": {"text": "Ada Lovelace met Bob. He left.", "rules": ["capitals", "sentence"]},
    "/entities": {"inputs": TEXTS, "model": "nested"},
    "/answer": {"question": "a b", "context": TEXTS[0] * 3, "model": "questions"},
    "/relation": {"text": "ab cd, e fghi", "subject": [0, 2], "object": [7, 13], "model": "relations"},
    "/infill": {"text": "ab ___ cd", "words": 1, "model": "gaps"},
    "/score": {"text": "ab cd", "model": "gaps"},
    "/explain": {"record": "ab cd", "steps": 4, "model": "labels"},
    "/embed": {"inputs": TEXTS},
    "/embed_all": {"inputs": TEXTS[0]},
    "/predict": {"inputs": [[text] for text in TEXTS]},
    "/tokenize": {"inputs": TEXT},
    "/v2/models/labels/infer": {"inputs": [{"name": "text", "shape": [6], "datatype": "BYTES", "data": TEXTS}]},
}
ASIDE = {
    "/spans/find": "finding",
    "/infill": "filling",
    "/score": "filling",
    "/explain": "filling",
    "/tokenize": "finding",
}  # which is asked in place of the engine
POSTED = [route for route in ROUTES if route.request is not Nothing]
by_path = pytest.mark.parametrize("route", POSTED, ids=lambda route: route.path)


def path_of(route: Route) -> str:
    return route.path.replace("{model}", "labels").replace("{name}", "style.css")


def ask(client: TestClient, route: Route, **changes: Any) -> Any:
    return client.post(path_of(route), json={**EXAMPLES[path_of(route)], **changes})


@by_path
def test_an_answer_has_the_documented_type_and_its_timing(route: Route, client: TestClient) -> None:
    response = ask(client, route)
    assert response.status_code == 200, response.text
    msgspec.json.decode(response.content, type=route.response)
    timing = response.headers["server-timing"]
    engine = () if route.path in ASIDE else ("tokenize", "queue", "device", "post")
    assert [part.partition(";")[0] for part in timing.split(", ")] == [*engine, "total"]


@pytest.mark.parametrize("route", [route for route in ROUTES if route.request is Nothing], ids=lambda one: one.path)
def test_every_other_route_answers(route: Route, client: TestClient) -> None:
    response = client.get(path_of(route), headers={"X-Request-Id": "mine"})
    assert response.status_code == 200 and response.headers["x-request-id"] == "mine"
    if route.response is not Any:
        msgspec.json.decode(response.content, type=route.response)


ERRORS: dict[str, Exception] = {
    "overloaded": Overloaded("full", 2.5),
    "failed": ModelFailed("broken"),
    "not_serving": NotServing("closing"),
    "late": Expired("late"),
}
PAIRS = [(route, name) for route in POSTED for name in problems_of(route) if name in ERRORS]


@pytest.mark.parametrize(("route", "name"), PAIRS, ids=[f"{route.path} {name}" for route, name in PAIRS])
def test_every_documented_status_of_the_engine_is_given(
    route: Route, name: str, client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ERRORS[name]

    monkeypatch.setattr(service.engine, "submit", refuse)
    if route.path in ASIDE:
        monkeypatch.setattr(getattr(service, ASIDE[route.path]), "run", refuse)
    response = ask(client, route)
    assert response.status_code == PROBLEMS[name].status and str(ERRORS[name])[:4] in response.text.replace("the ", "")
    assert response.headers.get("retry-after") == {"overloaded": "3", "not_serving": "1"}.get(name)


@by_path
def test_every_documented_status_of_the_body_is_given(
    route: Route, client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = problems_of(route)
    assert {"malformed", "too_large", "invalid"} <= set(named)
    path = path_of(route)
    assert client.post(path, content=b"{").status_code == PROBLEMS["malformed"].status
    assert client.post(path, content=b" " * 2_000_001).status_code == PROBLEMS["too_large"].status
    assert ask(client, route, nothing=1).status_code == PROBLEMS["invalid"].status
    if "no_model" in named:
        body = EXAMPLES[path] if "{" in route.path else {**EXAMPLES[path], "model": "other"}
        assert client.post(path.replace("labels", "other"), json=body).status_code == 404
    if "no_head" in named and "model" in EXAMPLES[path] and path != "/explain":  # every checkpoint here has a head
        response = ask(client, route, model="labels")
        assert response.status_code == 404 and response.json()["error"]["code"] == "no_head"
        assert "the checkpoint labels " in response.text and route.path + " needs " in response.text


def test_the_document_names_every_route_and_status(client: TestClient) -> None:
    found = client.get("/openapi.json").json()
    assert found == msgspec.json.decode(msgspec.json.encode(document(ROUTES)))
    for route in ROUTES:
        operation = found["paths"][route.path][route.method.lower()]
        statuses = {"200", *(str(PROBLEMS[name].status) for name in problems_of(route))}
        assert set(operation["responses"]) == statuses and ("requestBody" in operation) == (route in POSTED)
    for name in (part for part in str(found).split("'#/components/schemas/")[1:]):
        assert name.partition("'")[0] in found["components"]["schemas"]


def test_vectors_are_those_of_python_in_both_encodings(client: TestClient, service: Service) -> None:
    states = [one.hidden_states for one in service.checkpoints["labels"].loaded.hidden_states(TEXTS)]
    means = np.array([of.mean(axis=0) for of in states])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    plain = ask(client, POSTED[0]).json()
    np.testing.assert_allclose([one["embedding"] for one in plain["data"]], expected, atol=1e-5)
    assert [one["index"] for one in plain["data"]] == list(range(6))
    pieces = sum(map(len, states))
    assert plain["usage"] == {"prompt_tokens": pieces, "total_tokens": pieces, "truncated": []}
    coded = ask(client, POSTED[0], encoding_format="base64").json()
    vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in coded["data"]]
    assert np.array_equal(vectors, np.array([one["embedding"] for one in plain["data"]], np.float32))
    cls = ask(client, POSTED[0], pooling="cls", input=TEXTS[1]).json()["data"][0]["embedding"]
    np.testing.assert_allclose(cls, states[1][0] / np.linalg.norm(states[1][0]), atol=1e-5)
    ids = ask(client, POSTED[0], input=[WORDPIECE.tokenize(text) for text in TEXTS]).json()["data"]
    assert ids == plain["data"]
    assert client.post("/embed", json={"inputs": TEXTS}).json() == [one["embedding"] for one in plain["data"]]
    raw = client.post("/embed", json={"inputs": TEXTS, "normalize": False}).json()
    np.testing.assert_allclose(raw, means, atol=1e-5)
    tensor = ask(client, POSTED[-1]).json()["outputs"][0]
    assert tensor["shape"] == [6, 16] and tensor["data"] == [x for one in plain["data"] for x in one["embedding"]]


def test_what_is_cut_is_told_or_refused(client: TestClient) -> None:
    texts = ["a", "x " * 30]
    response = client.post("/v1/embeddings", json={"input": texts, "model": "tags"})
    assert response.json()["usage"]["truncated"] == [1] and response.headers["x-truncated-inputs"] == "1"
    refused = client.post("/v1/embeddings", json={"input": texts, "model": "tags", "truncate": False})
    assert refused.status_code == 422 and "inputs[1] has 32 pieces; 16 are the most" in refused.text
    refused = client.post("/predict", json={"inputs": "x " * 30, "truncate": False})
    assert refused.status_code == 422 and "inputs[0] is longer than a row" in refused.text
    assert "spanbert_truncated_total" in client.get("/metrics").text


LONG = "ab " * 70  # the rows have 16 pieces, or 24 of a task; a question has 64
TOO_LONG: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["a", LONG]},
    "/spans/embed": {"inputs": [{"text": TEXT, "spans": [[0, 2]]}, {"text": LONG, "spans": [[0, 2]]}]},
    "/answer": {"question": LONG},
    "/relation": {"text": LONG, "object": [3, 5]},
    "/explain": {"record": LONG, "method": "occlusion"},
    "/embed": {"inputs": ["a", LONG]},
    "/embed_all": {"inputs": ["a", LONG]},
    "/predict": {"inputs": [["a"], [LONG]]},
    "/v2/models/{model}/infer": {
        "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", LONG]}],
        "outputs": [{"name": "label"}],
    },
}
NEVER_CUT = ("/spans/find", "/entities", "/infill", "/score", "/tokenize")  # texts need no row, several, or are refused


@pytest.mark.parametrize("route", [of for of in POSTED if of.path not in NEVER_CUT], ids=lambda route: route.path)
def test_a_server_that_cuts_no_text_refuses_what_another_one_says_it_cut(
    route: Route, client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = ask(client, route, **TOO_LONG[route.path])
    number = "0" if route.path in ("/answer", "/relation", "/explain") else "1"
    assert response.status_code == 200, response.text
    assert response.headers["x-truncated-inputs"] == number
    monkeypatch.setattr(service, "settings", dataclasses.replace(service.settings, truncate=False))
    refused = ask(client, route, **TOO_LONG[route.path])
    assert refused.status_code == 422 and f"inputs[{number}] " in refused.text
    assert "x-truncated-inputs" not in refused.headers
    if "truncate" in route.request.__struct_fields__:
        assert ask(client, route, **TOO_LONG[route.path], truncate=True).status_code == 200
    whole = ask(client, route)
    assert whole.status_code == 200 and "x-truncated-inputs" not in whole.headers


def test_what_any_model_of_an_inference_cut_is_told(client: TestClient) -> None:
    texts = [" ".join("ab" * pieces) for pieces in (1, 8, 14)]  # 2, 16 and 28 pieces; embed reads 14, the task 22
    tensor = {"name": "text", "shape": [3], "datatype": "BYTES", "data": texts}
    for names, cut in ((["label"], "2"), (["embedding"], "1,2"), (["embedding", "label"], "1,2")):
        body = {"inputs": [tensor], "outputs": [{"name": name} for name in names]}
        response = client.post("/v2/models/labels/infer", json=body)
        assert response.headers["x-truncated-inputs"] == cut
        timing = [part.partition(";")[0] for part in response.headers["server-timing"].split(", ")]
        assert timing == ["tokenize", "queue", "device", "post", "total"]


def test_spans_are_those_of_python(client: TestClient, service: Service) -> None:
    loaded = service.checkpoints["tags"].loaded
    found = client.post("/spans/embed", json=EXAMPLES["/spans/embed"]).json()[0]
    np.testing.assert_allclose(
        [one["embedding"] for one in found], loaded.embed_spans(TEXT, [(0, 2), (3, 6)], "ends"), atol=1e-5
    )
    after = {"inputs": [{"text": TEXT, "spans": [[10, 11]]}], "offsets": "utf16", "model": "tags"}
    (shifted,) = client.post("/spans/embed", json=after).json()[0]
    assert (shifted["start"], shifted["end"]) == (10, 11)
    np.testing.assert_allclose(shifted["embedding"], loaded.embed_spans(TEXT, [(9, 10)])[0], atol=1e-5)
    inside = {"inputs": [{"text": TEXT, "spans": [[6, 7]]}], "offsets": "utf16"}
    response = client.post("/spans/embed", json=inside)
    assert response.status_code == 422 and "inputs[0].spans[0] is [6, 7]; expected offsets between" in response.text


def test_rules_find_spans(client: TestClient) -> None:
    text = "😀 Ada Lovelace met Bob. He left."
    body = {"text": text, "rules": ["regex:name=[A-Z][a-z]+ [A-Z][a-z]+"], "offsets": "utf16"}
    pytest.importorskip("re2")
    found = client.post("/spans/find", json=body).json()
    assert found == [{"start": 3, "end": 15, "kind": "name"}]
    wrong = client.post("/spans/find", json={**body, "rules": ["noun"]})
    assert wrong.status_code == 422 and "noun" in wrong.text


@pytest.mark.parametrize("name", ["tags", "nested"])
def test_entities_are_those_of_the_tools(name: str, client: TestClient, service: Service) -> None:
    found = client.post("/entities", json={"inputs": TEXTS, "model": name}).json()
    expected = [one["entities"] for one in service.checkpoints[name].loaded.predict(TEXTS)]
    keys = {"start": "start", "end": "end", "text": "text", "label": "type", "score": "score"}
    assert_close(found, [[{key: one[of] for key, of in keys.items()} for one in of] for of in expected])
    assert any(found)
    scores = sorted(one["score"] for of in found for one in of)
    few = client.post("/entities", json={"inputs": TEXTS, "model": name, "threshold": scores[len(scores) // 2]}).json()
    assert sum(map(len, few)) == len(scores) - len(scores) // 2
    flat = client.post("/entities", json={"inputs": TEXTS, "model": name, "flat": True}).json()
    assert flat == [without_overlaps(of) for of in found]


def without_overlaps(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entities that no better one overlaps, by comparing all with all."""
    kept: list[dict[str, Any]] = []
    for one in sorted(found, key=lambda entity: -entity["score"]):
        if not any(one["start"] < other["end"] and other["start"] < one["end"] for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda entity: entity["start"])


def test_a_classifier_of_two_texts_has_embeddings_alone_where_an_input_is_one_text(tmp_path: Path) -> None:
    learnt, columns = Learnt(("no", "yes")), {"name": "custom", "second": "other"}
    place = write_tuned(tmp_path, "sequence_classification", learnt, classification=columns)
    service = open_service({"pairs": place}, Settings(deterministic=True, deadline=600, max_input_pieces=16))
    service.engine.warm_up(everything=True)
    client = TestClient(application(service))
    assert [of["name"] for of in client.get("/v2/models/pairs").json()["outputs"]] == ["embedding"]
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a b"]}
    outputs = client.post("/v2/models/pairs/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert [of["name"] for of in outputs] == ["embedding"]
    service.close()


def test_a_blank_text_gets_no_label(client: TestClient) -> None:
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", " "]}
    body = {"inputs": [tensor], "outputs": [{"name": "label"}]}
    for response in (
        client.post("/v2/models/labels/infer", json=body),
        client.post("/predict", json={"inputs": [["a"], [" "]]}),
    ):
        assert response.status_code == 422 and "inputs[1] " in response.text and "blank" in response.text


def test_a_record_of_many_rows_or_spans_is_too_large_to_be_explained(client: TestClient) -> None:
    record = {"question": "a b", "context": "a b c " * 200}
    body = {"record": record, "model": "questions"}
    many = {
        **body,
        "record": {"question": "a", "context": "b"},
        "method": "occlusion",
        "spans": [["context", 0, 1]] * 513,
    }
    for sent, words in ((body, " rows; 32 are the most"), (many, "spans has 513 spans; 512 are the most")):
        response = client.post("/explain", json=sent)
        assert response.status_code == 413 and words in response.text


def test_answers_are_those_of_the_tools(client: TestClient, service: Service) -> None:
    question = {"question": "a b", "context": "😀 " + TEXTS[0] * 3}
    (expected,) = service.checkpoints["questions"].loaded.predict([question])
    found = client.post("/answer", json={**question, "model": "questions", "top_k": 3}).json()
    assert found["text"] == expected["text"] and len(found["answers"]) == 3
    spans = [one for one in expected["n_best"] if one["text"]][:3]
    assert_close(found["answers"], [{key: one[key] for key in found["answers"][0]} for one in spans])
    none = [one["probability"] for one in expected["n_best"] if not one["text"]]
    assert found["none_probability"] == (pytest.approx(none[0], abs=1e-4) if none else None)
    shifted = client.post("/answer", json={**question, "offsets": "utf16"}).json()["answers"][0]
    ends = [question["context"][: found["answers"][0][end]] for end in ("start", "end")]
    assert [shifted["start"], shifted["end"]] == [len(text.encode("utf-16-le")) // 2 for text in ends]
    for changes, message in (({"top_k": 0}, "top_k is 0; expected 1 to"), ({"context": " "}, "must not be blank")):
        response = client.post("/answer", json={**question, **changes})
        assert response.status_code == 422 and message in response.text


def test_labels_are_those_of_the_tools(client: TestClient, service: Service) -> None:
    expected = service.checkpoints["labels"].loaded.predict(TEXTS)
    found = client.post("/predict", json=EXAMPLES["/predict"]).json()
    assert [of[0]["label"] for of in found] == [one["label"] for one in expected]
    assert_close([of[0]["score"] for of in found], [one["score"] for one in expected])
    assert all(sum(one["score"] for one in of) == pytest.approx(1, abs=1e-5) for of in found)
    assert_close(client.post("/predict", json={"inputs": TEXTS[0]}).json(), found[0])
    outputs = {one["name"]: one["data"] for one in ask(client, POSTED[-1]).json()["outputs"]}
    assert outputs["label"] == [one["label"] for one in expected]
    named = [client.post("/predict", json={"inputs": TEXTS[0], "model": name}) for name in ("labels", "tags", "other")]
    assert [one.status_code for one in named] == [200, 404, 404] and named[0].json() == found[0]
    assert [one.json()["error_type"] for one in named[1:]] == ["model_type", "model_not_found"]
    pair = client.post("/predict", json={"inputs": ["a", "b"]})
    assert pair.status_code == 422 and "inputs[0] has 2 texts; this checkpoint reads 1" in pair.text
    mixed = client.post("/predict", json={"inputs": ["a", ["b"]]})
    assert mixed.status_code == 422 and "write a batch as" in mixed.text


def test_relations_are_those_of_the_tools(client: TestClient, service: Service) -> None:
    (expected,) = service.checkpoints["relations"].loaded.predict(["<e1>ab</e1> cd, <e2>e fghi</e2>"])
    found = client.post("/relation", json={**EXAMPLES["/relation"], "object": [7, 13]}).json()
    assert found[0]["label"] == expected["relation"] and len(found) == 2
    assert_close(found[0]["score"], expected["score"])


def test_a_relation_has_words_that_end_where_its_entities_do() -> None:
    record = relation_record("un-ab cd, e", (3, 5), (10, 11), "PERSON", None)
    assert record == {
        "token": ["un-", "ab", "cd,", "e"],
        "subj_start": 1,
        "subj_end": 1,
        "subj_type": "PERSON",
        "obj_start": 3,
        "obj_end": 3,
    }
    with pytest.raises(UserError, match=r"subject \[2, 3\] has no word"):
        relation_record("ab cd", (2, 3), (3, 5), None, None)
    with pytest.raises(UserError, match=r"have characters in common"):
        relation_record("ab cd", (0, 3), (2, 5), None, None)


def test_gaps_are_filled_and_texts_scored_as_in_python(client: TestClient, service: Service) -> None:
    loaded = service.checkpoints["gaps"].loaded
    text = "ab 😀 ___ cd"
    found = client.post("/infill", json={"text": text, "words": 1, "order": "beam", "beam": 2}).json()
    expected = loaded.infill(text, words=1, order="beam", beam=2).to_json()
    assert_close(found, msgspec.to_builtins(expected))
    shifted = client.post(
        "/infill", json={"text": text, "words": 1, "order": "beam", "beam": 2, "offsets": "utf16"}
    ).json()
    gap, plain = shifted["gaps"][0], found["gaps"][0]
    assert gap["replaced"] == [6, 9] and plain["replaced"] == [5, 8]
    assert (gap["start"], gap["pieces"][0]["end"]) == (plain["start"] + 1, plain["pieces"][0]["end"] + 1)
    spans = client.post("/infill", json={"text": "ab cd", "spans": [[3, 5]], "model": "gaps"}).json()
    assert_close(spans, msgspec.to_builtins(loaded.infill("ab cd", [(3, 5)]).to_json()))
    scored = client.post("/score", json={"text": "ab 😀 cd", "span": [6, 8], "offsets": "utf16"}).json()
    expected = msgspec.to_builtins(loaded.score("ab 😀 cd", (5, 7)).to_json())
    for piece in expected["pieces"]:
        piece |= {"start": piece["start"] + 1, "end": piece["end"] + 1}
    assert_close(scored, expected)
    for changes, message in (
        ({"text": "ab"}, "has nothing to fill in"),
        ({"beam": 0}, "beam is 0"),
        ({"mix": 2}, "mix is 2"),
        ({"heads": "decoder", "mix": 0.5}, "the decoder mixes no heads"),
        ({"heads": "decoder"}, "has no span decoder"),
    ):
        refused = client.post("/infill", json={"text": text, **changes})
        assert refused.status_code == 422 and message in refused.text


def test_explanations_are_those_of_python(client: TestClient, service: Service) -> None:
    record = {"question": "a b", "context": "😀 ab cd"}
    expected = msgspec.to_builtins(service.checkpoints["questions"].loaded.explain(record, [2, 4], "occlusion"))
    found = client.post(
        "/explain", json={"record": record, "target": [2, 4], "method": "occlusion", "model": "questions"}
    ).json()
    assert_close(found, expected)
    shifted = client.post(
        "/explain",
        json={"record": record, "target": [2, 4], "method": "occlusion", "model": "questions", "offsets": "utf16"},
    ).json()
    assert [of["start"] for of in shifted["tokens"]] == [
        of["start"] + (of["field"] == "context" and of["start"] > 0) for of in found["tokens"]
    ]
    pair = {"text": "ab cd, e fghi", "subject": [0, 2], "object": [7, 13]}
    read = relation_record(pair["text"], (0, 2), (7, 13), None, None)  # type: ignore[arg-type]
    by_words, by_pair = (client.post("/explain", json={"record": of, "model": "relations"}) for of in (read, pair))
    assert by_pair.status_code == 200 and by_pair.json() == by_words.json()
    for wrong, message in (({"subject": "ab"}, "Expected `array`"), ({"object": [0, 20]}, "object is [0, 20]")):
        refused = client.post("/explain", json={"record": {**pair, **wrong}, "model": "relations"})
        assert refused.status_code == 422 and message in refused.text
    for changes, message in (({"steps": 257}, "steps is 257; 256 are the most"), ({"target": "none"}, "none")):
        refused = client.post("/explain", json={"record": "ab cd", **changes})
        assert refused.status_code == 422 and message in refused.text
    deep = client.post("/explain", content=b'{"record": "x", "target": ' + b"[" * 100_000)
    assert deep.status_code == 400 and "nested too deeply" in deep.text


def test_pieces_have_their_places(client: TestClient) -> None:
    (found,) = client.post("/tokenize", json={"inputs": "ab  c"}).json()
    ids = [WORDPIECE.cls_id, *WORDPIECE.tokenize("ab  c"), WORDPIECE.sep_id]
    assert [one["id"] for one in found] == ids
    assert [(one["start"], one["stop"]) for one in found] == [(None, None), (0, 1), (1, 2), (4, 5), (None, None)]
    assert [one["special"] for one in found] == [True, False, False, False, True]
    plain = client.post("/tokenize", json={"inputs": ["ab  c"], "add_special_tokens": False}).json()
    assert plain == [found[1:-1]]
    (states,) = client.post("/embed_all", json={"inputs": "ab  c"}).json()
    assert np.shape(states) == (5, 16)


def test_what_is_served_is_told(client: TestClient) -> None:
    info = client.get("/info").json()
    assert [one["id"] for one in info["checkpoints"]] == [*TASKS, "gaps"] and info["model_id"] == "labels"
    assert info["model_type"]["classifier"]["id2label"] == {"0": "no", "1": "perhaps", "2": "yes"}
    assert [one["heads"] for one in info["checkpoints"]] == [[]] * 5 + [["mlm", "sbo"]]
    assert info["max_input_length"] == 16 and info["max_client_batch_size"] == 32
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == [*TASKS, "gaps"]
    model = client.get("/v2/models/labels").json()
    assert [one["name"] for one in model["outputs"]] == ["embedding", "label", "score"]
    assert (
        'spanbert_model_info{checkpoint="tags",dtype="float32",task="token_classification"'
        in client.get("/metrics").text
    )
