"""Entity scores against seqeval in both of its modes, on random tags and on real ones; reading and writing of tags."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.metrics.entities import (
    Span,
    TagError,
    evaluate,
    spans,
    strict_spans,
    tags_from_spans,
)

seqeval_metrics = pytest.importorskip("seqeval.metrics")
seqeval_scheme = pytest.importorskip("seqeval.scheme")

LETTERS = {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}


def evaluate_tags(golds: list[list[str]], predictions: list[list[str]], scheme: str | None = None) -> dict[str, float]:
    """Tagged sentences in seqeval's default mode, or with a scheme in its strict mode."""
    read = spans if scheme is None else lambda tags: strict_spans(tags, scheme)
    return evaluate([read(tags) for tags in golds], [read(tags) for tags in predictions])


def report(golds: list[list[str]], predictions: list[list[str]], scheme: str | None) -> dict[str, float]:
    """seqeval's report under our names; its averages over no type at all are nan, ours 0."""
    mode = {"mode": "strict", "scheme": getattr(seqeval_scheme, scheme)} if scheme else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = seqeval_metrics.classification_report(golds, predictions, output_dict=True, zero_division=0, **mode)
    found = {}
    for name, row in table.items():
        prefix = {"micro avg": "", "macro avg": "macro_", "weighted avg": "weighted_"}.get(name, f"{name}/")
        scores = {score.removesuffix("-score"): float(value) for score, value in row.items()}
        if prefix in ("macro_", "weighted_"):
            del scores["support"]  # the same once more
        found |= {prefix + score: 0.0 if np.isnan(value) else value for score, value in scores.items()}
    return found


def tagged(letters: str) -> Any:
    tag = st.sampled_from(["O", "O", *(f"{letter}-{name}" for letter in letters for name in ("PER", "x-y"))])
    sentence = st.lists(st.tuples(tag, tag), max_size=8)
    return st.lists(sentence, min_size=1, max_size=4)


def sides(sentences: list[list[tuple[str, str]]]) -> tuple[list[list[str]], list[list[str]]]:
    return [[gold for gold, _ in s] for s in sentences], [[prediction for _, prediction in s] for s in sentences]


@settings(max_examples=100, deadline=None)
@given(tagged("BIES"))
def test_default_mode_equals_seqeval_on_any_tags(sentences: list[list[tuple[str, str]]]) -> None:
    golds, predictions = sides(sentences)
    assert evaluate_tags(golds, predictions) == report(golds, predictions, None)


@pytest.mark.parametrize("scheme", LETTERS)
def test_strict_mode_equals_seqeval_on_any_tags(scheme: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(tagged(LETTERS[scheme]))
    def check(sentences: list[list[tuple[str, str]]]) -> None:
        golds, predictions = sides(sentences)
        assert evaluate_tags(golds, predictions, scheme) == report(golds, predictions, scheme)

    check()


@pytest.mark.parametrize("scheme", LETTERS)
def test_strict_spans_are_seqevals_on_every_short_sentence(scheme: str) -> None:
    """Every sentence of up to four tags of two types, so that no quirk of its patterns depends on chance."""
    theirs = getattr(seqeval_scheme, scheme)
    tags = ["O", *(f"{letter}-{name}" for letter in LETTERS[scheme] for name in "XY")]
    sentences: list[list[str]] = [[]]
    for _ in range(4):
        sentences += [[*sentence, tag] for sentence in sentences if len(sentence) == len(sentences[-1]) for tag in tags]
    assert len(sentences) == sum(len(tags) ** length for length in range(5))
    for sentence in sentences:
        found = [(e.start, e.end, e.tag) for e in seqeval_scheme.Tokens(sentence, theirs).entities]
        assert strict_spans(sentence, scheme) == found, sentence


def read_tags(path: Path) -> list[list[str]]:
    """The last column of each sentence; a sentence ends at a line without a word (some have a TAB)."""
    sentences: list[list[str]] = [[]]
    for line in path.read_text("utf-8").split("\n"):
        if line.strip() and not line.startswith("-DOCSTART-"):
            sentences[-1].append(line.split("\t")[-1])
        else:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


@pytest.mark.parametrize(
    ("file", "scheme"),
    [("wnut17/emerging.test.annotated", None), ("wnut17/emerging.test.annotated", "IOB2"), ("bc5cdr/test.txt", None)],
)
def test_scores_equal_seqeval_on_real_tags_of_a_poor_tagger(shared_data: Path, file: str, scheme: str | None) -> None:
    golds = read_tags(shared_data / file)
    assert len(golds) == {"wnut17": 1287, "bc5cdr": 4139}[file.split("/")[0]]
    rng = np.random.default_rng(3)
    known = sorted({tag for sentence in golds for tag in sentence})
    predictions = [[str(rng.choice(known)) if rng.random() < 0.1 else tag for tag in sentence] for sentence in golds]
    found = evaluate_tags(golds, predictions, scheme)
    assert found == report(golds, predictions, scheme)
    assert 0.3 < found["f1"] < 0.95
    assert evaluate_tags(golds, golds, scheme)["f1"] == 1.0


def test_nothing_to_find_and_nothing_found_score_0() -> None:
    empty = evaluate_tags([["O", "O"], []], [["O", "O"], []])
    assert set(empty.values()) == {0.0} and empty["support"] == 0
    only_predicted = evaluate_tags([["O"]], [["B-PER"]])
    assert only_predicted == report([["O"]], [["B-PER"]], None)


def test_nested_and_overlapping_entities_each_count_once() -> None:
    golds: list[list[Span]] = [[(0, 5, "ORG"), (2, 4, "LOC"), (2, 4, "ORG")], [(0, 1, "LOC")]]
    predictions: list[list[Span]] = [[(2, 4, "LOC"), (2, 4, "LOC"), (0, 5, "ORG"), (1, 5, "ORG")], [(0, 1, "PER")]]
    found = evaluate(golds, predictions)
    # Found: LOC 1 of 1 predicted and 2 given; ORG 1 of 2 and 2; PER 0 of 1 and 0.
    assert {name: found[name] for name in ("precision", "recall", "f1", "support")} == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "support": 4,
    }
    assert (found["LOC/precision"], found["LOC/recall"], found["LOC/f1"]) == (1.0, 0.5, pytest.approx(2 / 3))
    assert (found["PER/f1"], found["PER/support"]) == (0.0, 0)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["weighted_f1"] == pytest.approx((2 * 2 / 3 + 2 * 1 / 2) / 4)


