"""Words: every character but white space, in order, cut as the tagger's lexicon has them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.text.words import is_inside_word, split_words, word_pattern


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("The cat sat on the mat.", "The cat sat on the mat ."),
        ("He doesn't like O'Brien’s plan B.", "He does n't like O'Brien ’s plan B ."),
        ("It's 3,500.5 well-known U.S. (or U.K.) firms", "It 's 3,500.5 well-known U.S. ( or U.K. ) firms"),
        ("Some, i.e. two (a.m. or p.m.).", "Some , i.e. two ( a.m. or p.m. ) ."),
        ("Mr. J. R. Smith and Dr. No, in 1999.", "Mr. J. R. Smith and Dr. No , in 1999 ."),
        ("cafe\u0301s in 東京 नमस्ते", "cafe\u0301s in 東 京 नमस्ते"),
    ],
)
def test_words_of_sentences(sentence: str, words: str) -> None:
    assert split_words(sentence).words == words.split(" ")


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("abA1 \t.,'’-né\u0301中न\u094d")) | st.text())
def test_words_hold_every_character_but_white_space_and_say_where_they_are(sentence: str) -> None:
    words, places = split_words(sentence).words, split_words(sentence).places()
    assert "".join(words) == "".join(sentence.split())
    assert all(words) and places == sorted(places)
    assert [sentence[begin:end] for begin, end in places] == words


SIGNS = "abnstABMNST1_ .,'’-:;)(né\u0301中\u0085"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*SIGNS, "Mr.", "J. ", "n't", "'s", "I ", "Don’t"]), max_size=12).map("".join))
def test_neither_the_line_for_most_words_nor_the_pattern_of_ascii_changes_a_word(sentence: str) -> None:
    whole = word_pattern(False).pattern
    first, others = whole.split("|", 1)
    assert first.startswith("[A-Za-z][a-z]*")
    assert split_words(sentence).words == re.findall(others, sentence) == re.findall(whole, sentence)


def test_a_letter_under_a_pile_of_marks_is_one_word_and_hangs_nothing() -> None:
    """A pattern that matched marks in two ways would need 2**50_000 steps here."""
    pile = "Z" + "\u0301" * 50_000
    assert split_words(f"{pile} {pile}'s {pile}-a").words == [pile, pile, "'s", f"{pile}-a"]


def test_a_place_between_a_letter_and_its_mark_is_inside_a_word() -> None:
    text = "cafe\u0301 a-b"
    assert [place for place in range(-1, 10) if is_inside_word(text, place)] == [1, 2, 3, 4]
