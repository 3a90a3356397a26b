"""The metrics of GLUE and of text classification: accuracy, F1, Matthews, Pearson, Spearman.

Invariant: the values are scikit-learn's and SciPy's, in degenerate cases too (0 for an F1 or a Matthews coefficient
without a denominator, nan for a correlation with a constant or with nan). Shares are 0 to 1, correlations -1 to 1. All
functions take labels and predictions as two one-dimensional sequences of equal length, and raise ValueError for other
shapes and for empty sequences.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from spanbert_jax.errors import UserError


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The share of equal labels."""
    golds, guesses = _pair(labels, predictions)
    return float(np.mean(golds == guesses))


def f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """F1 of class 1 (GLUE's "equivalent" and "duplicate"); every other label counts as the negative class."""
    golds, guesses = _pair(labels, predictions)
    return _f1(golds == 1, guesses == 1)


def macro_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The plain mean of the F1 of every label that is given or predicted."""
    golds, guesses = _pair(labels, predictions)
    return float(np.mean([_f1(golds == label, guesses == label) for label in np.union1d(golds, guesses)]))


def matthews(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The correlation of two labellings (Gorodkin's for more than two classes); 0 if either has a single class."""
    golds, guesses = _pair(labels, predictions)
    classes, codes = np.unique(np.concatenate([golds, guesses]), return_inverse=True)
    given = np.bincount(codes[: len(golds)], minlength=len(classes)).astype(np.float64)
    guessed = np.bincount(codes[len(golds) :], minlength=len(classes)).astype(np.float64)
    count = float(len(golds))
    covariance = float(np.sum(golds == guesses)) * count - given @ guessed
    variances = (count**2 - given @ given) * (count**2 - guessed @ guessed)
    return float(covariance / math.sqrt(variances)) if variances else 0.0


def pearson(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The linear correlation; nan if either side is constant or not finite."""
    golds, guesses = (values.astype(np.float64) for values in _pair(labels, predictions))
    if not all(np.isfinite(values).all() and np.ptp(values) for values in (golds, guesses)):
        return math.nan
    golds, guesses = (values - values.mean() for values in (golds, guesses))
    correlation = (golds / np.linalg.norm(golds)) @ (guesses / np.linalg.norm(guesses))
    return float(np.clip(correlation, -1.0, 1.0))


def spearman(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Pearson's correlation of ranks, equal values sharing their mean rank; nan if a side is constant or has nan."""
    golds, guesses = _pair(labels, predictions)
    return pearson(_ranks(golds), _ranks(guesses))


_GLUE: dict[str, dict[str, Callable[[ArrayLike, ArrayLike], float]]] = {
    "cola": {"matthews": matthews},
    "sst2": {"accuracy": accuracy},
    "mrpc": {"accuracy": accuracy, "f1": f1},
    "qqp": {"accuracy": accuracy, "f1": f1},
    "stsb": {"pearson": pearson, "spearman": spearman},
    "mnli": {"accuracy": accuracy},
    "qnli": {"accuracy": accuracy},
    "rte": {"accuracy": accuracy},
    "wnli": {"accuracy": accuracy},
}


def glue(task: str, labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """The metrics of one of GLUE's tasks by name, and their mean as "score", the task's term in GLUE's average.

    Class labels are integers, and 1 is the positive class of MRPC and QQP; labels of STS-B are scores. Raises UserError
    for an unknown task.
    """
    if task not in _GLUE:
        raise UserError(f"no GLUE task {task!r}; there are {', '.join(sorted(_GLUE))}")
    metrics = {name: metric(labels, predictions) for name, metric in _GLUE[task].items()}
    return metrics | {"score": sum(metrics.values()) / len(metrics)}


def _pair(labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    golds, guesses = np.asarray(labels), np.asarray(predictions)
    if golds.ndim != 1 or golds.shape != guesses.shape or not golds.size:
        raise ValueError(
            f"labels of shape {golds.shape} and predictions of shape {guesses.shape}: "
            "expected two sequences of one length, at least 1"
        )
    return golds, guesses


def _f1(golds: np.ndarray, guesses: np.ndarray) -> float:
    given_or_guessed = int(golds.sum()) + int(guesses.sum())
    return 2 * int((golds & guesses).sum()) / given_or_guessed if given_or_guessed else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any():
        return np.full(values.shape, math.nan)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
