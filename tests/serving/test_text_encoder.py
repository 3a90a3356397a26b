"""Hidden states of every layer and vectors of texts against transformers, on imported weights of both families."""

from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.serving.loaded import Loaded
from tests.support.imported import imported

TEXTS = ["Ada Lovelace", "a b c d e f g h", "b", "in London"]


@pytest.fixture(scope="module", params=["bert", "modern"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Any]:
    """Our import of transformers' weights, and transformers' encoder."""
    loaded, model = imported(request.param, tmp_path_factory.mktemp(request.param))
    return loaded, model.base_model


def states_of(model: Any, loaded: Loaded, text: str) -> list[np.ndarray]:
    """transformers' hidden states [pieces, embed] of each layer, from the embeddings on."""
    import torch

    tokenizer = loaded.tokenizer
    ids = torch.tensor([[tokenizer.cls_id, *tokenizer.tokenize(text), tokenizer.sep_id]])
    with torch.no_grad():
        found = model(ids, torch.ones_like(ids), output_hidden_states=True)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    return [states[0].numpy() for states in found.hidden_states]


def test_every_layers_states_are_those_of_transformers(both: tuple[Loaded, Any]) -> None:
    loaded, model = both
    layers = loaded.config.model.layers
    expected = [states_of(model, loaded, text) for text in TEXTS]
    assert len(expected[0]) == layers + 1
    for layer in range(-layers - 1, layers + 1):
        for number, encoding in enumerate(loaded.hidden_states(TEXTS, layer)):
            np.testing.assert_allclose(encoding.hidden_states, expected[number][layer], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pooling", "layer"), [("mean", -1), ("cls", 1), ("max", 0)])
def test_vectors_are_pooled_as_sentence_transformers_pools(both: tuple[Loaded, Any], pooling: str, layer: int) -> None:
    """Over [CLS], the pieces and [SEP], which are what the attention mask of transformers' tokenizers has."""
    loaded, model = both
    states = [states_of(model, loaded, text)[layer] for text in TEXTS]
    pool = {"mean": lambda x: x.mean(axis=0), "cls": lambda x: x[0], "max": lambda x: x.max(axis=0)}[pooling]
    found = loaded.embed(TEXTS, pooling, layer)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([pool(one) for one in states]), rtol=0, atol=1e-5)


def test_a_vector_does_not_depend_on_the_other_texts_and_is_pooled_on_the_device(
    both: tuple[Loaded, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, _ = both
    fetched: list[tuple[int, ...]] = []
    asarray = np.asarray

    def recorded(value: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(value, jax.Array):
            fetched.append(value.shape)
        return asarray(value, *rest, **more)

    texts = [TEXTS[number % 4] for number in range(7)]
    monkeypatch.setattr(np, "asarray", recorded)
    together = loaded.embed(texts, normalise=True)
    monkeypatch.setattr(np, "asarray", asarray)
    embed = loaded.config.model.embed
    assert together.shape == (7, embed) and fetched and all(shape[1:] == (embed,) for shape in fetched)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for number in (0, 5):
        alone = loaded.embed([texts[number]])[0]
        np.testing.assert_allclose(alone / np.linalg.norm(alone), together[number], rtol=0, atol=1e-5)
    assert loaded.embed([]).shape == (0, embed)


def test_spans_are_pooled_from_the_layer_that_is_named(both: tuple[Loaded, Any]) -> None:
    loaded, model = both
    states = states_of(model, loaded, "a b c")[1]
    found = loaded.embed_spans("a b c", [(0, 3)], "ends", layer=1)
    np.testing.assert_allclose(found[0], np.concatenate([states[1], states[2]]), rtol=0, atol=1e-5)


def test_mistakes_are_one_line(both: tuple[Loaded, Any], capsys: pytest.CaptureFixture[str]) -> None:
    loaded, _ = both
    layers, longest = loaded.config.model.layers, loaded.config.model.max_length
    with pytest.raises(UserError, match="pooling is 'median'; it must be one of 'mean', 'cls', 'max'"):
        loaded.embed(["a"], "median")
    for layer in (layers + 1, -layers - 2, "last"):
        with pytest.raises(UserError, match=rf"layer is {layer!r}; the model has {layers} layers: give 0 for the emb"):
            loaded.embed(["a"], layer=layer)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="layer is"):
            loaded.hidden_states(["a"], layer=layer)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"texts\[1\] has no piece; give a text that is not blank"):
        loaded.embed(["a", " "])
    with pytest.raises(UserError, match=r"texts\[1\]: 'text' is 3"):
        loaded.embed(["a", 3])  # type: ignore[list-item]
    assert capsys.readouterr().err == ""
    loaded.embed(["b", "a " * longest], layer=0)
    assert capsys.readouterr().err == (
        f"warning: 1 of 2 texts are longer than {longest} pieces and were cut; the first: texts[1]\n"
    )
