"""Every kind of file gives the same documents, and every bad one a message with its place."""

import gzip
import hashlib
import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.text import documents, formats
from spanbert_jax.text.documents import Document, find_files, in_share, make_documents, read_files

TEXTS = ["First line.\nSecond line.", "Ein zweiter Text, größer.", "中文。\nThree."]


def write(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def wiki(texts: list[str]) -> str:
    return "".join(
        f'<doc id="{i}" url="http://x?curid={i}" title="A &amp; B {i}">\nA & B {i}\n\n{text}\n\n</doc>\n'
        for i, text in enumerate(texts)
    )


def texts_of(path: Path, document_break: str = "blank_line") -> list[str]:
    return [document.text.strip() for document in read_files([path], document_break)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", "\n\n\n".join(TEXTS)),
        ("plain.txt.gz", "\n \n".join(TEXTS) + "\n"),
        ("bom.txt", "\ufeff\n" + "\n\n".join(TEXTS)),
        ("windows.txt", "\r\n\r\n".join(TEXTS).replace("line.\nS", "line.\r\nS").replace("。\n", "。\r\n")),
        ("lines.jsonl", "\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS) + "\n\n"),
        ("lines.jsonl.gz", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)),
        ("wiki_00", wiki(TEXTS)),
        ("wiki_json_00", "".join(json.dumps({"id": "1", "text": text}) + "\n" for text in TEXTS)),
        ("wiki.txt.gz", "\n" + wiki(TEXTS)),
        ("unclosed", wiki(TEXTS).removesuffix("</doc>\n")),
        ("plain.txt", "\r\r".join(TEXTS).replace("\n", "\r")),
        ("lines.ndjson", "".join(json.dumps({"text": text}) + "\r\n" for text in TEXTS)),
        ("list.json", json.dumps([{"text": text} for text in TEXTS])),
        ("list.txt", json.dumps([{"id": {"a": []}, "text": text} for text in TEXTS], indent=1)),
        ("objects", "\n".join(json.dumps({"id": [1], "text": text}, indent=2) for text in TEXTS)),
        ("one_a_line_in_a_list.json", "[" + ",\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n]\n"),
    ],
)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, content: str) -> None:
    assert texts_of(write(tmp_path / name, content)) == TEXTS


@pytest.mark.parametrize(
    "first", ["[Illustration]", "{{Infobox}}", "[1] A reference.", "[ ] To do.", "[[Rome]]", "<unk>"]
)
def test_plain_text_may_begin_with_a_bracket(tmp_path: Path, first: str) -> None:
    assert texts_of(write(tmp_path / "a.txt", f"{first}\n\tA line.\n")) == [f"{first}\n\tA line."]


@pytest.mark.parametrize("chars", [7, 40])
def test_json_values_in_pieces_are_whole_and_errors_know_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chars: int
) -> None:
    monkeypatch.setattr(documents, "MAX_CHARS", chars)
    for name, content in (
        ("a", json.dumps([{"text": "a b c"}, {"text": "d " * 5}], indent=1)),
        ("b", json.dumps([{"text": "a b c"}, {"text": "d " * 5}])),
        ("c", '{"text": "a b c"}\n{"text": "d d d d d "}'),
    ):
        assert "".join("".join(texts_of(write(tmp_path / name, content))).split()) == "abcddddd"
    with pytest.raises(UserError, match="d, line 5: no string field 'text', but 'text' is null"):
        texts_of(write(tmp_path / "d", '[\n {\n  "text": "a"\n },\n {\n  "text": null\n }\n]'))


def test_document_break_file_makes_a_plain_file_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\n".join(TEXTS))
    assert texts_of(path, "file") == ["\n\n".join(TEXTS)]
    assert texts_of(write(tmp_path / "wiki", wiki(TEXTS)), "file") == TEXTS


def test_a_title_that_is_no_line_of_its_own_stays(tmp_path: Path) -> None:
    content = '<doc id="1" url="" title="Rome">\nRome is a city.\nRome\n</doc>\n'
    assert texts_of(write(tmp_path / "w", content)) == ["Rome is a city.\nRome"]


