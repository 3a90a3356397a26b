"""tools/find_spans.py on a text of its own: in colour, as JSON lines that file: reads, and as a page."""

import json
import re
from pathlib import Path

import pytest

from spanbert_jax.text.documents import hash_text
from tests.support import runs
from tools import find_spans

TEXT = (
    "Ada Lovelace & <he> lived in London. She wrote notes.\nBuilt in 1843, it <b>ran</b>.\n\n A second one from 1999.\n"
)
RULES = "capitals; regex:YEAR=[0-9]{4}"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text.txt"


def run(*given: object, expect: int = 0) -> runs.Called:
    return runs.here(lambda: find_spans.main(list(map(str, given))), expect)


def test_prints_spans_in_colour_and_counts(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    done = run("--rules", RULES, text)
    assert re.findall(r"\x1b\[30;4(\d)m(.*?)\x1b\[0m", done.stdout) == [
        ("3", "Ada Lovelace"),
        ("3", "London"),
        ("6", "1843"),
        ("6", "1999"),
    ]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
    assert "2 documents, 106 characters" in plain
    assert "capitals   2 spans" in plain and "YEAR   2 spans" in plain


def test_characters_that_a_terminal_acts_on_do_not_move_the_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = "He came home.\r\nThen he saw Paris.\r\nThen\f he left \vfor Berlin."
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
    done = run("--rules", "capitals", tmp_path / "text.jsonl")
    assert re.findall(r"\x1b\[30;4\dm(.*?)\x1b\[0m", done.stdout) == ["Paris", "Berlin"]


def test_json_lines_are_a_file_of_spans(text: Path, tmp_path: Path) -> None:
    done = run("--rules", RULES, "--json", text)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    first = TEXT.split("\n\n")[0]
    assert lines[0]["key"] == hash_text(first).hex()
    assert [(first[begin:end], kind) for begin, end, kind in lines[0]["spans"]] == [
        ("Ada Lovelace", "capitals"),
        ("London", "capitals"),
        ("1843", "YEAR"),
    ]
    (tmp_path / "spans.jsonl").write_text(done.stdout, encoding="utf-8")
    assert run("--rules", f"file:{tmp_path}/spans.jsonl", "--json", text).stdout == done.stdout
    assert len(run("--rules", RULES, "--json", "--documents", 1, text).stdout.splitlines()) == 1


def test_a_page_escapes_what_it_shows_and_needs_no_other_file(text: Path, tmp_path: Path) -> None:
    run("--rules", "regex:A=London|<he>", "--html", tmp_path / "spans.html", text)
    page = (tmp_path / "spans.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;ran" in page and "<b>" not in page and "&amp; <mark" in page
    assert page.count("<mark") == 2 and "London<sub>A</sub></mark>" in page and "&lt;he&gt;<sub>A</sub>" in page
    assert not re.search(r"(src|href)=|url\(|@import", page)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--rules", "names"), "error: 'names' is no rule for spans"),
        (("--rules", "sentence", "--html", "/no/such/place/a.html"), "there is no directory /no/such/place"),
        (("--rules", "sentence", "--html", "."), "--html . is a directory; name a file"),
    ],
)
def test_a_mistake_ends_in_one_line(given: tuple[str, ...], message: str, text: Path) -> None:
    done = run(*given, text, expect=1)
    assert message in done.stderr and done.stderr.count("\n") == 1
