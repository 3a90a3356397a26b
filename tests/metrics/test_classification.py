"""GLUE's metrics against scikit-learn and SciPy, in degenerate cases too."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.metrics import classification

sklearn_metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

# Few classes and few examples: one class only, constant predictions and classes that one side lacks are all common.
LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)
BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12)
SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 2.5, 2.5, 5.0]), st.floats(-10, 10).map(lambda x: round(x, 3))),
    min_size=3,
    max_size=12,
)


def peer(function: Callable[..., Any], pairs: list[tuple[Any, Any]], **options: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn of the degenerate cases
        found = function([gold for gold, _ in pairs], [guess for _, guess in pairs], **options)
    return float(getattr(found, "statistic", found))


def ours(function: Callable[..., float], pairs: list[tuple[Any, Any]]) -> float:
    return function([gold for gold, _ in pairs], [guess for _, guess in pairs])


@settings(max_examples=100, deadline=None)
@given(LABELS)
def test_multiclass_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    assert ours(classification.accuracy, pairs) == pytest.approx(peer(sklearn_metrics.accuracy_score, pairs))
    assert ours(classification.matthews, pairs) == pytest.approx(peer(sklearn_metrics.matthews_corrcoef, pairs))
    macro = peer(sklearn_metrics.f1_score, pairs, average="macro")
    assert ours(classification.macro_f1, pairs) == pytest.approx(macro)


@settings(max_examples=100, deadline=None)
@given(BINARY)
def test_binary_f1_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    assert ours(classification.f1, pairs) == pytest.approx(peer(sklearn_metrics.f1_score, pairs))


@settings(max_examples=100, deadline=None)
@given(SCORES)
def test_correlations_equal_scipy_with_ties_and_constants(pairs: list[tuple[float, float]]) -> None:
    for metric, theirs in ((classification.pearson, stats.pearsonr), (classification.spearman, stats.spearmanr)):
        assert ours(metric, pairs) == pytest.approx(peer(theirs, pairs), abs=1e-9, nan_ok=True)


def test_a_constant_or_nan_prediction_correlates_with_nothing() -> None:
    for metric in (classification.pearson, classification.spearman):
        assert math.isnan(metric([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]))
        assert math.isnan(metric([1.0, 2.0, 3.0], [2.0, math.nan, 4.0]))
        assert metric([1, 2, 3], [0.5, 0.7, 0.9]) == pytest.approx(1.0)
    assert math.isnan(classification.pearson([1.0, 2.0, 3.0], [2.0, math.inf, 4.0]))


def test_matthews_of_as_many_examples_as_qqp_has_does_not_overflow() -> None:
    rng = np.random.default_rng(0)
    golds = rng.integers(0, 2, 400_000)
    guesses = np.where(rng.random(400_000) < 0.8, golds, 1 - golds)
    found = classification.matthews(golds, guesses)
    assert found == pytest.approx(sklearn_metrics.matthews_corrcoef(golds, guesses)) == pytest.approx(0.6, abs=0.01)


def test_text_labels_are_labels() -> None:
    golds, guesses = ["neutral", "for", "against", "for"], ["neutral", "against", "against", "for"]
    assert classification.accuracy(golds, guesses) == 0.75
    expected = sklearn_metrics.f1_score(golds, guesses, average="macro")
    assert classification.macro_f1(golds, guesses) == pytest.approx(expected)


def test_glue_gives_each_task_its_metrics_and_their_mean() -> None:
    labels, predictions = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]
    accuracy, f1 = 0.6, 4 / 6
    for task in ("sst2", "mnli", "qnli", "rte", "wnli"):
        assert classification.glue(task, labels, predictions) == {"accuracy": accuracy, "score": accuracy}
    for task in ("mrpc", "qqp"):
        expected = {"accuracy": accuracy, "f1": f1, "score": (accuracy + f1) / 2}
        assert classification.glue(task, labels, predictions) == pytest.approx(expected)
    expected = {"matthews": 1 / 6, "score": 1 / 6}  # (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2)
    assert classification.glue("cola", labels, predictions) == pytest.approx(expected)
    found = classification.glue("stsb", [1.0, 2.0, 4.0], [0.0, 1.0, 5.0])
    assert found["spearman"] == pytest.approx(1.0) and found["score"] == pytest.approx((1 + found["pearson"]) / 2)
    assert found["pearson"] == pytest.approx(stats.pearsonr([1.0, 2.0, 4.0], [0.0, 1.0, 5.0]).statistic)
    assert set(found) == {"pearson", "spearman", "score"}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="no GLUE task 'sst-2'; there are cola, mnli"):
        classification.glue("sst-2", [1], [1])
    for labels, predictions in (([], []), ([1, 2], [1]), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="two sequences of one length"):
            classification.accuracy(labels, predictions)