def test_keys_are_equal_for_equal_documents_alone_whatever_the_file(tmp_path: Path) -> None:
    one = list(read_files([write(tmp_path / "a.txt", "Hello.\n\nWorld.\n\nHello.\n")], "blank_line"))
    two = list(read_files([write(tmp_path / "b.txt", "World.\n\nOther.\n")], "blank_line"))
    assert one[0].key == one[2].key != one[1].key == two[0].key != two[1].key


def test_the_contents_of_files_are_hashed_while_they_are_read(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.txt", "Hello.\n"), write(tmp_path / "b.txt.gz", "World.\n")]
    contents: dict[Path, str] = {}
    list(read_files(paths, "blank_line", contents))
    assert contents == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_fractions_rise_to_one(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.txt", "\n\n".join(TEXTS * 2000)) for i in range(3)]
    fractions = [document.fraction or 0.0 for document in read_files(paths, "blank_line")]
    assert fractions == sorted(fractions) and 0 < fractions[0] < 0.2 and fractions[-1] == 1.0


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40), max_size=30))
def test_a_long_document_is_cut_at_lines_and_nothing_is_lost(lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "MAX_CHARS", 50)
        parts = list(make_documents([(text, None)]))
    assert all(len(part.text) <= 50 for part in parts)
    assert "".join("".join(part.text.split()) for part in parts) == "".join(text.split())
    assert len({part.key for part in parts}) <= 1
    assert all(part.text.endswith(tuple("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")) for part in parts)


