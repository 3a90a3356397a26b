"""Rows of words: every word tagged once, every span once, and pieces that are the words' own."""

import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.tasks.entities.rows import Span, SpanRowMaker, TokenRowMaker, WordExample, WordRowMaker
from spanbert_jax.tasks.rows import Row, make_rows
from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer

VOCABULARY = [*SPECIALS, *"abcdeé😀中.", *(f"##{char}" for char in "abcdeé"), "ab", "##cd"]
WORDPIECE = Tokenizer("wordpiece", "".join(f"{piece}\n" for piece in VOCABULARY).encode())
TYPES = ("LOC", "PER")
TAGS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
WIDTH = 3

words = st.text(st.sampled_from("abcdeé😀中.\u0301\u200b\u200d\x01\u00a0"), min_size=1, max_size=9).map(
    lambda x: x + "a"
)
odd_words = words | st.sampled_from(["\u200b", "\x01", "\u00a0", "[SEP]", "a" * 120, "abcd" * 20])
sentences = st.lists(odd_words, min_size=1, max_size=40).map(tuple)


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return train_sentencepiece(["abc cab bad dab é 中 ab cd . " * 3] * 20, "unigram", 324)


def token_rows(tokenizer: Tokenizer, length: int) -> WordRowMaker:
    return TokenRowMaker(tokenizer, length, TAGS, WIDTH)


def span_rows(tokenizer: Tokenizer, length: int, width: int = WIDTH) -> WordRowMaker:
    return SpanRowMaker(tokenizer, length, ("O", *TYPES), width)


def flat_spans(length: int, seed: int) -> tuple[Span, ...]:
    """Entities that do not overlap, some of them directly after another."""
    rng, start, found = random.Random(seed), 0, []
    while start < length:
        end = min(start + rng.randint(1, 4), length)
        if rng.random() < 0.6:
            found.append((start, end, rng.choice(TYPES)))
        start = end
    return tuple(found)


def own_pieces(tokenizer: Tokenizer, word: str, room: int) -> list[int]:
    return tokenizer.tokenize(word)[:room] or [tokenizer.unk_id]


def check_frame(row: Row, tokenizer: Tokenizer, length: int) -> None:
    ids = row["input_ids"]
    assert 3 <= len(ids) <= length and row["token_type_ids"] == [0] * len(ids)
    assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
    assert not {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id} & set(ids[1:-1])


def expected_tag(spans: tuple[Span, ...], word: int) -> str:
    for start, end, kind in spans:
        if start <= word < end:
            return f"{'B' if word == start else 'I'}-{kind}"
    return "O"


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
@settings(deadline=None, max_examples=40)
@given(sentence=sentences, length=st.integers(8, 60), seed=st.integers(0, 99), context=st.integers(0, 6))
def test_every_word_is_tagged_once_at_the_first_of_its_own_pieces(
    unigram: Tokenizer, kind: str, sentence: tuple[str, ...], length: int, seed: int, context: int
) -> None:
    tokenizer = WORDPIECE if kind == "wordpiece" else unigram
    spans = flat_spans(len(sentence), seed)
    example = WordExample("1", sentence, spans, ("ab", "a") * context, ("cd", "c") * context)
    (rows,) = token_rows(tokenizer, length)([example])
    tagged = []
    for row in rows:
        check_frame(row, tokenizer, length)
        assert len(row["label"]) == len(row["word"]) == len(row["input_ids"])
        for place, (label, word) in enumerate(zip(row["label"], row["word"], strict=True)):
            assert (label < 0) == (word < 0)
            if word >= 0:
                tagged.append(word)
                assert TAGS[label] == expected_tag(spans, word)
                pieces = own_pieces(tokenizer, sentence[word], length - 2)
                assert row["input_ids"][place : place + len(pieces)] == pieces
    assert tagged == list(range(len(sentence)))


