"""Pseudo-log-likelihoods against transformers, and piece by piece against the head's own scores."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spanbert_jax
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.gaps import piece_classes
from spanbert_jax.serving.scoring import TextScorer
from spanbert_jax.serving.slot_scores import SlotScorer
from spanbert_jax.serving.weights import Weights
from spanbert_jax.training import sharding
from tests.support.pretrained import params_of, random_weights, write_pretrained
from tests.support.published import write_vocabulary
from tests.support.runs import tool
from tests.support.transformers_bert import random_bert
from tests.support.tuned import WORDPIECE

WEIGHTS = random_weights(WORDPIECE)


def scorer_of(weights: Weights) -> TextScorer:
    layout = sharding.batch_sharding(sharding.make_mesh(Config().mesh))
    classes = piece_classes(weights.tokenizer)
    return TextScorer(SlotScorer(weights, params_of(weights), layout, classes), weights.tokenizer)


@pytest.fixture(scope="module")
def scorer() -> TextScorer:
    return scorer_of(WEIGHTS)


def expected(ids: list[int], masked: list[int], place: int) -> float:
    """The log-probability, over the whole vocabulary, of the piece at a place of a row with [MASK] at `masked`."""
    predict = functions(WEIGHTS.config, ("embeddings", "encoder", "mlm"), WORDPIECE.vocab_size, 0)["predict"]
    row = np.zeros((1, 40), np.int32)
    row[0, : len(ids)] = [WORDPIECE.mask_id if position in masked else id for position, id in enumerate(ids)]
    params = {name: params_of(WEIGHTS)[name] for name in ("embeddings", "encoder", "mlm")}
    logits = jitted(predict)(params, row, np.array([len(ids)], np.int32), np.zeros_like(row))
    return float(jax.nn.log_softmax(jnp.asarray(logits[0, place]))[ids[place]])


_JITTED: list = []


def jitted(predict: object) -> object:
    if not _JITTED:
        _JITTED.append(jax.jit(predict))  # type: ignore[arg-type]
    return _JITTED[0]


def test_each_piece_is_masked_alone_or_with_the_rest_of_its_word(scorer: TextScorer) -> None:
    text = "Cats, a dog"
    alone, with_rest = scorer.score([text])[0], scorer.score([text], rest_of_word=True)[0]
    ids = [WORDPIECE.cls_id, *WORDPIECE.tokenize(text), WORDPIECE.sep_id]
    assert [piece.piece for piece in alone.pieces] == [*"C ##a ##t ##s , a d ##o ##g".lower().split()]
    assert [text[piece.start : piece.end] for piece in alone.pieces] == [*"Cats,adog"]
    word_ends = [5, 5, 5, 5, 6, 7, 10, 10, 10]
    for place, end in enumerate(word_ends, 1):
        by_mlm = expected(ids, [place], place)
        assert alone.pieces[place - 1].log_probability == pytest.approx(by_mlm, abs=1e-4)
        rest = expected(ids, list(range(place, end)), place)
        assert with_rest.pieces[place - 1].log_probability == pytest.approx(rest, abs=1e-4)
    assert alone.log_probability == pytest.approx(sum(piece.log_probability for piece in alone.pieces))
    assert alone.mean == pytest.approx(alone.log_probability / 9)


def test_a_span_is_scored_in_its_context_and_texts_do_not_change_each_other(scorer: TextScorer) -> None:
    whole = scorer.score(["a dog sat"])[0]
    span, other = scorer.score(["a dog sat", "x"], [(3, 6), None])
    assert [piece.piece for piece in span.pieces] == ["##o", "##g"]
    for one, same in zip(span.pieces, whole.pieces[2:4], strict=True):
        assert one.log_probability == pytest.approx(same.log_probability, abs=1e-4)
    assert len(other.pieces) == 1 and scorer.score([]) == []


def test_a_lone_surrogate_is_scored_as_a_replacement_character(scorer: TextScorer) -> None:
    assert scorer.score(["a \udcff dog"]) == scorer.score(["a \ufffd dog"])


def test_what_cannot_be_scored_is_refused(scorer: TextScorer) -> None:
    for text, span, message in (
        (" ", None, "the text has no piece: the text has 1 characters"),
        ("a b", (1, 2), r"the span \(1, 2\) has no piece: the text has 3 characters"),
        ("a b", (2, 4), r"the span \(2, 4\) has no piece"),
        ("a b", (0, 1.5), r"\(0, 1.5\) is no span"),
        (["a b"], None, "expected a text, found list"),
        ("x" * 39, None, "the text has 39 pieces, and the model takes 38"),
    ):
        with pytest.raises(UserError, match=message):
            scorer.score([text], [span])
    with pytest.raises(UserError, match=r"^texts\[1\]: the text has no piece"):
        scorer.score(["a", ""])


def test_the_tool_prints_what_the_interface_gives(tmp_path: Path) -> None:
    write_pretrained(tmp_path, WEIGHTS)
    scored = spanbert_jax.load(tmp_path).score("a dog", (2, 5), rest_of_word=True)
    shown = tool("score", "--checkpoint", tmp_path, "--span", "2:5", "--rest-of-word", stdin=b"a dog\n").stdout
    assert shown.split()[0] == f"{scored.log_probability:.2f}" and "a dog" in shown and "##g" in shown
    failed = tool("score", "--checkpoint", tmp_path, "--span", "7:9", "a dog", expect=1)
    assert failed.stderr.startswith("error: the span (7, 9) has no piece")


def test_transformers_gives_the_same_pseudo_log_likelihood(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = random_bert("BertForMaskedLM").eval()
    model.save_pretrained(tmp_path)
    write_vocabulary(tmp_path / "vocab.txt", model.config.vocab_size)
    scored = spanbert_jax.load(tmp_path).score("Fox jumps")
    names = (tmp_path / "vocab.txt").read_text().splitlines()
    pieces = ["[CLS]", "F", "##o", "##x", "j", "##u", "##m", "##p", "##s", "[SEP]"]
    ids = torch.tensor([names.index(piece) for piece in pieces])
    rows, places = ids.repeat(8, 1), torch.arange(1, 9)
    rows[places - 1, places] = names.index("[MASK]")
    with torch.no_grad():
        log_probs = model(rows).logits[places - 1, places].log_softmax(-1)[places - 1, ids[1:-1]]
    assert [piece.log_probability for piece in scored.pieces] == pytest.approx(log_probs.tolist(), abs=1e-4)