def test_memory_stays_bounded_in_one_enormous_line(tmp_path: Path) -> None:
    path = write(tmp_path / "big.txt", "word " * 4_000_000)  # 20 MB, no line's end
    tracemalloc.start()
    sizes = [len(document.text) for document in read_files([path], "blank_line")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 20_000_000 and max(sizes) <= documents.MAX_CHARS
    assert peak < 15_000_000


def test_memory_stays_bounded_in_a_list_of_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "big.json", json.dumps([{"text": "word " * 200}] * 20_000))  # 20 MB
    tracemalloc.start()
    count = sum(1 for _ in read_files([path], "blank_line"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 15_000_000


@pytest.mark.parametrize("content", ['{"text": "%s"}\n', '[{"text": "%s"}]\n', '{\n"text": "%s"\n}\n'])
def test_a_json_value_has_a_limit(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "JSON_CHARS", 5_000)
    monkeypatch.setattr(documents, "MAX_CHARS", 1_000)
    assert len(texts_of(write(tmp_path / "a.jsonl", content % ("a" * 900)))) == 1
    with pytest.raises(UserError, match=r"line 1: no whole JSON value within 5,000 characters"):
        texts_of(write(tmp_path / "b.jsonl", content % ("a" * 9_000)))


def test_a_value_of_many_lines_takes_time_in_proportion(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"text": "a", "more": [\n' + "1,\n" * 300_000 + "1]}")
    began = time.process_time()
    assert texts_of(path) == ["a"]
    assert time.process_time() - began < 10  # hours, if the text were copied at each line


def test_the_share_of_keys_is_the_one_asked_for() -> None:
    keys = [document.key for document in make_documents((f"document {i}", None) for i in range(20_000))]
    assert 0.045 < sum(in_share(key, 0.05) for key in keys) / len(keys) < 0.055
    assert all(in_share(key, 0.05) for key in keys if in_share(key, 0.01))
    assert not any(in_share(key, 0.0) for key in keys)


def test_files_are_found_by_several_globs_in_order_each_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        write(tmp_path / name, "x")
    (tmp_path / "folder.txt").mkdir()
    found = find_files(f"{tmp_path}/*.txt, {tmp_path}/./a*,{tmp_path}/*.md")
    assert [path.name for path in found] == ["a.txt", "b.txt", "c.md"]


def test_a_pipe_which_can_be_read_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"/pipe is no regular file, and a corpus is read more than once; write it to"):
        find_files(f"{tmp_path}/pipe")


def test_globs_that_find_nothing_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"'.*none\*' matches no file .*; .* holds b.txt, folder/$"):
        find_files(f"{tmp_path}/none*")
    with pytest.raises(UserError, match=r"matches only directories; name the files in them: .*/\*"):
        find_files(str(tmp_path))
    with pytest.raises(UserError, match="names no file"):
        find_files(" , ")


def test_an_empty_or_unreadable_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", "text")
    write(tmp_path / "b.txt", "")
    with pytest.raises(UserError, match=r"b.txt is empty"):
        find_files(f"{tmp_path}/*.txt")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(documents, "open", refuse, raising=False)  # root may read everything
    with pytest.raises(UserError, match=r"cannot read .*a.txt: Permission denied"):
        find_files(f"{tmp_path}/a.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("blank.txt", b"\n  \n\n", "holds no text"),
        ("empty.jsonl", b'{"text": " "}\n', "holds no text"),
        ("latin1.txt", "Good.\nGrün.\n".encode("latin-1"), r"line 2: byte 8 \(0xfc\) is not UTF-8"),
        ("utf16.txt", "Hello\n".encode("utf-16"), "line 1: is UTF-16"),
        ("binary.txt", b"abc\nPK\0\x01", "line 2: holds a NUL byte"),
        ("image.txt", b"\x89PNG\r\n\x1a\n\0", r"line 1: byte 0 \(0x89\)"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": "b"\n', "line 2: not JSON"),
        (
            "other.jsonl",
            b'{"text": "a"}\n\n{"body": "b", "id": 3}\n',
            "line 3: no string field 'text', but the fields body, id",
        ),
        ("number.jsonl", b'{"text": 5}\n', "line 1: no string field 'text'"),
        ("list.jsonl", b"[1]\n", "line 1: no string field 'text', but a number"),
        (
            "null.json",
            b'{"id": 1, "text": null}\n{"text": "b"}\n',
            "line 1: no string field 'text', but 'text' is null",
        ),
        ("null", b'null\n{"text": "b"}\n', "line 1: no string field 'text', but null"),
        ("part.json", b'{"id": 1, "content": "a"}\n', "line 1: no string field 'text', but the fields id, content"),
        ("strings.json", b'["a", "b"]', "line 1: no string field 'text', but a string"),
        ("cut.json", b'[\n{"text": "a"},\n{"text": "b"', "line 3: not JSON"),
        ("cut_at_an_item.json", b'[{"text": "a"},\n', "ends within a JSON list"),
        ("words.jsonl", b"Some text.\n", "line 1: not JSON"),
        (
            "page",
            b"\n<!DOCTYPE html>\n<p>a",
            "line 2: begins like markup .'<!DOCTYPE html>'.;.*take the text out of its",
        ),
        ("dump", b'<mediawiki xmlns="http://x">\n', "line 1: begins like markup .*: run WikiExtractor on it"),
        ("table", b"id\ttext\n1\ta\n2\tb\n", "line 1: begins like a table with tabs .'id"),
        ("table.csv", b"id,text\n1,a\n", "line 1: begins like CSV .'id,text'"),
        ("letter", b"{\\rtf1 a}", "line 1: begins like RTF"),
        ("outside", b'<doc id="1" url="" title="A">\nA\nText.\n</doc>\nLoose.\n', "line 5: text outside of <doc"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    for path in (write(tmp_path / name, content), write(tmp_path / (name + ".gz"), content)):
        with pytest.raises(UserError, match=message) as caught:
            texts_of(path)
        assert str(path) in str(caught.value)


def test_half_characters_in_json_do_not_stop_a_build(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "half \\ud83d here \\ud83d\\ude00"}\n')
    assert texts_of(path) == ["half \ufffd here 😀"]


def test_the_real_wikipedia_files_have_their_articles(shared_data: Path) -> None:
    path = shared_data / "text" / "enwiki2015" / "wiki_00"
    found = list(read_files([path], "blank_line"))
    raw = path.read_text("utf-8")
    assert len(found) == raw.count("<doc id=")
    assert found[0].text.startswith("Anarchism is a political philosophy")
    assert not any("<doc" in document.text or "</doc>" in document.text for document in found)
    assert isinstance(found[0], Document)
