"""A file of sentences is read by what it holds, alike in every role; entities that a head cannot have are told."""

import gzip
import json
from pathlib import Path

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.entities.files import check_entities, parse, read
from spanbert_jax.tasks.entities.rows import WordExample
from spanbert_jax.tasks.example_files import Contents, Role

COLUMNS = "EU B-ORG\nrejects O\nGerman B-MISC\ncall O\n\nPeter B-PER\nhere O\n\nParis B-LOC\nis O\n"
RECORDS = [
    {"words": ["EU", "rejects", "German", "call"], "entities": [[0, 1, "ORG"], [2, 3, "MISC"]]},
    {"words": ["Peter", "here"], "entities": [[0, 1, "PER"]]},
    {"words": ["Paris", "is"], "entities": [[0, 1, "LOC"]]},
]
FORMS = {
    "columns": COLUMNS,
    "columns between TABs": COLUMNS.replace(" ", "\t"),
    "carriage returns": COLUMNS.replace("\n", "\r"),
    "both line ends": COLUMNS.replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + COLUMNS,
    "JSON lines": "".join(json.dumps(record) + "\n" for record in RECORDS),
    "a JSON list": json.dumps(RECORDS, indent=1),
}


@pytest.mark.parametrize("role", ["train", "dev", "predict"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_file_holds_and_not_its_name_says_how_it_is_read(tmp_path: Path, form: str, role: Role) -> None:
    expected = [
        (tuple(one["words"]), () if role == "predict" else tuple(tuple(span) for span in one["entities"]))
        for one in RECORDS
    ]
    data = FORMS[form].encode()
    for name, content in (("a.txt", data), ("a.jsonl", gzip.compress(data)), ("a.conll.gz", data), ("a", data)):
        (tmp_path / name).write_bytes(content)
        examples, warnings = read(str(tmp_path / name), role)
        assert [(one.words, one.spans) for one in examples] == expected and warnings == []
    examples, _ = read(Contents("standard input", data), role)
    assert [(one.words, one.spans) for one in examples] == expected


def test_plain_text_is_a_sentence_a_line_to_predict_where_nothing_else_is_in_the_file(tmp_path: Path) -> None:
    text = "Anna lives in Rome.\n\n[[laughs]] Vitamin O\r\n{Bob} sings.\n"
    expected = [
        ("1", ("Anna", "lives", "in", "Rome", ".")),
        ("3", ("[", "[", "laughs", "]", "]", "Vitamin", "O")),
        ("4", ("{", "Bob", "}", "sings", ".")),
    ]
    (tmp_path / "a.txt").write_bytes(gzip.compress(text.encode()))
    for source in (str(tmp_path / "a.txt"), Contents("standard input", text.encode())):
        assert [(one.id, one.words) for one in read(source, "predict")[0]] == expected
    for line in ("blood group O", "World War I", "Anna", "Hello world\nGood morning\n", "Anna\tlives\n"):
        examples, _ = read(Contents("standard input", line.encode()), "predict")
        assert [one.words for one in examples] == [tuple(one.split()) for one in line.splitlines()]
    (tmp_path / "a.md").write_text(text)
    with pytest.raises(
        UserError, match=r"a.md has line 1 'Anna lives in Rome.' and line 3 .*or plain text, .* in a .txt or on"
    ):
        read(str(tmp_path / "a.md"), "predict")
    for role in ("train", "dev"):
        with pytest.raises(UserError, match=r"a.txt has line 1 'Anna lives.*; expected columns, .* or objects such as"):
            read(str(tmp_path / "a.txt"), role)


def test_one_record_is_parsed_with_its_place_in_errors() -> None:
    assert parse({"words": ["Anna"], "entities": [[0, 1, "PER"]], "id": 3}, "x", "7", "dev") == WordExample(
        "3", ("Anna",), ((0, 1, "PER"),)
    )
    half = parse({"words": ["Anna"], "entities": [[0, 1, "\ud800"]]}, "x", "7", "dev")
    assert half.spans == ((0, 1, "\ufffd"),)  # half of a surrogate pair could not be written to a file
    text = WordExample("7", ("Anna", "."), text=" Anna.", places=((1, 5), (5, 6)))
    assert parse(" Anna.", "request 1", "7") == parse({"text": " Anna."}, "request 1", "7") == text
    for record, role, message in (
        (" ", "predict", "request 1: the text has no words; leave it out"),
        ("Anna", "dev", "request 1: 'Anna' has no entities; give an object such as"),
        ({"text": "Anna"}, "train", "request 1: no 'words', only 'text'"),
        ({"words": ["Anna"]}, "dev", "request 1: no 'entities', only 'words'"),
        ({"words": [""]}, "predict", r"request 1: 'words' is \[''\]; expected the sentence's words"),
        ({"words": ["a", 1]}, "predict", "request 1: 'word' is 1"),
        (
            {"words": ["a"], "entities": [[0, True, "X"]]},
            "dev",
            r"request 1: entity \[0, True, 'X'\] does not fit the 1 words",
        ),
        ({"words": ["a"], "entities": [[0, 1, None]]}, "dev", r"\[0, 1, None\]: 'type' is null; expected 'type' with"),
        ({"words": ["a"], "entities": [[0, 1, " "]]}, "train", r"entity \[0, 1, ' '\] has a blank type; name its type"),
    ):
        with pytest.raises(UserError, match=message):
            parse(record, "request 1", "7", role)


def example(*spans: tuple[int, int, str]) -> WordExample:
    return WordExample("s", ("U", "of", "T", "Press"), spans)


def test_entities_that_share_words_are_refused_where_words_are_tagged() -> None:
    assert check_entities([example((0, 1, "X"), (1, 4, "X"))], "a.jsonl", 0) == []
    with pytest.raises(
        UserError, match=r"a.jsonl, sentence s: entities \[0, 3, 'ORG'\] and \[0, 4, 'ORG'\] .*config.tagging.head=span"
    ):
        check_entities([example((0, 3, "ORG"), (0, 4, "ORG"))], "a.jsonl", 0)
    with pytest.raises(UserError, match=r"\[0, 1, 'NAME'\] and \[0, 1, 'PER'\] have words in common.*; remove one of"):
        check_entities([example((0, 1, "PER"), (0, 1, "NAME"))], "a.jsonl", 0)


def test_entities_that_the_span_head_cannot_have_are_counted() -> None:
    nested = example((0, 3, "ORG"), (0, 4, "ORG"), (3, 4, "ORG"))
    assert check_entities([nested], "a.jsonl", 4) == []
    two_types = example((0, 1, "PER"), (0, 1, "NAME"))
    assert check_entities([nested, two_types, two_types], "a.jsonl", 4) == [
        "2 span(s) have two entities, of which one is learnt and can be found; the first: a.jsonl, sentence s: "
        "(0, 1, 'NAME') and (0, 1, 'PER')"
    ]
    assert check_entities([example((0, 3, "A"), (2, 4, "B"))], "a.jsonl", 3) == [
        "1 pair(s) of entities cross, of which one can be found; the first: a.jsonl, sentence s: (0, 3, 'A') and "
        "(2, 4, 'B')"
    ]
    assert check_entities([nested], "a.jsonl", 2)[0].startswith(
        "2 entities are longer than config.tagging.max_width 2 words, and cannot be found; the first: a.jsonl"
    )
