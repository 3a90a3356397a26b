"""Words of a text are slices of it, whole characters, and what the training data has as words."""

import dataclasses
import itertools
import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.tasks.entities.words import NO_STYLE, WordStyle, find_words, learn_style

STYLE = WordStyle("-/", "@#", ".!", ("'s", "n't"), ("北京", "北京市", "住んで"))
# Combining marks, joiners, scripts with and without spaces, marks of all kinds, white space of all kinds.
ODD = "ab1_é\u0301ि्\u200d\u200c\ufe0f👩🏽🇩中国北京市住んでไทยกำ가。、.,!-'/@# \t\u00a0\u3000\u2028\x1f\u00ad\u0fd0"
TEXTS = st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])), max_size=25)


def cut(text: str, style: WordStyle = NO_STYLE) -> list[str]:
    return [text[start:end] for start, end in find_words(text, style)]


@settings(deadline=None, max_examples=100)
@given(text=TEXTS | st.lists(st.sampled_from(["北京", "n't", "'s", "@", "...", "ab", " "]), max_size=8).map("".join))
@pytest.mark.parametrize("style", [NO_STYLE, STYLE])
def test_words_are_slices_in_order_that_hold_every_character_but_white_space(style: WordStyle, text: str) -> None:
    places = find_words(text, style)
    assert all(start < end for start, end in places)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(places))
    covered = {i for start, end in places for i in range(start, end)}
    assert covered == {i for i, character in enumerate(text) if not character.isspace()}
    for start, _ in places:  # a mark begins a word only where no character is before it that it could belong to
        is_mark = unicodedata.category(text[start])[0] == "M" or text[start] in "\u200c\u200d"
        assert not (is_mark and start > 0 and not text[start - 1].isspace())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("मोदी दिल्ली में हैं।", "मोदी|दिल्ली|में|हैं|।"),
        ("ঢাকা বাংলাদেশের রাজধানী।", "ঢাকা|বাংলাদেশের|রাজধানী|।"),
        ("சென்னை தமிழ்நாடு.", "சென்னை|தமிழ்நாடு|."),
        ("رسالةً إلى القاهرةِ.", "رسالةً|إلى|القاهرةِ|."),
        ("Cafe\u0301 ist da.", "Cafe\u0301|ist|da|."),
        ("王小明住在北京市。", "王|小|明|住|在|北|京|市|。"),
        ("東京都に住んでいます。", "東|京|都|に|住|ん|で|い|ま|す|。"),
        ("กำลัง", "ก|ำ|ลั|ง"),  # SARA AM is a letter to Unicode
        ("서울에 산다.", "서울에|산다|."),  # Korean has spaces
        ("GPT4是模型(v2)", "GPT4|是|模|型|(|v2|)"),
        ("(Smith-Lee's U.S. e-mail)", "(|Smith-Lee's|U.S|.|e-mail|)"),
        ("👩🏽\u200d🚀 1\ufe0f\u20e3 ok", "👩🏽\u200d🚀|1\ufe0f\u20e3|ok"),
        ("مي\u200cخواهم", "مي\u200cخواهم"),
        ("١٢٣ ๑๒๓", "١٢٣|๑๒๓"),
        ("...", ".|.|."),
        (" \u3000\n", ""),
    ],
)
def test_a_mark_stays_with_its_letter_and_scripts_without_spaces_are_cut_into_characters(text: str, words: str) -> None:
    assert cut(text) == (words.split("|") if words else [])


def test_texts_are_cut_as_the_training_data_is() -> None:
    training = "@ann ca n't drug - induced Anna 's ... 1.5 北京 的 人 住在 北京市"
    style = learn_style([training.split(" ")] * 30)
    assert style == WordStyle("-", "@", ".", ("'s", "n't"), ("住在", "北京", "北京市"))
    assert cut("@bob can't find-it...", style) == ["@bob", "ca", "n't", "find", "-", "it", "..."]
    assert cut("Anna's 1.5, Bob 's", style) == ["Anna", "'s", "1.5", ",", "Bob", "'s"]
    assert cut("他住在北京市的", style) == ["他", "住在", "北京市", "的"]
    characters = learn_style([[*"王小明住在北京市王小明住在北京市。", "北京"]] * 30)
    assert characters.unspaced == () and cut("北京", characters) == ["北", "京"]
    undecided = learn_style([["well-known", "-", "Anna's", "'s"]] * 30)
    assert undecided == NO_STYLE and cut("Anna's well-known", undecided) == ["Anna's", "well-known"]
    assert learn_style([]) == NO_STYLE
    assert WordStyle.from_json(json.loads(json.dumps(dataclasses.asdict(style)))) == style
    assert WordStyle.from_json({}) == NO_STYLE  # of a checkpoint that kept none
