"""The span tags of pieces: those of a search piece by piece, whether or not the tokenizer says where the pieces lie."""

import functools
import itertools
import pydoc_data.topics

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spanbert_jax.text import span_tags, spans, wordpiece
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.span_rules import Span
from spanbert_jax.text.span_tags import begin_anew, count_spans, piece_tags, tokenize_and_tag
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.text.wordpiece import AddedPiece, WordPieceSettings
from spanbert_jax.text.words import Words, split_words
from tests.support.sentencepiece_models import other_model
from tests.support.texts_and_tokenizers import KINDS, TEXTS, tokenizer_of

finder_of = functools.cache(SpanFinder)
RULES = ("sentence", "regex:A=[a-c]; regex:B=[-dé中ொ한ﬁ\u200d'.]+", "regex:A=the cat|[^a]; regex:B=a +the", "regex:A=.")


def brute_force_tags(words: Words, of_sentence: list[Span], pieces: list[tuple[int, int]]) -> list[int]:
    tags = [0] * len(pieces)
    places = words.places()
    for begin, end, kind in of_sentence:
        low, high = places[begin][0], places[end - 1][1]
        mine = [i for i, (b, e) in enumerate(pieces) if b < high and e > low and not tags[i]]
        for number, i in enumerate(mine):
            tags[i] = 2 * kind + (number == 0)
    return tags


@settings(max_examples=60, deadline=None)
@given(st.text("ab. ", min_size=1, max_size=20), st.data())
def test_a_span_covers_every_piece_with_one_of_its_characters(text: str, data: st.DataObject) -> None:
    words = split_words(text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(words.words)))))
    kinds = data.draw(st.lists(st.integers(1, 127), min_size=len(cuts), max_size=len(cuts)))
    some = [(b, e, kind) for (b, e), kind in zip(itertools.pairwise(cuts), kinds, strict=False)][
        :: data.draw(st.integers(1, 2))
    ]
    ends = sorted(data.draw(st.sets(st.integers(1, len(text)))) | {len(text)})
    pieces = list(itertools.pairwise([0, *ends]))
    assert piece_tags([words], [some], [pieces]).tolist() == brute_force_tags(words, some, pieces)


@functools.cache
def odd_tokenizer(kind: str) -> Tokenizer:
    """A tokenizer of a kind in ODD, whose pieces may stand for other characters than those they are written with."""
    vocabulary = tokenizer_of("wordpiece").vocabulary
    if kind == "added":
        added = (
            AddedPiece("x y"),
            AddedPiece("cat", lstrip=True, rstrip=True),
            AddedPiece("\u0301e", normalized=False),
        )
        return Tokenizer("wordpiece", vocabulary, settings=WordPieceSettings(added=added))
    if kind == "jamo":  # of which WordPiece makes Korean syllables when it strips accents
        return Tokenizer("wordpiece", vocabulary + "\nᄒ\n##ᅡ\n##ᆫ".encode(), lowercase=True)
    if kind == "accents kept":
        return Tokenizer("wordpiece", vocabulary, True, settings=WordPieceSettings(strip_accents=False))
    if kind == "controls kept":
        of_control = WordPieceSettings(clean_text=False, handle_chinese_chars=False)
        return Tokenizer("wordpiece", vocabulary + "\n\u200d\n##\u200d\n\x85\na中".encode(), settings=of_control)
    lines = [line.strip() for topic in pydoc_data.topics.topics.values() for line in topic.splitlines()]
    options = {"byte_fallback": True, "normalization_rule_name": "nmt_nfkc_cf"}
    suffix = {"treat_whitespace_as_suffix": True} if kind == "suffix" else {}
    return other_model([line for line in lines if line][:300], "bpe", **options, **suffix)


ODD = ("added", "jamo", "accents kept", "controls kept", "bytes", "suffix")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3), rules=st.sampled_from(RULES))
# A tokenizer that makes one character longer and drops others has as many as the text, at other places.
@example(texts=["한 c \u200d\u200d b", "İ\u0301 한 \u200d\u200da"], rules=RULES[1])
@example(texts=["x y\u200dc", "ﬁ\x01d c", "a\x1cb İ\x01c", "a中 b"], rules=RULES[1])
@example(texts=["f(a). it's (a.b) 'a': ``a``", "the cat."], rules=RULES[3])
@example(texts=["中 the  cat ▁ a▁b ß\u00adc", "é", "❤️ ☃ 中"], rules=RULES[3])
@pytest.mark.parametrize("kind", [*KINDS, *ODD])
def test_tags_are_those_of_the_places_of_the_pieces(kind: str, texts: list[str], rules: str) -> None:
    tokenizer = tokenizer_of(kind) if kind in KINDS else odd_tokenizer(kind)
    finder = finder_of(rules)
    sentences = [split_sentences(text, "en", "none") for text in texts]
    ids, tags, left_out = tokenize_and_tag(tokenizer, finder, texts, sentences)
    expected_ids, places = tokenizer.tokenize_sentences_with_places(texts, sentences)
    assert ids == expected_ids and left_out == 0
    for text, parts, of_text, at in zip(texts, sentences, tags, places, strict=True):
        found = finder.find(text, parts)
        assert of_text.dtype == np.uint8
        assert of_text.tolist() == piece_tags(found.sentences, found.spans, at).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_plain_sentences_are_tagged_without_places(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, finder = tokenizer_of(kind), finder_of(RULES[1])
    sentences = [["The cat's cab, (abc) 3.5!", "the cat. "], ["a"]]
    texts = list(map("\n".join, sentences))
    _, places = tokenizer.tokenize_sentences_with_places(texts, sentences)
    monkeypatch.setattr(span_tags, "piece_tags", None)
    _, tags, _ = tokenize_and_tag(tokenizer, finder, texts, sentences)
    found = [finder.find(*of) for of in zip(texts, sentences, strict=True)]
    expected = [piece_tags(of.sentences, of.spans, at) for of, at in zip(found, places, strict=True)]
    assert list(map(list, tags)) == list(map(list, expected)) and all(of.any() for of in expected)


@pytest.mark.parametrize(("lowercase", "strip_accents", "found"), [(True, False, 1), (False, True, 11_000)])
def test_growing_matches_every_character_that_a_normalizer_makes_longer(
    lowercase: bool, strip_accents: bool, found: int
) -> None:
    normalizer = wordpiece.engine(["[UNK]"], lowercase, WordPieceSettings(strip_accents)).normalizer
    chars = [chr(code) for code in range(0x80, 0x30000) if not 0xD800 <= code < 0xE000]
    longer = [char for char in chars if len(normalizer.normalize_str(char).strip()) > 1]
    assert len(longer) >= found and all(map(wordpiece.growing().fullmatch, longer))


def test_a_span_that_a_cut_goes_through_begins_anew() -> None:
    tags = np.array([0, 3, 2, 2, 5, 0], np.uint8)
    assert begin_anew(tags[2:]).tolist() == [3, 2, 5, 0] and begin_anew(tags[:2]).tolist() == [0, 3]
    assert begin_anew(tags[:0]).tolist() == [] and tags[2] == 2
    assert count_spans([tags[:2], begin_anew(tags[2:])], 3).tolist() == [2, 1, 0]
    assert count_spans([], 2).tolist() == [0, 0] and spans.MOST_KINDS * 2 + 1 == 255
