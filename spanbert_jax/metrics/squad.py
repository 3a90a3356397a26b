"""Exact match and F1 of answers to questions, as the official scripts of SQuAD 1.1 and 2.0 count them. MRQA's script
counts as SQuAD 1.1's does.

Invariant: every number is the official script's to the last digit, its quirks included. All numbers but thresholds and
counts are percentages, 0 to 100. Points are added one after the other, in the data's order, because `sum` of floats
rounds differently from Python 3.12 on.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from spanbert_jax.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII punctuation alone, as in the scripts


def normalize(text: str) -> str:
    """The form in which texts are compared: lower-cased, then without punctuation, articles and repeated spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact(gold: str, prediction: str) -> float:
    """1.0 if both are the same once normalized, else 0.0."""
    return float(normalize(gold) == normalize(prediction))


def f1(gold: str, prediction: str, both_empty: float = 1.0) -> float:
    """F1 of the words of the two normalized texts, 0 to 1; a word counts as often as it occurs.

    both_empty: the result where neither text has a word; 1 in SQuAD 2.0, 0 in SQuAD 1.1.
    """
    gold_words, words = normalize(gold).split(), normalize(prediction).split()
    if not gold_words and not words:
        return both_empty
    common = sum((Counter(gold_words) & Counter(words)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def evaluate_v1(golds: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """SQuAD 1.1's (and MRQA's) {"exact_match", "f1"}, in percent: each question counts with its best gold answer.

    golds: question id -> answers. predictions: question id -> answer. A question without a prediction counts 0;
    predictions for other ids are ignored. Raises UserError where there is no question, and for a question without a
    gold answer.
    """
    if not golds:
        raise UserError("no questions to evaluate: the data has none")
    for question, answers in golds.items():
        if not answers:
            raise UserError(
                f"question {question} has no gold answer, which SQuAD 1.1 does not know; evaluate as SQuAD 2.0"
            )
    asked = [question for question in golds if question in predictions]
    exact_points = [max(exact(gold, predictions[q]) for gold in golds[q]) for q in asked]
    f1_points = [max(f1(gold, predictions[q], both_empty=0.0) for gold in golds[q]) for q in asked]
    return {"exact_match": _percent(exact_points, len(golds)), "f1": _percent(f1_points, len(golds))}


def evaluate_v2(
    golds: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    no_answer_scores: Mapping[str, float] | None = None,
    na_threshold: float = 1.0,
) -> dict[str, float]:
    """SQuAD 2.0's table: exact, f1 (in percent), total; also as HasAns_* and NoAns_* where there are such questions.

    A question has an answer if its list of gold answers is not empty. A prediction is compared with the gold answers
    whose normalized text is not empty, or with "" if there are none. A question without a prediction is left out, of
    the totals too. With `no_answer_scores` (the higher, the less likely an answer), predictions whose score is over
    `na_threshold` count as "", and best_exact, best_f1 and their thresholds best_exact_thresh, best_f1_thresh are
    added: see `_best`. Raises UserError if no question has a prediction, or if a prediction has no score.
    """
    asked = [question for question in golds if question in predictions]
    if not asked:
        raise UserError(
            f"none of the {len(predictions)} predictions is for one of the {len(golds)} questions; "
            "give predictions that were made for this data"
        )
    references = {q: [gold for gold in golds[q] if normalize(gold)] or [""] for q in asked}
    points = {
        "exact": {q: max(exact(gold, predictions[q]) for gold in references[q]) for q in asked},
        "f1": {q: max(f1(gold, predictions[q]) for gold in references[q]) for q in asked},
    }
    best: dict[str, float] = {}
    if no_answer_scores is not None:
        unscored = [question for question in asked if question not in no_answer_scores]
        if unscored:
            raise UserError(
                f"{len(unscored)} predictions have no no-answer score; the first: question {unscored[0]}. "
                "Give a score for each prediction, or no scores at all"
            )
        for name, of_question in points.items():
            best[f"best_{name}"], best[f"best_{name}_thresh"] = _best(golds, predictions, of_question, no_answer_scores)
        emptied = {q: float(not golds[q]) for q in asked if no_answer_scores[q] > na_threshold}
        points = {name: of_question | emptied for name, of_question in points.items()}
    metrics = _table("", points, asked)
    metrics |= _table("HasAns_", points, [question for question in asked if golds[question]])
    metrics |= _table("NoAns_", points, [question for question in asked if not golds[question]])
    return metrics | best


def _table(prefix: str, points: Mapping[str, Mapping[str, float]], questions: Sequence[str]) -> dict[str, float]:
    if not questions:
        return {}
    means = {prefix + name: _percent([of[q] for q in questions], len(questions)) for name, of in points.items()}
    return means | {prefix + "total": len(questions)}


def _best(
    golds: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    points: Mapping[str, float],
    no_answer_scores: Mapping[str, float],
) -> tuple[float, float]:
    """The best score that a threshold reaches, in percent, and this threshold, as the official scan finds them.

    The scan starts with no question answered, which it calls threshold 0.0 whatever the scores are. It then admits one
    prediction after the other by rising score. So among equal scores it may stop at a sum that no threshold reaches.
    An answer to an unanswerable question costs a point even where the answer's normalized text is empty.
    """
    current: float = sum(1 for answers in golds.values() if not answers)
    best, threshold = current, 0.0
    for question in sorted(no_answer_scores, key=lambda q: no_answer_scores[q]):
        if question not in points:
            continue
        if golds[question]:
            current += points[question]
        elif predictions[question]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer_scores[question]
    return 100.0 * best / len(points), threshold


def _percent(points: Iterable[float], total: int) -> float:
    added = 0.0
    for point in points:
        added += point
    return 100.0 * added / total
