"""Words: every character but white space, in order, cut as the tagger's lexicon has them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.text.words import is_inside_word, split_words


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
    _, words, places = split_words(sentence)
    assert "".join(words) == "".join(sentence.split())
    assert all(words) and places == sorted(places)
    assert [sentence[begin:end] for begin, end in zip(places[::2], places[1::2], strict=True)] == words


def test_a_place_between_a_letter_and_its_mark_is_inside_a_word() -> None:
    text = "cafe\u0301 a-b"
    assert [place for place in range(-1, 10) if is_inside_word(text, place)] == [1, 2, 3, 4]
