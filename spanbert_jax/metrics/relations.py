"""F1 of relations between two entities: TACRED's micro-F1 and SemEval-2010 Task 8's macro-F1.

Invariant: the numbers are the official scorers', in percent, 0 to 100. "no_relation" and "Other" are never relations
that can be found or missed.
"""

import re
from collections import Counter
from collections.abc import Sequence

NO_RELATION = "no_relation"
OTHER = "Other"
_DIRECTED = re.compile(r"(.+)\((?:e1,e2|e2,e1)\)")


def tacred(golds: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """TACRED's micro-averaged {"precision", "recall", "f1"} over the relations other than no_relation.

    As in TACRED's scorer, precision is 100 where no relation is predicted at all (F1 is then 0), and recall is 0 where
    there is no relation to find. Raises ValueError if the lengths differ.
    """
    _check_lengths(golds, predictions)
    predicted = sum(label != NO_RELATION for label in predictions)
    present = sum(label != NO_RELATION for label in golds)
    correct = sum(g == p != NO_RELATION for g, p in zip(golds, predictions, strict=True))
    precision = 100.0 * correct / predicted if predicted else 100.0
    recall = 100.0 * correct / present if present else 0.0
    return {"precision": precision, "recall": recall, "f1": _f1(precision, recall)}


def semeval2010_task8(golds: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The official "(9+1)-way evaluation taking directionality into account" of labels like "Cause-Effect(e2,e1)".

    The relation is the part of the label before the direction. A prediction is correct if its relation and its
    direction are. A prediction with the right relation and the wrong direction is a false positive and a false negative
    of that relation, so that

        precision = correct / predictions of the relation, in either direction
        recall    = correct / examples of the relation, in either direction

    Each is 0 where its denominator is 0. The macro averages (of precision, of recall, of F1) are over the relations
    that the golds have, which are all nine in the task's test set, without Other. A predicted relation that no gold has
    costs no more than the prediction Other would. The micro averages add up the same relations. Accuracy counts Other
    too.

    Returns: macro_*, micro_*, "accuracy" and, for each relation (and Other), "Cause-Effect/f1" and so on, where * is
    precision, recall and f1. "macro_f1" is the official score. Raises ValueError if the lengths differ, if there is no
    label, or for a label of another form.
    """
    _check_lengths(golds, predictions)
    if not golds:
        raise ValueError("no examples to evaluate")
    present = Counter(_relation(label) for label in golds)
    predicted = Counter(_relation(label) for label in predictions)
    correct = Counter(_relation(g) for g, p in zip(golds, predictions, strict=True) if g == p)
    metrics: dict[str, float] = {}
    for name in sorted(present):
        metrics |= _scores(f"{name}/", correct[name], predicted[name], present[name])
    names = [name for name in present if name != OTHER]
    for score in ("precision", "recall", "f1"):
        added = sum(metrics[f"{name}/{score}"] for name in names)
        metrics[f"macro_{score}"] = added / len(names) if names else 0.0
    totals = [sum(counts[name] for name in names) for counts in (correct, predicted, present)]
    return metrics | _scores("micro_", *totals) | {"accuracy": 100.0 * sum(correct.values()) / len(golds)}


def _relation(label: str) -> str:
    if label == OTHER:
        return label
    match = _DIRECTED.fullmatch(label)
    if not match:
        raise ValueError(f'label {label!r} is neither "{OTHER}" nor a relation with "(e1,e2)" or "(e2,e1)"')
    return match[1]


def _scores(prefix: str, correct: int, predicted: int, present: int) -> dict[str, float]:
    precision = 100.0 * correct / predicted if predicted else 0.0
    recall = 100.0 * correct / present if present else 0.0
    return {f"{prefix}precision": precision, f"{prefix}recall": recall, f"{prefix}f1": _f1(precision, recall)}


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _check_lengths(golds: Sequence[str], predictions: Sequence[str]) -> None:
    if len(golds) != len(predictions):
        raise ValueError(f"{len(golds)} gold labels and {len(predictions)} predictions; expected equal numbers")