@settings(deadline=None, max_examples=50)
@given(sentence=sentences, length=st.integers(8, 60), seed=st.integers(0, 99), context=st.integers(0, 6))
def test_every_span_whose_pieces_fit_is_in_exactly_one_row(
    sentence: tuple[str, ...], length: int, seed: int, context: int
) -> None:
    spans = tuple(  # nested and crossing ones, too, and some that are too wide
        sorted({(a, b): (a, b, kind) for s in range(3) for a, b, kind in flat_spans(len(sentence), seed + s)}.values())
    )
    example = WordExample("1", sentence, spans, ("ab",) * context, ("cd",) * context)
    (rows,) = span_rows(WORDPIECE, length)([example])
    sizes = [len(own_pieces(WORDPIECE, word, length - 2)) for word in sentence]
    found, candidates = [], []
    for row in rows:
        check_frame(row, WORDPIECE, length)
        slots = sum(place >= 0 for place in row["first"])
        assert 1 <= row["starts"] <= slots
        for slot in range(slots):
            word = row["first_word"] + slot
            pieces = own_pieces(WORDPIECE, sentence[word], length - 2)
            assert row["input_ids"][row["first"][slot] : row["last"][slot] + 1] == pieces
        for width in range(1, WIDTH + 1):
            labels = row[f"span_{width}"]
            assert len(labels) == len(row["input_ids"])
            for slot, label in enumerate(labels):
                start, end = row["first_word"] + slot, row["first_word"] + slot + width
                if slot < row["starts"] and slot + width <= slots:
                    candidates.append((start, end))
                    found += [(start, end, ("O", *TYPES)[label])] * (label > 0)
                else:
                    assert label == 0
    fit = [
        (start, start + width)
        for start in range(len(sentence))
        for width in range(1, WIDTH + 1)
        if start + width <= len(sentence) and sum(sizes[start : start + width]) <= length - 2
    ]
    assert sorted(candidates) == sorted(fit)
    assert sorted(found) == [span for span in spans if span[:2] in fit]


@pytest.mark.parametrize("make", [token_rows, span_rows])
def test_a_word_longer_than_a_row_loses_its_end_and_its_row_says_so(make: Callable[..., WordRowMaker]) -> None:
    pieces = len(WORDPIECE.tokenize("cab" * 4))
    assert pieces > 6
    around = WordExample("2", ("ab",), (), before=("cab" * 4,))  # what a row lacks of the words around is no loss
    for length, cut in ((pieces + 2, [0, 0, 0]), (pieces + 1, [0, 1, 0])):
        examples = [WordExample("1", ("ab", "a")), WordExample("3", ("ab", "cab" * 4)), around]
        rows = make(WORDPIECE, length)(examples)
        assert [sum(row["cut"] for row in of_one) for of_one in rows] == cut


def test_the_documents_words_fill_the_row_on_both_sides_and_are_not_tagged() -> None:
    example = WordExample("1", ("ab", "c"), ((0, 1, "PER"),), ("a",) * 9 + ("abcd",), ("b",) * 20)
    (row,) = token_rows(WORDPIECE, 12)([example])[0]
    pieces = [WORDPIECE.piece(i) for i in row["input_ids"]]
    assert pieces == ["[CLS]", "a", "a", "a", "ab", "##cd", "ab", "c", "b", "b", "b", "[SEP]"]
    assert [place for place, word in enumerate(row["word"]) if word >= 0] == [pieces.index("c") - 1, pieces.index("c")]
    (row,) = span_rows(WORDPIECE, 12)([example])[0]
    at = pieces.index("c")
    assert row["first"][:3] == [at - 1, at, -1] and row["last"][:3] == [at - 1, at, -1] and row["starts"] == 2


def test_a_sentence_that_fits_stands_alone_where_no_context_is_given() -> None:
    (row,) = token_rows(WORDPIECE, 60)([WordExample("1", ("ab", "c"))])[0]
    assert row["input_ids"] == [WORDPIECE.cls_id, *WORDPIECE.tokenize("ab"), *WORDPIECE.tokenize("c"), WORDPIECE.sep_id]


def test_rows_of_a_long_sentence_have_words_around_those_they_tag() -> None:
    (rows,) = token_rows(WORDPIECE, 42)([WordExample("1", tuple("abcde" * 40))])
    for row in rows[1:-1]:
        tagged = [place for place, word in enumerate(row["word"]) if word >= 0]
        assert len(row["input_ids"]) == 42 and tagged[0] > 4 and tagged[-1] <= 40 - (WIDTH - 1)
    assert len(rows) <= 200 / (42 - 2) * 4 / 3 + 2


def test_examples_have_the_same_rows_in_any_company_and_pickled() -> None:
    examples = [WordExample(str(i), tuple("abcde"[: i % 5 + 1]), ((0, 1, "PER"),)) for i in range(20)]
    rows = span_rows(WORDPIECE, 16)
    together = rows(examples)
    assert together == [rows([example])[0] for example in examples]
    assert pickle.loads(pickle.dumps(rows))(examples) == together
    padding = {"first": -1, "last": -1}
    batch = make_rows(together).collate(np.array([3, -1, 7]), 16, padding)
    assert batch["span_1"].shape == (3, 16) and (batch["first"][1] == -1).all()


def test_the_token_head_has_one_tag_a_word() -> None:
    with pytest.raises(ValueError, match="overlaps another"):
        token_rows(WORDPIECE, 16)([WordExample("1", ("a", "b"), ((0, 2, "PER"), (1, 2, "LOC")))])
