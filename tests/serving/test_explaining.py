"""Attributions against a plain loop over transformers, against linear functions, and against edited rows."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import spanbert_jax
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.model import span_head
from spanbert_jax.serving.explained_rows import masked_case, occluded
from spanbert_jax.serving.explaining import Attributor, Explanation, Head
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.loaded import Loaded
from spanbert_jax.serving.task_model import trained_task
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.tasks.finetuning import Learnt
from spanbert_jax.training import sharding
from tests.support.imported import imported
from tests.support.published import write_vocabulary
from tests.support.synthetic import VOCAB
from tests.support.transformers_bert import random_bert
from tests.support.tuned import WORDPIECE, write_tuned

POINTS = 16  # which make one batch
SENTENCE = "ab c def g"
QUESTION = {"question": "who ab", "context": "ab cd ef gh ij kl mn op"}
LONG = {"question": "who ab", "context": "ab cd ef gh ij kl mn op qr st uv"}  # in three windows
RELATION = {"token": ["ab", "c", "def", "g"], "subj_start": 0, "subj_end": 0, "obj_start": 2, "obj_end": 2}
TYPES = {"head": "span", "max_width": 2}
WINDOWS = {"stride": 5, "max_question": 6, "max_answer": 7, "unanswerable": True}
HEADS: dict[str, tuple[str, Learnt, dict[str, Any], Any]] = {  # task, facts, sections, record
    "label": ("sequence_classification", Learnt(("no", "perhaps", "yes")), {}, SENTENCE),
    "tags": ("token_classification", Learnt(("B-LOC", "B-PER", "I-LOC", "I-PER", "O")), {}, SENTENCE),
    "spans": ("token_classification", Learnt(("O", "LOC", "PER"), nested=True), {"tagging": TYPES}, SENTENCE),
    "answer": ("question_answering", Learnt(), {"question_answering": WINDOWS}, QUESTION),
    "relation": ("relation_extraction", Learnt(("none", "part"), {"SUBJ": 60, "OBJ": 61}), {}, RELATION),
}
TARGETS = {"label": "yes", "tags": [0, 4, "PER"], "spans": [3, 8, "LOC"], "answer": [3, 8], "relation": "part"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    folder, opened = tmp_path_factory.mktemp("tuned"), {}

    def get(head: str) -> Loaded:
        if head not in opened:
            name, learnt, sections, _ = HEADS[head]
            opened[head] = spanbert_jax.load(write_tuned(folder / head, name, learnt, **sections))
        return opened[head]

    return get


def explain(model: Loaded, head: str, **more: Any) -> Explanation:
    return model.explain(HEADS[head][3], TARGETS[head], **{"steps": POINTS, **more})


# Integrated gradients


def by_loop(loaded: Loaded, model: Any, text: str, masked: list[int], steps: int) -> tuple[float, float, np.ndarray]:
    """(score, baseline, attributions of all pieces) of the pieces at `masked`, point by point and in float64."""
    import torch

    tokenizer, model = loaded.tokenizer, copy.deepcopy(model).double()
    ids = np.array([tokenizer.cls_id, *tokenizer.tokenize(text), tokenizer.sep_id])
    wanted, ends = torch.tensor(ids[masked]), (0, len(ids) - 1)
    seen = np.where(np.isin(np.arange(len(ids)), masked), tokenizer.mask_id, ids)
    hidden = np.where(np.isin(np.arange(len(ids)), ends), ids, tokenizer.mask_id)
    words = model.get_input_embeddings().weight.detach()
    start, change = words[hidden], words[seen] - words[hidden]

    def score(vectors: Any) -> Any:
        logits = model(inputs_embeds=vectors[None]).logits[0, masked]
        return torch.log_softmax(logits, -1)[torch.arange(len(masked)), wanted].sum()

    total = torch.zeros(len(ids), dtype=torch.float64)
    for node, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):
        at = (start + (node + 1) / 2 * change).requires_grad_()
        (gradient,) = torch.autograd.grad(score(at), at)
        total += weight / 2 * (gradient * change).sum(-1)
    with torch.no_grad():
        return float(score(start + change)), float(score(start)), total.numpy()


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_attributions_are_those_of_a_plain_loop_over_transformers(family: str, tmp_path: Path) -> None:
    loaded, model = imported(family, tmp_path)
    text = "Ada in b ab"
    found = loaded.explain(text, (9, 11), steps=POINTS)
    score, baseline, expected = by_loop(loaded, model, text, [7, 8], POINTS)
    scale = np.abs(expected).max()
    assert [token.text for token in found.tokens] == ["A", "d", "a", "i", "n", "b"]
    np.testing.assert_allclose(
        [token.attribution for token in found.tokens], expected[1:7], rtol=0, atol=1e-3 * scale + 1e-4
    )
    assert not np.any(expected[[0, 7, 8, 9]])
    assert (found.score, found.baseline) == (pytest.approx(score, abs=1e-3), pytest.approx(baseline, abs=1e-3))
    assert found.target == [9, 11] and found.texts == {"text": text}
    assert found.gap == pytest.approx(score - baseline - expected.sum(), abs=1e-3 * scale + 1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_attributions_add_up_to_the_score_minus_the_baseline(head: str, tuned: Callable[[str], Loaded]) -> None:
    found = explain(tuned(head), head)
    total = sum(token.attribution for token in found.tokens)
    assert found.baseline is not None and found.gap is not None
    assert total + found.gap == pytest.approx(found.score - found.baseline, abs=1e-6)
    assert abs(found.gap) < 5e-3 and abs(found.score - found.baseline) > 1e-2


def test_the_gap_shrinks_with_more_points(tuned: Callable[[str], Loaded]) -> None:
    gaps = [abs(explain(tuned("label"), "label", steps=steps).gap or 0.0) for steps in (1, 3, POINTS)]
    assert gaps[0] > 2 * gaps[1] and gaps[0] > 20 * gaps[2]


def test_attributions_of_a_linear_function_are_exact_with_one_point() -> None:
    rng = np.random.default_rng(0)
    words, weights = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(16, 4)).astype(np.float32)

    def scores(params: Any, batch: Any) -> jax.Array:
        vectors = batch.get("word_vectors", params["embeddings"]["word"][batch["input_ids"]])
        return jnp.einsum("ble,le->b", vectors, weights[: vectors.shape[1]])[:, None]

    layout = sharding.batch_sharding(sharding.make_mesh(Config().mesh))
    params = jax.device_put({"embeddings": {"word": words}}, NamedSharding(layout.mesh, PartitionSpec()))
    attributor = Attributor(Head(scores, ("input_ids", "lengths"), {}), params, layout, 16, 1, mask_id=8)
    ids = [2, *rng.integers(0, 8, 14), 3]
    row = {"input_ids": ids, "cells": [0, *[-1] * 15]}
    score, baseline, found = attributor.integrate(row, range(1, 15), steps=1)
    expected = np.sum((words[ids[1:15]] - words[8]) * weights[1:15], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert score - baseline == pytest.approx(expected.sum(), abs=1e-5)


# Targets and places


def test_the_default_target_is_the_prediction_and_its_score_that_of_the_prediction(
    tuned: Callable[[str], Loaded],
) -> None:
    predicted = {head: tuned(head).predict([HEADS[head][3]])[0] for head in HEADS}
    found = {head: tuned(head).explain(HEADS[head][3], method="occlusion") for head in HEADS}
    assert found["label"].target == predicted["label"]["label"]
    assert found["relation"].target == predicted["relation"]["relation"]
    for head in ("tags", "spans"):
        best = max(predicted[head]["entities"], key=lambda one: one["score"])
        assert found[head].target == [best["start"], best["end"], best["type"]]
    logits = [tuned("label").explain(SENTENCE, label, "occlusion").score for label in ("no", "perhaps", "yes")]
    assert np.max(np.exp(logits)) / np.sum(np.exp(logits)) == pytest.approx(predicted["label"]["score"], abs=1e-5)
    assert found["answer"].target == [predicted["answer"]["start"], predicted["answer"]["end"]]


def test_an_answer_in_several_windows_has_the_scores_of_its_prediction(tuned: Callable[[str], Loaded]) -> None:
    model = tuned("answer")
    (predicted,) = model.predict([LONG])
    for answer in [one for one in predicted["n_best"] if one["text"]][:4]:
        kept = model.explain(LONG, [answer["start"], answer["end"]], "occlusion")
        assert kept.score == pytest.approx(answer["score"], abs=1e-4)
    # No answer has a score in each of the windows, of which the lowest counts.
    nothing = model.explain(LONG, "", "occlusion").score
    best = next(one["score"] for one in predicted["n_best"] if one["text"])
    assert nothing - best == pytest.approx(predicted["no_answer_score"], abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_tokens_are_the_characters_of_the_record(head: str, tuned: Callable[[str], Loaded]) -> None:
    """Each piece is one character of a text, and all pieces of the row have a token, except for entities that are
    masked."""
    found = explain(tuned(head), head)
    fields = [token.field for token in found.tokens]
    for token in found.tokens:
        assert found.texts[token.field][token.start : token.end] == token.text and len(token.text) == 1
    read = {field: "".join(token.text for token in found.tokens if token.field == field) for field in found.texts}
    if head == "answer":
        assert fields == sorted(fields, reverse=True) and found.texts == QUESTION
        assert read["question"] == "whoab" and read["context"] in QUESTION["context"].replace(" ", "")
        assert min(token.start for token in found.tokens if token.field == "context") <= 3
    else:
        assert found.texts == {"text": SENTENCE}
        assert read["text"] == ("cg" if head == "relation" else SENTENCE.replace(" ", ""))
    assert json.loads(json.dumps(found.to_json()))["tokens"][0]["field"] == fields[0]


def test_a_window_in_the_middle_of_a_text_has_the_places_of_its_pieces(tuned: Callable[[str], Loaded]) -> None:
    spans = [("context", 30, 32), ("question", 0, 3)]
    found = tuned("answer").explain(LONG, [30, 32], "occlusion", spans=spans)
    assert [(token.text, token.field) for token in found.tokens] == [("uv", "context"), ("who", "question")]
    with pytest.raises(UserError, match="some have no piece in the row that is explained; leave them out"):
        tuned("answer").explain(LONG, [30, 32], "occlusion", spans=[("context", 0, 2)])


def test_offsets_of_a_text_that_is_a_record_count_its_leading_white_space(tuned: Callable[[str], Loaded]) -> None:
    found = tuned("label").explain(f"  {SENTENCE}", "yes", "occlusion")
    assert [(token.text, token.start) for token in found.tokens] == [("ab", 2), ("c", 5), ("def", 7), ("g", 11)]


def test_an_explanation_says_whether_its_row_was_cut_and_prints_nothing_of_the_record(
    tuned: Callable[[str], Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "ab cd " * 20
    for record, cut in ((text, True), (SENTENCE, False)):
        found = tuned("label").explain({"text": record, "id": "Xq7"}, method="occlusion")
        assert found.cut is found.to_json()["cut"] is cut
    long = masked_case(WORDPIECE, 8, text, (0, 2)), masked_case(WORDPIECE, 8, "ab c", (0, 2))
    assert [bool(case.rows[0]["cut"]) for case in long] == [True, False]
    assert capsys.readouterr() == ("", "")


# Occlusion


def scores_of_rows(model: Loaded, head: str, ids: np.ndarray, types: np.ndarray, cell: tuple[int, ...]) -> np.ndarray:
    """The logits in `cell` of rows without padding, by the functions that exports have."""
    with open_weights(Path(model.source)) as weights:
        params, task = weights.load()[0], trained_task(weights)
    lengths = np.full(len(ids), ids.shape[1], np.int32)
    if head == "spans":
        places = np.full(ids.shape, -1, np.int32)
        places[:, :4] = (1, 3, 4, 7)
        last = np.full(ids.shape, -1, np.int32)
        last[:, :4] = (2, 3, 6, 7)
        batch = {"input_ids": ids, "token_type_ids": types, "lengths": lengths, "first": places, "last": last}
        logits = jax.jit(lambda: span_head.apply(task.model("cpu"), params, batch))()
    else:
        config = dataclasses.replace(model.config, task=HEADS[head][0])
        if head == "relation":
            config = dataclasses.replace(config, task="sequence_classification")
        predict = functions(config, params, WORDPIECE.vocab_size, len(model.labels))["predict"]
        logits = jax.jit(predict)(params, ids, lengths, types)
    return np.asarray(logits)[(slice(None), *cell)]


@pytest.mark.parametrize("head", HEADS)
def test_occlusion_is_the_difference_of_scores_of_edited_rows(head: str, tuned: Callable[[str], Loaded]) -> None:
    model, mask = tuned(head), WORDPIECE.mask_id
    cls, sep = WORDPIECE.cls_id, WORDPIECE.sep_id
    ids = [cls, *WORDPIECE.tokenize(SENTENCE), sep]
    groups, types = [[1, 2], [3], [4, 5, 6], [7]], [0] * len(ids)
    if head == "answer":
        context = WORDPIECE.tokenize(QUESTION["context"])
        ids = [cls, *WORDPIECE.tokenize(QUESTION["question"]), sep, *context, sep]
        types = [0] * 7 + [1] * (len(ids) - 7)
        assert len(ids) == 24
        groups = [[1, 2, 3], [4, 5], *([place, place + 1] for place in range(7, 23, 2))]
    if head == "relation":
        ids, groups, types = [cls, 60, ids[3], 61, ids[7], sep], [[2], [4]], [0] * 6
    rows = np.array([ids] * (len(groups) + 1), np.int32)
    for row, group in zip(rows[1:], groups, strict=True):
        row[group] = mask
    cells: dict[str, list[tuple[int, ...]]] = {
        "label": [(2,)],
        "tags": [(1, 1), (3, 3)],  # B-PER at the first word, I-PER at the second
        "spans": [(1, 1, 1)],  # LOC of the two words from the second on
        "answer": [(9, 0), (12, 1)],  # from the first piece of "cd" to the last one of "ef"
        "relation": [(1,)],
    }
    both = np.broadcast_to(np.array(types, np.int32), rows.shape)
    expected = np.sum([scores_of_rows(model, head, rows, both, cell) for cell in cells[head]], axis=0)
    found = explain(model, head, method="occlusion")
    assert found.score == pytest.approx(expected[0], abs=1e-4) and found.gap is found.baseline is None
    attributions = [token.attribution for token in found.tokens]
    np.testing.assert_allclose(attributions, expected[0] - expected[1:], rtol=0, atol=1e-4)


def test_a_given_span_is_masked_as_a_whole(tuned: Callable[[str], Loaded]) -> None:
    model = tuned("label")
    words = explain(model, "label", method="occlusion").tokens
    (found,) = explain(model, "label", method="occlusion", spans=[[3, 4]]).tokens
    assert (found.text, found.attribution) == ("c", pytest.approx(words[1].attribution, abs=1e-5))
    (whole,) = explain(model, "label", method="occlusion", spans=[(0, 10)]).tokens
    integrated = explain(model, "label")
    assert whole.text == SENTENCE and integrated.baseline is not None
    assert whole.attribution == pytest.approx(integrated.score - integrated.baseline, abs=1e-4)


def test_a_span_with_a_masked_piece_loses_its_span_tags() -> None:
    row = {"input_ids": list(range(8)), "span_tags": [0, 3, 2, 5, 4, 0, 3, 0]}
    changed = occluded(row, [4, 5], 99)
    assert changed["input_ids"] == [0, 1, 2, 3, 99, 99, 6, 7]
    assert changed["span_tags"] == [0, 3, 2, 0, 0, 0, 3, 0]


# Mistakes


@pytest.mark.parametrize(
    ("head", "record", "arguments", "message"),
    [
        ("label", "", {}, "the record has no piece to explain"),
        ("label", "ab", {"target": "maybe"}, "target is 'maybe'; it must be one of the labels 'no', 'perhaps', 'yes'"),
        ("label", "ab", {"method": "shap"}, "method is 'shap'; it must be one of 'integrated_gradients', 'occlusion'"),
        ("label", "ab", {"steps": 0}, "steps is 0; expected a whole number from 1"),
        ("label", "ab", {"spans": [(0, 2)]}, "spans are masked by method='occlusion'"),
        ("label", {"words": []}, {}, "the record: no 'text'"),
        ("tags", "ab", {"target": (0, 3, "PER")}, r"expected \(start, end, type\), characters of a text that has 2"),
        ("tags", "ab", {"target": (0, 2, "ORG")}, "the type must be one of 'LOC', 'PER', or a tag such as 'O'"),
        ("tags", "ab  c", {"target": (2, 4, "PER")}, "which has no word"),
        ("spans", "a b c", {"target": (0, 5, "PER")}, "which has 3 words; the head scores 2 at most"),
        ("spans", "ab", {"target": (0, 2, "B-PER")}, "the type must be one of 'O', 'LOC', 'PER'"),
        ("answer", QUESTION, {"target": (2, 3)}, r"target is \(2, 3\), which has no piece"),
        ("answer", QUESTION, {"target": 5}, r"target is 5; expected \(start, end\)"),
        ("answer", QUESTION, {"target": "", "method": "occlusion", "spans": [(0, 2)]}, r"expected \(field, start, end"),
    ],
)
def test_a_mistake_is_one_line(
    head: str, record: Any, arguments: dict[str, Any], message: str, tuned: Callable[[str], Loaded]
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        tuned(head).explain(record, **arguments)
    assert "\n" not in str(raised.value)


def test_weights_without_a_head_have_nothing_to_explain(tmp_path: Path) -> None:
    random_bert("BertModel", pad_token_id=0).save_pretrained(tmp_path)
    write_vocabulary(tmp_path / "vocab.txt", VOCAB)
    with pytest.raises(UserError, match="has no head to explain, only embeddings, encoder"):
        spanbert_jax.load(tmp_path).explain("ab", (0, 1))
