"""Rows of one text or two: special pieces, token types, and truncation as BERT does it, piece by piece."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.tasks.text_classification.rows import TextRowMaker
from spanbert_jax.text.tokenizer import Tokenizer

WORDS = [f"w{i}" for i in range(30)]
TOKENIZER = Tokenizer("wordpiece", "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]).encode())


@dataclasses.dataclass(frozen=True)
class LabelledText:
    text: str
    second: str | None = None
    label: str | float | None = None


def make(example: LabelledText, length: int = 16, regression: bool = False) -> dict:
    (rows,) = TextRowMaker(TOKENIZER, length, ("no", "yes"), regression)([example])
    (row,) = rows
    return row


@settings(deadline=None, max_examples=50)
@given(first=st.integers(0, 30), second=st.integers(0, 30), length=st.integers(5, 40))
def test_the_longer_text_loses_a_piece_at_a_time(first: int, second: int, length: int) -> None:
    a, b = list(WORDS[:first]), list(reversed(WORDS[30 - second :]))
    row = make(LabelledText(" ".join(a), " ".join(b)), length)
    while len(a) + len(b) > length - 3:
        (a if len(a) > len(b) else b).pop()
    assert [TOKENIZER.piece(i) for i in row["input_ids"]] == ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
    assert row["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_both_texts_have_the_one_type_of_a_model_with_one() -> None:
    ((row,),) = TextRowMaker(TOKENIZER, 16, ("no", "yes"), False, token_types=1)([LabelledText("w1 w2", "w3")])
    assert row["token_type_ids"] == [0] * 6


def test_one_text_is_cut_at_its_end() -> None:
    row = make(LabelledText("w1 w2 w3 w4"), 5)
    assert [TOKENIZER.piece(i) for i in row["input_ids"]] == ["[CLS]", "w1", "w2", "w3", "[SEP]"]
    assert row["token_type_ids"] == [0] * 5


@pytest.mark.parametrize(("label", "regression", "expected"), [("yes", False, 1), (None, False, 0), (2.5, True, 2.5)])
def test_labels_are_numbered_and_scores_are_kept(label: str | float | None, regression: bool, expected: float) -> None:
    assert make(LabelledText("w1", None, label), regression=regression)["label"] == expected
