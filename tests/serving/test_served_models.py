"""Models behind the engine give what the tools and the Python interface give, whatever else is in their batches."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import spanbert_jax
from spanbert_jax.errors import UserError
from spanbert_jax.serving.compiled_model import CompiledModel
from spanbert_jax.serving.engine import Engine
from spanbert_jax.serving.loaded import Loaded
from spanbert_jax.serving.scheduler import Limits
from spanbert_jax.serving.served_models import ServedModels
from spanbert_jax.serving.text_models import SPAN_POOLINGS, Text, TextWithSpans
from tests.support.served import TASKS, write_checkpoint
from tests.support.tuned import WORDPIECE, assert_close, random_texts

TEXTS = random_texts(np.random.default_rng(0), 12)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    folder, kept = tmp_path_factory.mktemp("tuned"), {}

    def load(name: str) -> Loaded:
        if name not in kept:
            kept[name] = spanbert_jax.load(write_checkpoint(folder, name))
        return kept[name]

    return load


@pytest.fixture(scope="module")
def served(loaded: Callable[[str], Loaded]) -> ServedModels:
    return loaded("labels").served("tiny", 512)


@pytest.fixture
def answers() -> Iterator[Callable[[Any, list[Any]], list[Any]]]:
    """answers(model, items): by an engine, with programs of at most 4 rows."""
    engines: dict[int, Engine] = {}

    def make(model: Any, items: list[Any]) -> list[Any]:
        prepare(model)
        if id(model) not in engines:
            engines[id(model)] = Engine([model], Limits())
        return engines[id(model)].submit(model, items, 600).result(600).answers

    yield make
    for engine in engines.values():
        engine.close()


def prepare(model: CompiledModel) -> None:
    for shape in model.table:
        if shape.rows <= 4 and shape not in model.ready:
            model.prepare(shape)


def test_vectors_of_texts_are_pooled_from_the_hidden_states(
    served: ServedModels, loaded: Callable[[str], Loaded], answers: Callable[..., list[Any]]
) -> None:
    assert [shape.length for shape in served.embed.table[::5]] == [16, 24]
    states = [encoding.hidden_states for encoding in loaded("labels").hidden_states(TEXTS)]
    found = answers(served.embed, [Text(text) for text in TEXTS])
    means = np.array([of.mean(axis=0) for of in states])
    np.testing.assert_allclose(found, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found, loaded("labels").embed(TEXTS, normalise=True), atol=1e-5)
    largest = answers(served.embed, [Text(text, "max", normalize=False) for text in TEXTS])
    np.testing.assert_allclose(largest, [of.max(axis=0) for of in states], atol=1e-5)
    plain = answers(served.embed, [Text(text, "cls", normalize=False) for text in TEXTS])
    np.testing.assert_allclose(plain, [of[0] for of in states], atol=1e-5)
    by_ids = answers(served.embed, [Text(WORDPIECE.tokenize(text)) for text in TEXTS])
    np.testing.assert_allclose(by_ids, found, atol=1e-6)


def test_a_text_that_is_too_long_is_cut_or_refused(served: ServedModels) -> None:
    rows = served.embed.rows([Text("x " * 22), Text("x " * 23)])
    assert [row[0]["cut"] for row in rows] == [0, 1] and [len(row[0]["input_ids"]) for row in rows] == [24, 24]
    with pytest.raises(UserError, match=r"inputs\[1\] has 25 pieces; 24 are the most; give less text, or set truncate"):
        served.embed.rows([Text("x"), Text("x " * 23, truncate=False)])
    for text in ("", " \n", ()):
        with pytest.raises(UserError, match=r"inputs\[0\] has no piece; give a text that is not blank"):
            served.embed.rows([Text(text)])
    with pytest.raises(UserError, match=r"inputs\[1\] has an id that is no piece; the vocabulary has 0 to"):
        served.embed.rows([Text("x"), Text([3, WORDPIECE.vocab_size])])


def test_every_piece_has_its_state(
    served: ServedModels, loaded: Callable[[str], Loaded], answers: Callable[..., list[Any]]
) -> None:
    expected = loaded("labels").hidden_states(TEXTS)
    for found, encoding in zip(answers(served.pieces, [Text(text) for text in TEXTS]), expected, strict=True):
        np.testing.assert_allclose(found, encoding.hidden_states, atol=1e-5)


def test_spans_have_the_vectors_that_python_gives(
    served: ServedModels, loaded: Callable[[str], Loaded], answers: Callable[..., list[Any]]
) -> None:
    text = "ab cd, e fghi"
    spans = [(start, end) for start in range(12) for end in range(start + 1, 13) if text[start:end].strip()][:40]
    items = [TextWithSpans(text, of, name) for name in SPAN_POOLINGS for of in (spans, spans[:3])]
    for item, found in zip(items, answers(served.spans, items), strict=True):
        assert len(found) == len(item.spans)
        np.testing.assert_allclose(found, loaded("labels").embed_spans(text, item.spans, item.pooling), atol=1e-5)
    assert answers(served.spans, [TextWithSpans(text, [])])[0].shape == (0, 16)
    with pytest.raises(UserError, match=r"inputs\[1\]: the span \(2, 3\) has no piece: the text has 13 characters"):
        served.spans.rows([TextWithSpans(text, spans), TextWithSpans(text, [(2, 3)])])


def records(name: str) -> list[Any]:
    if name == "questions":
        return [{"question": text[:9], "context": text * 3} for text in TEXTS]
    if name == "relations":
        return [f"a <e1>{text[:5]}</e1> b <e2>{text[:8]}</e2> {text}" for text in TEXTS]
    return TEXTS


@pytest.mark.parametrize("name", TASKS)
def test_a_task_answers_as_the_tools_do(
    name: str, loaded: Callable[[str], Loaded], answers: Callable[..., list[Any]]
) -> None:
    model = loaded(name).served(name, 512).task
    assert model is not None and model.name == f"{name}/task"
    found = answers(model, records(name))
    assert_close([of.prediction for of in found], loaded(name).predict(records(name)))
    with pytest.raises(UserError, match=r"^inputs\[1\]: "):
        model.rows([*records(name)[:1], {"nothing": 1}])


def test_in_bfloat16_the_vectors_are_about_the_same(
    served: ServedModels, loaded: Callable[[str], Loaded], answers: Callable[..., list[Any]]
) -> None:
    items = [Text(text) for text in TEXTS]
    coarse = np.array(answers(loaded("labels").served("coarse", 16, True, "bfloat16").embed, items))
    fine = np.array(answers(loaded("labels").served("fine", 16, True).embed, items))
    assert coarse.dtype == np.float32 and 1e-4 < np.abs(coarse - fine).max() < 0.03


def test_a_deterministic_model_gives_the_same_bits_in_any_company(
    loaded: Callable[[str], Loaded], answers: Callable[..., list[Any]]
) -> None:
    model = loaded("labels").served("exact", 512, deterministic=True).embed
    assert [tuple(shape) for shape in model.table] == [(1, 16), (1, 24)]
    together = answers(model, [Text(text) for text in TEXTS])
    for number in (0, 5, 11):
        assert np.array_equal(answers(model, [Text(TEXTS[number])])[0], together[number])
