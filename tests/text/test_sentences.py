"""Sentences: nothing lost, lines end them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.text.sentences import split_sentences


@settings(deadline=None)
@given(st.text(max_size=300), st.sampled_from(["sentencex", "none"]), st.sampled_from(["en", "de", "zh", "xx"]))
def test_sentences_hold_every_character_but_white_space(text: str, splitter: str, language: str) -> None:
    sentences = split_sentences(text, language, splitter)
    assert re.sub(r"\s", "", "".join(sentences)) == re.sub(r"\s", "", text)
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
    assert not any(end in sentence for sentence in sentences for end in "\r\n")


def test_a_sentence_ends_at_its_end_or_at_the_lines() -> None:
    text = "Mr. Smith of the U.S. came. Did he stay?\nNo\n\n  He left.  "
    assert split_sentences(text, "en", "sentencex") == ["Mr. Smith of the U.S. came.", "Did he stay?", "No", "He left."]
    assert split_sentences(text, "en", "none") == ["Mr. Smith of the U.S. came. Did he stay?", "No", "He left."]


def test_a_long_line_in_a_script_without_spaces_has_the_sentences_of_its_parts() -> None:
    sentences = ["今天天气很好，我们去公园玩。", "小明说他也想去！", "老师问：“谁要去？”", "大家都笑了。"] * 2_000
    assert split_sentences("".join(sentences), "zh", "sentencex") == sentences  # 88,000 characters in a line


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_blank_text_has_no_sentences(text: str) -> None:
    assert split_sentences(text, "en", "sentencex") == []


@pytest.mark.parametrize("space", ["\u00a0", "\u3000"])
def test_a_letter_a_space_beyond_ascii_and_a_period_end_no_build(space: str) -> None:
    text = f"Rich in vitamin E{space}. Then more.\nB{space}."
    sentences = split_sentences(text, "en", "sentencex")
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert sentences[-2:] == ["Then more.", f"B{space}."]
