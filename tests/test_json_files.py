"""JSON is read as the standard library reads it, within limits; whatever else comes is a ValueError of one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_jax import json_files
from spanbert_jax.json_files import MOST_NESTED, NotWhole, parse, parse_first, read

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)


def nested(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


@given(VALUES, st.booleans(), st.text(" \n", max_size=3))
def test_a_value_is_read_as_the_standard_library_reads_it(value: Any, escaped: bool, space: str) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    assert parse(space + text) == parse(b"\xef\xbb\xbf" + text.encode()) == value
    if isinstance(value, dict | list | str):  # a number may go on
        assert parse_first(space + text + "," + text, len(space)) == (value, len(space) + len(text))
        with pytest.raises(NotWhole):
            parse_first(text[:-1], 0)


@given(st.binary(max_size=30) | st.text('[]{}",:truefalsn0-9eE.\\ ', max_size=30).map(str.encode))
def test_bytes_are_a_value_or_a_value_error_of_one_line(data: bytes) -> None:
    try:
        value = parse(data)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
    else:
        assert json.dumps(value) == json.dumps(json.loads(data.decode("utf-8-sig")))


@pytest.mark.parametrize("kind", ["list", "object"])
def test_nesting_has_a_limit_far_below_that_of_the_stack(kind: str) -> None:
    for depth in (1, 2, MOST_NESTED):
        parse(nested(depth, kind))
        parse_first(nested(depth, kind), 0)
    for depth in (MOST_NESTED + 1, 900, 10**5):
        for read_text in (parse, lambda text: parse_first(text, 0)):
            with pytest.raises(ValueError, match="nested more than 100 deep"):
                read_text(nested(depth, kind))
    wide = json.dumps([[[]] * 50] * 50)  # as many brackets, and no depth
    assert parse(wide) == json.loads(wide)


@pytest.mark.parametrize(
    ("text", "words"), [("9" * 5000, "a number has more than 4,300 digits"), ("", "Expecting value")]
)
def test_what_is_refused_is_said(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_a_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    assert read(path) == read(str(path)) == {"a": 1}
    monkeypatch.setattr(json_files, "MOST_BYTES", 7)
    with pytest.raises(ValueError, match="it has more than 7 bytes"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
