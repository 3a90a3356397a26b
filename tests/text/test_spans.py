"""Rules for spans on golden sentences, and flat spans of several rules."""

import functools
import importlib
import itertools
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.text import span_rules, tagger
from spanbert_jax.text.span_rules import MAX_CHARACTERS, MAX_WORDS, MOST_STEPS, Span, flat
from spanbert_jax.text.span_syntax import parse_rules
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.words import split_words

FOX = "The quick brown fox didn't jump over 3,500 lazy dogs in London."
QUEEN = "Yesterday the Bank of England paid Mr. J. Smith for NASA's Apollo."


@functools.cache
def finder(rules: str) -> SpanFinder:
    return SpanFinder(rules)


def found(rules: str, *sentences: str) -> list[tuple[str, str]]:
    """(kind, text) of the spans of a document of these sentences."""
    made = finder(rules).find(" ".join(sentences), sentences)
    return [
        (finder(rules).kinds[kind - 1], of.text[of.places()[begin][0] : of.places()[end - 1][1]])
        for of, spans_of in zip(made.sentences, made.spans, strict=True)
        for begin, end, kind in spans_of
    ]


@pytest.mark.parametrize(
    ("rule", "sentence", "expected"),
    [
        ("sentence", FOX, [FOX]),
        ("pos:NP=D?[AC]*N+", FOX, ["The quick brown fox", "jump", "3,500 lazy dogs", "London"]),
        ("pos:PP=ID?A*N+", QUEEN, ["of England", "for NASA"]),
        ("pos:VP=V+R?", FOX, ["didn't"]),
        ("capitals", QUEEN, ["Bank of England", "Mr. J. Smith", "NASA", "Apollo"]),
        ("capitals", "Paris is in France. ", ["Paris", "France"]),
        ("capitals", "Houses are in The Hague, he says; I know John Smith.", ["Hague", "John Smith"]),
        (r"regex:YEAR=\b[12][0-9]{3}\b", "From 1999 to 20010, not 1812-ish.", ["1999", "1812-ish"]),
        ("regex:OY=o[xy]", FOX, ["fox"]),
        ("regex:ANY=(q|quick b)", FOX, ["quick brown"]),
        (r"regex:E=\pL+é", "Le café de l'été.", ["café", "l'été"]),
    ],
)
def test_golden_sentences(rule: str, sentence: str, expected: list[str]) -> None:
    assert [text for _, text in found(rule, sentence)] == expected


def test_letters_and_names_are_the_taggers() -> None:
    parser = importlib.import_module("textblob.en").parser
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # textblob leaves the file of its lexicon open
        parser.find_tags(["a"])
    for sentence in (FOX, QUEEN, "Walking about, she GAVE 42% up to xyzzies and e.g. the-best-known Einsteinian ones."):
        words = split_words(sentence).words
        tags = [tag for _, tag in parser.find_tags(words)]
        letter = {tag: name for name, of in tagger.LETTERS.items() for tag in of}
        assert tagger.pos_letters(words) == "".join(letter.get(tag, tagger.OTHER) for tag in tags)
    assert tagger.pos_letters([]) == ""


def test_the_tagger_imports_neither_nltk_nor_scipy() -> None:
    code = "import sys; from spanbert_jax.text import tagger; print(tagger.pos_letters(['a', 'cat']), *sys.modules)"
    letters, *modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert letters == "DN" and not {"nltk", "scipy", "textblob", "textblob.en"} & set(modules)


def test_a_full_table_gives_the_same_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    words = split_words(FOX).words
    expected = tagger.pos_letters(words)
    tagger.tables.cache_clear()
    monkeypatch.setattr(tagger, "KEPT_WORDS", 2)
    assert tagger.pos_letters(words) == expected
    assert max(map(len, tagger.tables("letter"))) <= 2