def test_bilou_is_iobes_in_other_letters() -> None:
    bilou = ["U-A", "B-A", "I-A", "L-A", "U-A", "U-A", "O", "B-B", "L-B"]
    iobes = [tag.replace("L-", "E-").replace("U-", "S-") for tag in bilou]
    expected = [(0, 1, "A"), (1, 4, "A"), (4, 5, "A"), (5, 6, "A"), (7, 9, "B")]
    assert spans(bilou) == spans(iobes) == expected
    assert strict_spans(bilou, "BILOU") == strict_spans(iobes, "IOBES") == expected


@st.composite
def flat_entities(draw: Any) -> tuple[list[Span], int]:
    """Entities that do not overlap, often adjacent and of one type."""
    found: list[Span] = []
    position = 0
    for _ in range(draw(st.integers(0, 5))):
        position += draw(st.integers(0, 1))
        end = position + draw(st.integers(1, 4))
        found.append((position, end, draw(st.sampled_from(["PER", "x-y"]))))
        position = end
    return found, position + draw(st.integers(0, 2))


@pytest.mark.parametrize("scheme", LETTERS)
def test_tags_of_any_flat_entities_read_back_as_them_in_every_reading(scheme: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(flat_entities())
    def check(drawn: tuple[list[Span], int]) -> None:
        found, length = drawn
        tags = tags_from_spans(reversed(found), length, scheme)
        assert len(tags) == length
        assert spans(tags) == strict_spans(tags, scheme) == found

    check()


@pytest.mark.parametrize(("scheme", "tag"), [("IOB2", "S-PER"), ("IOB2", "o"), ("IOBES", "PERSON"), ("IOBES", "Else")])
def test_what_is_no_tag_is_named_with_its_position(scheme: str, tag: str) -> None:
    with pytest.raises(TagError, match="is no tag") as caught:
        strict_spans(["O", tag], scheme)
    assert caught.value.position == 1


def test_wnut17_keeps_iob2_and_bc5cdr_the_rules_of_no_scheme(shared_data: Path) -> None:
    for tags in read_tags(shared_data / "wnut17" / "wnut17train.conll"):
        assert strict_spans(tags, "IOB2") == spans(tags)
    # Most entities of one word are I-, those of several B- I-, so only the reading that asks for no rules has all.
    real = read_tags(shared_data / "bc5cdr" / "dev.txt")
    for scheme in ("IOB1", "IOB2"):
        assert any(strict_spans(tags, scheme) != spans(tags) for tags in real)
    assert sum(len(spans(tags)) for tags in real) == 9455
    assert sum(len({*spans(tags)} & {*strict_spans(tags, "IOB1")}) for tags in real) == 7154


def test_other_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="2 gold sentences and 1 predicted"):
        evaluate([[], []], [[]])
    with pytest.raises(ValueError, match="unknown tag scheme 'IOB'; there are IOB1, IOB2, IOBES, BILOU"):
        strict_spans(["O"], "IOB")
    for entities in ([(0, 2, "A"), (1, 3, "A")], [(1, 1, "A")], [(2, 4, "A")], [(-1, 1, "A")]):
        with pytest.raises(ValueError, match="overlaps another or the sentence's end"):
            tags_from_spans(entities, 3, "IOB2")
