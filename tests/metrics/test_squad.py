"""SQuAD's scores: the official scripts' own output on real predictions, and all thresholds tried by brute force."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.metrics.squad import evaluate_v1, evaluate_v2, exact, f1, normalize

# What the official script's functions return, on Python 3.11, for the no-answer scores of the test that names this.
OFFICIAL_UNDER_3 = {
    "exact": 72.13004295460289,
    "f1": 74.10929152727438,
    "total": 11873,
    "HasAns_exact": 51.04588394062078,
    "HasAns_f1": 55.01005706871251,
    "HasAns_total": 5928,
    "NoAns_exact": 93.15391084945333,
    "NoAns_f1": 93.15391084945333,
    "NoAns_total": 5945,
    "best_exact": 81.26000168449423,
    "best_exact_thresh": 6.0,
    "best_f1": 84.29359939850467,
    "best_f1_thresh": 6.0,
}


def load_golds(path: Path) -> dict[str, list[str]]:
    articles = json.loads(path.read_text("utf-8"))["data"]
    questions = [qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
    return {qa["id"]: [answer["text"] for answer in qa["answers"]] for qa in questions}


def load_predictions(shared_data: Path, name: str) -> dict[str, str]:
    loaded: dict[str, str] = json.loads((shared_data / "squad" / "predictions" / f"{name}.json").read_text("utf-8"))
    return loaded


@pytest.mark.parametrize(
    ("name", "exact_match", "f1_score"),
    [
        ("v1.1-BERT", 86.20624408703878, 92.19557978351145),
        ("v1.1-Logistic_Regression_Baseline", 40.14191106906339, 50.98153647324461),  # has 15 ids that dev has not
    ],
)
def test_squad_1_scores_are_the_official_ones_to_the_last_digit(
    shared_data: Path, name: str, exact_match: float, f1_score: float
) -> None:
    golds = load_golds(shared_data / "squad" / "dev-v1.1.json")
    scores = evaluate_v1(golds, load_predictions(shared_data, name))
    assert scores == {"exact_match": exact_match, "f1": f1_score}


def test_squad_2_scores_are_the_official_ones_to_the_last_digit(shared_data: Path) -> None:
    golds = load_golds(shared_data / "squad" / "dev-v2.0.json")
    assert evaluate_v2(golds, load_predictions(shared_data, "v2.0-BERT")) == {
        "exact": 78.74168280973637,
        "f1": 81.77528052374723,
        "total": 11873,
        "HasAns_exact": 74.10593792172739,
        "HasAns_f1": 80.18183293833508,
        "HasAns_total": 5928,
        "NoAns_exact": 83.36417157275021,
        "NoAns_f1": 83.36417157275021,
        "NoAns_total": 5945,
    }


def test_a_missing_prediction_counts_0_in_squad_1_and_is_left_out_in_squad_2() -> None:
    golds = {"a": ["the cat"], "b": ["a dog"]}
    assert evaluate_v1(golds, {"a": "cat", "z": "cat"}) == {"exact_match": 50.0, "f1": 50.0}
    scores = evaluate_v2(golds, {"a": "cat", "z": "cat"})
    assert scores["exact"] == 100.0 and scores["total"] == scores["HasAns_total"] == 1
    assert not any(name.startswith("NoAns") for name in scores)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Cat's\u00a0tail", "cats tail"),
        ("A.N.\tOther", "other"),  # punctuation goes before articles do
        ("theatre, an-a", "theatre ana"),
        ("“the” — a", "“ ” —"),  # only ASCII's punctuation goes
        ("an", ""),
    ],
)
def test_normalize_gives_what_the_rules_say(text: str, normalized: str) -> None:
    assert normalize(text) == normalized


def test_f1_counts_repeated_words_as_often_as_both_have_them() -> None:
    assert f1("to be or not to be", "to be to") == pytest.approx(2 * 1.0 * 0.5 / 1.5)  # 3 of 3, 3 of 6
    assert f1("yes", "no") == f1("yes", "the") == f1("the", "yes") == 0.0
    assert exact("The cat.", "cat") == 1.0 and exact("the cat", "cats") == 0.0


def test_two_empty_answers_agree_in_squad_2_and_share_no_word_in_squad_1() -> None:
    assert evaluate_v1({"a": ["the"]}, {"a": "!"}) == {"exact_match": 100.0, "f1": 0.0}
    assert evaluate_v2({"a": ["the"]}, {"a": "!"})["f1"] == 100.0


def test_a_gold_answer_without_words_is_no_reference_beside_one_with_words() -> None:
    scores = evaluate_v2({"a": ["the", "cat"]}, {"a": ""})
    assert scores["exact"] == scores["f1"] == 0.0


WORDS = st.sampled_from(["", "red cat", "cat", "the red cat sat", "dog"])
QUESTIONS = st.lists(
    st.tuples(st.lists(WORDS.filter(bool), max_size=3), WORDS, st.integers(-5, 5)), min_size=1, max_size=8
)


@settings(max_examples=100, deadline=None)
@given(QUESTIONS, st.integers(-6, 6))
def test_a_prediction_over_the_threshold_counts_as_empty(questions: list[Any], threshold: int) -> None:
    golds = {str(i): answers for i, (answers, _, _) in enumerate(questions)}
    predictions = {str(i): text for i, (_, text, _) in enumerate(questions)}
    scores = {str(i): float(score) for i, (_, _, score) in enumerate(questions)}
    emptied = {q: "" if scores[q] > threshold else text for q, text in predictions.items()}
    found = evaluate_v2(golds, predictions, scores, na_threshold=threshold)
    assert {name: value for name, value in found.items() if "best" not in name} == evaluate_v2(golds, emptied)


@settings(max_examples=100, deadline=None)
@given(QUESTIONS, st.randoms(use_true_random=False))
def test_the_best_threshold_is_the_best_of_all_thresholds(questions: list[Any], random: Any) -> None:
    golds = {str(i): answers for i, (answers, _, _) in enumerate(questions)}
    predictions = {str(i): text for i, (_, text, _) in enumerate(questions)}
    values = [i + 0.5 for i in range(len(questions))]  # distinct and positive: the scan and a threshold mean the same
    random.shuffle(values)
    scores = {str(i): value for i, value in enumerate(values)}
    found = evaluate_v2(golds, predictions, scores)
    tried = {t: evaluate_v2(golds, predictions, scores, na_threshold=t) for t in [0.0, *sorted(values)]}
    for name in ("exact", "f1"):
        best = max(table[name] for table in tried.values())
        assert found[f"best_{name}"] == pytest.approx(best, abs=1e-9)
        first = next(t for t, table in tried.items() if table[name] >= best - 1e-9)
        at_found = tried[found[f"best_{name}_thresh"]]
        assert at_found[name] == pytest.approx(best, abs=1e-9)
        assert found[f"best_{name}_thresh"] == first


def test_real_predictions_under_a_threshold_score_as_the_official_script_prints(shared_data: Path) -> None:
    golds = load_golds(shared_data / "squad" / "dev-v2.0.json")
    predictions = load_predictions(shared_data, "v2.0-BERT")
    # Scores that know a little, the same on every machine; ten values, so the best sums lie between equal scores.
    scores = {q: float(zlib.crc32(q.encode()) % 10 - 3 * bool(golds[q])) for q in predictions}
    assert evaluate_v2(golds, predictions, scores, na_threshold=3.0) == OFFICIAL_UNDER_3


def test_the_scan_keeps_the_official_quirks() -> None:
    golds = {"a": [], "b": ["cat"], "c": []}
    predictions = {"a": "x", "b": "cat", "c": "x"}
    # "b" is right but each of the others costs as much: after the first of three ties the sum is the highest.
    ties = evaluate_v2(golds, predictions, {"b": -2.0, "a": -2.0, "c": -2.0})
    assert (ties["best_exact"], ties["best_exact_thresh"]) == (100.0, -2.0)
    worse = evaluate_v2(golds, predictions, {"a": -2.0, "b": -1.0, "c": 0.5})
    assert (worse["best_exact"], worse["best_exact_thresh"]) == (100.0 * 2 / 3, 0.0)
    # An answer without words is right for "a" but costs the scan a point, so it never passes where it started.
    wordless = evaluate_v2({"a": [], "b": ["cat"]}, {"a": "!", "b": "cat"}, {"a": -2.0, "b": -1.0})
    assert (wordless["exact"], wordless["best_exact"], wordless["best_exact_thresh"]) == (100.0, 50.0, 0.0)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="question b has no gold answer"):
        evaluate_v1({"a": ["x"], "b": []}, {})
    with pytest.raises(UserError, match="no questions"):
        evaluate_v1({}, {"a": "x"})
    with pytest.raises(UserError, match="none of the 1 predictions is for one of the 2 questions"):
        evaluate_v2({"a": [], "b": []}, {"z": ""})
    with pytest.raises(UserError, match="1 predictions have no no-answer score; the first: question b"):
        evaluate_v2({"a": [], "b": []}, {"a": "", "b": ""}, {"a": 0.0})