def test_a_gazetteer_takes_the_longest_entry_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "place.names.txt").write_text("New York\n\nNew York City\nYork\ncity\nO'Hare\n", encoding="utf-8")
    rule = f"gazetteer:{tmp_path}/place.names.txt"
    sentence = "New York City, a city near York, has no O'Hare; Yorkshire and new york do not count."
    assert [text for _, text in found(rule, sentence)] == ["New York City", "city", "York", "O'Hare"]
    assert [text for _, text in found(rule, "She left York for New York")] == ["York", "New York"]
    assert finder(rule).kinds == ("place",)


def test_a_gazetteer_takes_no_longer_for_many_entries_with_the_same_first_word(tmp_path: Path) -> None:
    (tmp_path / "books.txt").write_text("".join(f"The Book {i}\n" for i in range(20_000)), encoding="utf-8")
    made = SpanFinder(f"gazetteer:{tmp_path}/books.txt")
    sentence = "The Book of The " * 2000 + "Book 7"
    began = time.process_time()
    assert made.find(sentence, [sentence]).spans == [[(7999, 8002, 1)]]
    assert time.process_time() - began < 1


def test_an_earlier_rule_wins_and_no_span_crosses_a_sentence() -> None:
    sentences = ("The old Bank of England paid.", "Smith saw it.")
    assert found("capitals; pos:NP=D?[AC]*N+", *sentences) == [("capitals", "Bank of England"), ("capitals", "Smith")]
    assert found("pos:NP=D?[AC]*N+; capitals", *sentences) == [
        ("NP", "The old Bank"),
        ("NP", "England"),
        ("NP", "Smith"),
    ]
    assert finder("pos:A=A; regex:A=x; sentence").kinds == ("A", "sentence")


def test_a_pickled_finder_finds_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("quick brown\n")
    made = SpanFinder(rf"regex:N=\d+; pos:NP=D?[AC]*N+; capitals; gazetteer:{tmp_path}/a.txt")
    again = pickle.loads(pickle.dumps(made))
    assert again.find(FOX, [FOX]) == made.find(FOX, [FOX]) and again.kinds == made.kinds
    assert list(again.files) == [f"{tmp_path}/a.txt"]


def test_no_pattern_hangs_and_sentences_that_are_none_are_counted() -> None:
    """(a+)+$ takes Python's `re` 2**40 steps here; a.*b takes the square of the length of a sentence."""
    began = time.process_time()
    assert found("regex:X=(a+)+$", "a" * 40 + "b") == []
    long = "a " * (MAX_WORDS + 1)
    made = finder("regex:X=a; sentence").find(long, [long, "a"])
    assert made.left_out == 1 and [len(of) for of in made.spans] == [1, 1]
    assert made.spans[0] == [(0, MAX_WORDS + 1, 2)] and finder("sentence").find(long, [long]).left_out == 0
    slow = " ".join(["a"] * MAX_WORDS)
    assert len(finder("regex:X=a[a ]*b|a").find(slow, [slow]).spans[0]) == MAX_WORDS
    assert time.process_time() - began < 10


def test_a_sentence_of_few_words_is_searched_up_to_so_many_characters() -> None:
    """a|a.*b takes the square of the length of a sentence, however few words it has."""
    limit = "a" * MAX_CHARACTERS
    began = time.process_time()
    made = finder("regex:X=a|a.*b").find(f"{limit} {limit}a", [limit, f"{limit}a"])
    assert time.process_time() - began < 5
    assert made.left_out == 1 and made.spans == [[(0, 1, 1)], []]


