"""What readers of labelled data share: bytes in memory, JSON in any form, counted warnings."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.entities import files as entities
from spanbert_jax.tasks.example_files import (
    Contents,
    Warnings,
    checked_record,
    find_source,
    is_json,
    is_plain_text,
    read_lines,
    read_records,
    warn_of_one_type,
)
from spanbert_jax.tasks.question_answering import files as question_answering
from spanbert_jax.tasks.text_classification import files as text_classification

READERS: dict[str, tuple[Callable[[str], object], bytes]] = {  # the beginning of a file for each
    "a.jsonl.gz": (text_classification.read, b'{"label": "x", "text": "'),
    "a.tsv.gz": (text_classification.read, b"label\ttext\nx\t"),
    "a.json.gz": (question_answering.read, b'{"data": [{"paragraphs": [{"context": "'),
    "a.conll.gz": (entities.read, b"a O\nb"),
}
PACKINGS: dict[str, Any] = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def test_a_record_is_a_text_or_an_object() -> None:
    assert checked_record("a \ud800", "records[0]") == "a \ufffd"
    assert checked_record({"text": "a"}, "records[0]") == {"text": "a"}
    for record in (float("nan"), None, 3, b"a", ["a"]):
        with pytest.raises(
            UserError, match=r"records\[0\] is .*; expected a text, or an object with the task's fields"
        ):
            checked_record(record, "records[0]")


@pytest.mark.parametrize("source", ["~nobody-of-this-name/a.tsv", "a" * 300])
def test_a_path_that_cannot_be_looked_up_is_one_line(source: str) -> None:
    with pytest.raises(UserError, match=r"cannot read [~a].*; give the path of a file that may be read"):
        find_source(source, ())


@pytest.mark.parametrize("packing", PACKINGS)
def test_bytes_in_memory_that_are_no_text_are_told_without_a_path(packing: str) -> None:
    unpack = {"plain": "", "gzip": "gzip -dc [|] ", "bzip2": "bzip2 -dc [|] ", "xz": "xz -dc [|] "}[packing]
    for text, line, encoding in (("text\n\u201cgood\u201d\n", 2, "CP1252"), ("text\ncaf\u00e9\n", 2, "LATIN1")):
        data = PACKINGS[packing](text.encode(encoding))
        message = (
            rf"^standard input, line {line}: byte \d+ .* not UTF-8; convert it: {unpack}iconv -f {encoding} -t UTF-8$"
        )
        with pytest.raises(UserError, match=message):
            list(read_lines(Contents("standard input", data)))
    with pytest.raises(UserError, match=rf"^standard input, line 1: is UTF-16, .*: {unpack}iconv -f UTF-16 -t UTF-8$"):
        list(read_lines(Contents("standard input", PACKINGS[packing]("text\n".encode("utf-16")))))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('{"a": 1}\n\n{"a": 2}\n', ["x, line 1", "x, line 3"]),
        ('\n[{"a": 1},\n {"a": 2}]', ["x, [0]", "x, [1]"]),
        ('{\n"a": 1}', ["x"]),
        ("[]", []),
        ("\n \n", []),
    ],
)
def test_objects_are_read_from_lines_a_list_and_one_alone_with_their_places(text: str, places: list[str]) -> None:
    source = Contents("x", text.encode())
    found = list(read_records(source, read_lines(source)))
    assert found == [(place, {"a": i + 1}) for i, place in enumerate(places)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"^x, \[0\]: found a JSON int; expected objects with named fields, in a list or one on each line"),
        ("3", "^x: found a JSON int"),
        ('{"a": 1}\n[]', "^x, line 2: found a JSON list"),
        ('{"a": 1}\n{"a"', "^x, line 2: not JSON"),
        ('{\n"a": 1\n"b"}', "^x, line 3: not JSON"),
    ],
)
def test_what_is_no_object_is_told_with_its_place(text: str, message: str) -> None:
    source = Contents("x", text.encode())
    with pytest.raises(UserError, match=message):
        list(read_records(source, read_lines(source)))


def test_json_is_told_from_text_that_begins_with_a_bracket() -> None:
    for text in ('{"a": 1}', "{", '\n [ {"a"', "[]", "[\n{}]", "{}", json.dumps([{}], indent=2)):
        assert is_json([(1, text)])
    for text in ("[laughs] Yes.", "[[Rome]] is", "{Bob} sings", "[ O", '["a"]', "Rome", ""):
        assert not is_json([(1, text)])


def test_plain_text_is_claimed_by_a_name_or_standard_input() -> None:
    assert all(map(is_plain_text, (Path("a.txt"), Path("a.txt.gz"), Contents("standard input", b""))))
    assert not any(map(is_plain_text, (Path("a.md"), Path("a"), Path("a.gz"), Path("a.txt.zip"))))


def test_two_texts_for_a_model_with_one_token_type_are_told() -> None:
    assert warn_of_one_type(2, 5, "dev.tsv") == warn_of_one_type(1, 0, "dev.tsv") == []
    (line,) = warn_of_one_type(1, 1200, "dev.tsv")
    assert line.startswith("dev.tsv: 1,200 example(s) have two texts, and config.model.token_types is 1: both texts")


def test_warnings_are_one_line_a_kind_with_count_and_first_place() -> None:
    warnings = Warnings()
    assert warnings.lines() == []
    for i in range(1200):
        warnings.add("odd one(s)" if i % 2 else "even one(s)", f"line {i}")
    assert warnings.lines() == ["600 even one(s); the first: line 0", "600 odd one(s); the first: line 1"]


@pytest.mark.parametrize("name", READERS)
def test_two_megabytes_that_unpack_to_two_gigabytes_take_little_memory(name: str, tmp_path: Path) -> None:
    read, begins = READERS[name]
    path = tmp_path / name
    path.write_bytes(gzip.compress(begins) + gzip.compress(b"a" * 2**20) * 2000)
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"{name}: its first [\d,]+ bytes of gzip give over 67,\d+,\d+ bytes of text"):
        read(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000_000
