"""Relation scores: the SemEval scorer's output for a whole confusion matrix, TACRED's rules by brute force."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.metrics.relations import semeval2010_task8, tacred

RELATIONS = [
    "Cause-Effect",
    "Component-Whole",
    "Content-Container",
    "Entity-Destination",
    "Entity-Origin",
    "Instrument-Agency",
    "Member-Collection",
    "Message-Topic",
    "Product-Producer",
]
LABELS = [f"{name}({direction})" for name in RELATIONS for direction in ("e1,e2", "e2,e1")] + ["Other"]

# A real system's answers to the task's test set: gold labels by row, its answers by column, both in LABELS' order.
CONFUSION = """
101  14   0   1   0   0   1   0   0   0   1   2   0   1   2   0   0   0  11
  7 162   0   0   0   0   0   0  11   0   0   0   0   2   0   0   0   3   9
  0   1 102  17   4   4   3   1   2   1   0   2   3   6   3   0   0   2  11
  0   1  24  85   0   1   2   0   0   1   0   5   0   2   2   2   0   2  23
  0   0   1   1 130   7   6   1   3   0   0   0   0   1   0   0   0   1   2
  0   0   0   4   1  26   1   0   2   1   0   0   0   1   0   0   0   0   3
  0   0   1   0  13   3 255   3   1   1   0   1   0   0   2   0   0   3   8
  0   0   0   0   0   0   0   1   0   0   0   0   0   0   0   0   0   0   0
  2   1   0   0   0   0   7   0 163   6   0   1   0   4   2   0   6   0  19
  1   0   1   0   1   1   0   0   7  27   0   1   0   0   0   0   0   1   7
  0   0   1   0   0   1   0   0   0   0   4   3   1   0   1   0   0   1  10
  1   1   3   8   0   0   1   0   2   1   4  76   0   1   3   2   0   6  25
  0   0   2   0   0   0   1   0   2   0   0   1  15   3   0   1   1   0   6
  0   0   6   3   1   0   0   0   1   0   1   0   9 161   2   1   0   5  11
  0   0   1   6   0   1   3   0   0   0   0   2   0   2 148  17   2   7  21
  0   0   0   0   0   0   0   0   0   0   0   1   0   0   8  31   2   3   6
  1   6   1   2   0   0   1   1   5   0   0   0   0   3   1   2  61  13  11
  0   0   1   4   0   0   3   0   2   2   0   8   0   2   2   3   8  71  17
  3  12  15  34  22   3  28   2  36   7   2  18   4  37  31   7  10  20 163
"""
# What the official scorer, version 1.2, prints for it: "(9+1)-way evaluation taking directionality into account".
OFFICIAL = {
    "Cause-Effect": (83.76, 80.18, 81.93),
    "Component-Whole": (57.72, 59.94, 58.81),
    "Content-Container": (71.23, 81.25, 75.91),
    "Entity-Destination": (79.75, 87.67, 83.52),
    "Entity-Origin": (66.90, 73.64, 70.11),
    "Instrument-Agency": (60.15, 51.28, 55.36),
    "Member-Collection": (68.22, 75.54, 71.69),
    "Message-Topic": (65.57, 68.58, 67.04),
    "Product-Producer": (57.89, 57.14, 57.52),
    "Other": (44.90, 35.90, 39.90),
    "micro": (68.78, 71.54, 70.13),
    "macro": (67.91, 70.58, 69.10),
}


def test_semeval_scores_are_what_the_official_scorer_prints() -> None:
    rows = [[int(count) for count in row.split()] for row in CONFUSION.strip().splitlines()]
    cells = [(LABELS[i], LABELS[j], count) for i, row in enumerate(rows) for j, count in enumerate(row)]
    golds = [gold for gold, _, count in cells for _ in range(count)]
    predictions = [prediction for _, prediction, count in cells for _ in range(count)]
    assert len(golds) == 2717 and golds.count("Other") == 454
    found = semeval2010_task8(golds, predictions)
    for name, values in OFFICIAL.items():
        separator = "_" if name in ("micro", "macro") else "/"
        scores = tuple(round(found[f"{name}{separator}{score}"], 2) for score in ("precision", "recall", "f1"))
        assert scores == values, name
    assert found["accuracy"] == pytest.approx(100 * 1782 / 2717)


FEW = [f"{name}({direction})" for name in ("A", "B") for direction in ("e1,e2", "e2,e1")] + ["Other"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FEW), st.sampled_from(FEW)), min_size=1, max_size=12))
def test_a_wrong_direction_is_a_false_positive_and_a_false_negative(pairs: list[tuple[str, str]]) -> None:
    f1s = []
    for name in ("A", "B"):
        hits = false_positives = false_negatives = 0
        for gold, guess in pairs:
            hits += gold == guess and gold.startswith(name)
            false_positives += gold != guess and guess.startswith(name)
            false_negatives += gold != guess and gold.startswith(name)
        if hits + false_negatives:  # only relations that the golds have
            f1s.append(200 * hits / (2 * hits + false_positives + false_negatives))
    found = semeval2010_task8([gold for gold, _ in pairs], [guess for _, guess in pairs])
    assert found["macro_f1"] == pytest.approx(sum(f1s) / len(f1s) if f1s else 0.0)


LABELLED = st.sampled_from(["no_relation", "no_relation", "per:title", "org:members"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LABELLED, LABELLED), max_size=12))
def test_tacred_scores_are_its_scorers(pairs: list[tuple[str, str]]) -> None:
    guessed = given_ = correct = 0
    for gold, guess in pairs:  # the scorer's four cases
        if gold == "no_relation" and guess == "no_relation":
            continue
        if gold == "no_relation":
            guessed += 1
        elif guess == "no_relation":
            given_ += 1
        else:
            guessed, given_, correct = guessed + 1, given_ + 1, correct + (gold == guess)
    found = tacred([gold for gold, _ in pairs], [guess for _, guess in pairs])
    assert found["precision"] == pytest.approx(100 * correct / guessed if guessed else 100)
    assert found["recall"] == pytest.approx(100 * correct / given_ if given_ else 0)
    assert found["f1"] == pytest.approx(200 * correct / (guessed + given_) if correct else 0)


def test_tacred_scores_of_a_worked_example() -> None:
    golds = ["no_relation", "per:title", "per:title", "org:members", "no_relation"]
    guesses = ["per:title", "per:title", "org:members", "no_relation", "no_relation"]
    # 3 relations are predicted, 3 are there, 1 is right.
    assert tacred(golds, guesses) == pytest.approx({"precision": 100 / 3, "recall": 100 / 3, "f1": 100 / 3})
    assert tacred(golds, ["no_relation"] * 5) == {"precision": 100.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("golds", "guesses", "message"),
    [
        (["Other"], ["Cause-Effect"], "'Cause-Effect' is neither"),
        (["Cause-Effect(e1,e1)"], ["Other"], r"'Cause-Effect\(e1,e1\)' is neither"),
        (["Other"], [], "1 gold labels and 0 predictions"),
        ([], [], "no examples"),
    ],
)
def test_mistakes_are_named(golds: list[Any], guesses: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        semeval2010_task8(golds, guesses)