def test_a_pattern_has_so_many_steps_and_a_class_of_letters_is_few() -> None:
    assert found(r"regex:NAMES=(\p{Lu}\pL+[ ]){1,20}", "Élan Vital met Łódź here.") == [
        ("NAMES", "Élan Vital"),
        ("NAMES", "Łódź"),
    ]
    assert found(r"regex:X=[一-\x{9fff}é]+", "é 中文.") == [("X", "é"), ("X", "中文")]
    with pytest.raises(UserError, match=rf"the pattern has [\d,]+ steps, and {MOST_STEPS} are the most"):
        SpanFinder("regex:X=a|(.?){100}b")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("", r"^'' is no rule for spans; the rules are sentence, capitals, regex:NAME=PATTERN"),
        ("nouns", "'nouns' is no rule for spans"),
        ("capitals: x", "'capitals: x' is no rule"),
        ("gazetteer:", "'gazetteer:' is no rule"),
        ("capitals;sentence", "'capitals;sentence' is no rule for spans; .* with '; ' between two"),
        ("pos:NP", "rule 'pos:NP' has no pattern; write pos:NAME=PATTERN"),
        ("regex:a,b=x", "'a,b' is no name of a kind"),
        ("capitals; regex:X=[a-z]+;", r"rule 'regex:X=\[a-z\]\+;' ends in ';'; leave it out, or write \[;\] for"),
    ],
)
def test_a_rule_that_does_not_parse_is_refused(rules: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_rules(rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("pos:NP=(", r"rule 'pos:NP=\(': the pattern does not parse: missing \)"),
        (r"regex:X=(.)\1", "the pattern does not parse: invalid escape sequence.*without look-around"),
        ("pos:NP=DX", "'X' stands for no part of speech; the letters are D, A, N"),
        ("gazetteer:/no/such.txt", "cannot read /no/such.txt: No such file"),
        ("spacy:no_such_model", r"spaCy cannot load 'no_such_model' \(.*; install it with pip, or give its directory"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(rules: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpanFinder(rules)


@pytest.mark.parametrize(
    ("rule", "library"), [("capitals", "textblob"), ("regex:A=b", "re2"), ("pos:A=N", "textblob"), ("spacy:x", "spacy")]
)
def test_a_library_that_is_not_installed_is_named_with_the_cure(
    rule: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = span_rules.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else real(name))

    def missing(name: str) -> str:
        raise tagger.importlib.metadata.PackageNotFoundError(name)

    if library == "textblob":
        monkeypatch.setattr(tagger.importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"not installed: pip install -r requirements-spans.txt"):
        SpanFinder(rule)


def test_more_kinds_than_a_byte_holds_are_refused() -> None:
    with pytest.raises(UserError, match="has 128 kinds of spans; 127 are the most"):
        SpanFinder("; ".join(f"regex:K{i}=a" for i in range(128)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), max_size=5), max_size=3), st.data())
def test_flat_spans_are_those_that_overlap_nothing_before_them(
    rows: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    by_rule = [[(begin, begin + width, 1) for begin, width in row] for row in rows]
    kept: list[Span] = []
    for span in itertools.chain(*by_rule):
        if all(span[1] <= other[0] or other[1] <= span[0] for other in kept):
            kept.append(span)
    assert flat(by_rule) == sorted(kept)


@pytest.mark.parametrize(
    "pattern", ["D?[AC]*N+", "(N|NA)(D|AD)", "A|AN|D?N", "[^N]N", "N.D", "[A-D]+", r"\SN", "N*", "D$"]
)
def test_searching_run_by_run_finds_what_a_search_of_the_sentence_finds(pattern: str) -> None:
    rng = np.random.default_rng(0)
    options = re2.Options()
    options.longest_match = True
    compiled = re2.compile(pattern, options)
    vocabulary = {"D": "the", "A": "old", "N": "cat", "V": "saw", "C": "3", "O": "!"}
    rule = finder(f"pos:X={pattern}")
    for _ in range(30):
        letters = "".join(rng.choice(list(vocabulary), rng.integers(0, 12)))
        expected = [match.span() for match in compiled.finditer(letters) if match.end() > match.start()]
        text = " ".join(vocabulary[letter] for letter in letters)
        assert tagger.pos_letters(split_words(text).words) == letters
        assert [(begin, end) for begin, end, _ in rule.find(text, [text]).spans[0]] == expected
