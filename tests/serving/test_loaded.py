"""`spanbert_jax.load`: lazy, and for a notebook what the tools are for a shell."""

import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

import spanbert_jax
from spanbert_jax.errors import UserError
from spanbert_jax.serving.answers import open_answerer
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.loaded import Loaded
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.tasks.finetuning import Learnt
from tests.support.runs import ROOT
from tests.support.tuned import WORDPIECE, random_texts, write_tuned

LABELS = ("no", "yes")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned(tmp_path_factory.mktemp("tuned") / "run", "sequence_classification", Learnt(LABELS))


@pytest.fixture(scope="module")
def model(path: Path) -> Loaded:
    return spanbert_jax.load(path)


def test_importing_the_package_imports_no_library() -> None:
    script = "import sys; import spanbert_jax; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "spanbert_jax" in loaded
    assert loaded <= {*sys.stdlib_module_names, "spanbert_jax", "__main__"} | site_of_this_python()


def test_an_installed_package_is_typed() -> None:
    """Type checkers read annotations of a package that has this file, and setuptools installs only files it is told
    of."""
    assert (ROOT / "spanbert_jax" / "py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in settings["package-data"]["spanbert_jax"]


def site_of_this_python() -> set[str]:
    """What a bare start of this Python imports, such as hooks of an editable installation."""
    script = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_what_was_loaded_says_what_it_is(model: Loaded, path: Path) -> None:
    assert (model.task, model.labels, model.source) == ("sequence_classification", LABELS, str(path / "best" / "3"))
    assert model.tokenizer.fingerprint == WORDPIECE.fingerprint and model.config.model.embed == 16


def test_predictions_are_those_of_the_tools(model: Loaded, path: Path) -> None:
    texts = random_texts(np.random.default_rng(0), 9)
    with open_weights(path) as weights:
        assert model.predict(texts) == open_answerer(weights).answer(texts)


def test_hidden_states_are_of_each_piece_and_do_not_depend_on_the_other_texts(model: Loaded, path: Path) -> None:
    texts = ["Ada, in  London", *random_texts(np.random.default_rng(1), 30), "", "x " * 30]
    encodings = model.hidden_states(texts)
    with open_weights(path) as weights:
        params, _ = weights.load()
    encode = jax.jit(functions(model.config, ("embeddings", "encoder"), WORDPIECE.vocab_size, 0)["encode"])
    for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        ids = [WORDPIECE.cls_id, *WORDPIECE.tokenize(text)[:22], WORDPIECE.sep_id]
        assert encoding.pieces == [WORDPIECE.piece(piece) for piece in ids]
        assert encoding.offsets.shape == (len(ids), 2) and encoding.hidden_states.shape == (len(ids), 16)
        for piece, (start, end) in list(zip(encoding.pieces, encoding.offsets, strict=True))[1:-1]:
            assert text[start:end].lower() == piece.removeprefix("##")
        assert encoding.cut == (len(WORDPIECE.tokenize(text)) > 22)
        if number in (0, 5, len(texts) - 1):
            row = np.array([ids], np.int32)
            alone = encode(params, row, np.array([len(ids)], np.int32), np.zeros_like(row))[0]
            np.testing.assert_allclose(encoding.hidden_states, alone, atol=1e-5)
    assert model.hidden_states([]) == []


def test_the_vector_of_a_span_is_pooled_from_its_pieces(model: Loaded) -> None:
    text = random_texts(np.random.default_rng(2), 1)[0]
    encoding = model.hidden_states([text])[0]
    (begin, _), (_, end) = encoding.offsets[2], encoding.offsets[3]
    found = model.embed_spans(text, [(begin, end), (begin, begin + 1)], "ends")
    states = encoding.hidden_states
    np.testing.assert_allclose(found[0], np.concatenate([states[2], states[3]]), atol=1e-6)
    np.testing.assert_allclose(found[1], np.concatenate([states[2], states[2]]), atol=1e-6)
    for span in ((3, 3), (-1, 2), (0, len(text) + 1)):
        with pytest.raises(UserError, match="has no piece: the text has"):
            model.embed_spans(text, [span])
    for spans in ((0, 2), [(0,)], [("0", "2")], [(True, 2)], [None]):
        with pytest.raises(UserError, match=r"is no span; give spans \(start, end\), two numbers of characters each"):
            model.embed_spans(text, spans)  # type: ignore[arg-type]
    assert len(model.embed_spans(text, [np.array([begin, end])])) == 1  # type: ignore[list-item]
    with pytest.raises(UserError, match="pooling is 'max'; it must be one of 'mean'"):
        model.embed_spans(text, [(0, 1)], "max")


def test_mistakes_are_named(model: Loaded, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a list, found one str"):
        model.predict("one text")
    with pytest.raises(UserError, match="expected a list, found one str"):
        model.hidden_states("one text")
    with pytest.raises(UserError, match="no such file or directory"):
        spanbert_jax.load(tmp_path / "absent")
