"""A file's bytes decide how it is read; a file that is no UTF-8 text gets advice that suits its bytes."""

import bz2
import gzip
import io
import lzma
import random
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.text import lines
from spanbert_jax.text.lines import Content, hash_file, numbered_lines, read_lines

PACKINGS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, bz2.compress, lzma.compress]


def lines_of(path: Path, content: bytes) -> list[tuple[int, str]]:
    path.write_bytes(content)
    return list(read_lines(path))


@pytest.mark.parametrize("pack", PACKINGS)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_compressed_files_are_told_by_their_bytes_whatever_their_name(
    tmp_path: Path, pack: Callable[[bytes], bytes], name: str
) -> None:
    assert lines_of(tmp_path / name, pack("größer\nb\n".encode())) == [(1, "größer\n"), (2, "b\n")]


def test_lines_end_at_lf_or_in_a_file_without_any_at_cr(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert lines_of(path, b"\xef\xbb\xbfa\r\nb\rc\n\xe2\x80\xa8d") == [(1, "a\r\n"), (2, "b\rc\n"), (3, "\u2028d")]
    assert lines_of(path, b"a\rb\r\rc") == [(1, "a\n"), (2, "b\n"), (3, "\n"), (4, "c")]
    assert lines_of(path, b"") == []


def test_universal_ends_and_pieces_of_a_long_line() -> None:
    found = numbered_lines("text", Content(io.BytesIO(b"abcde\rf\r\ng\n")), universal=True, limit=3)
    assert list(found) == [(1, "abc"), (1, "de\n"), (2, "f\n"), (3, "g\n")]


@pytest.mark.parametrize(
    ("content", "line", "encoding"),
    [
        ("Good.\nGrün.\n".encode("latin-1"), "line 2: byte 8 \\(0xfc\\) is not UTF-8", "LATIN1"),
        ("Grün.\n“good”\n".encode("cp1252"), "line 1: byte 2 \\(0xfc\\) is not UTF-8", "CP1252"),  # of all its lines
        ("“good”\n".encode("cp1252"), "line 1: byte 0 \\(0x93\\) is not UTF-8", "CP1252"),
        ("Grün.\n".encode("utf-16"), "line 1: is UTF-16, not UTF-8", "UTF-16"),
        ("Grün.\n".encode("utf-32"), "line 1: is UTF-32, not UTF-8", "UTF-32"),
        ("Good.\nGrün.\n".encode("utf-16-le"), "line 1: is UTF-16LE without a byte order mark", "UTF-16LE"),
        ("Good.\nGrün.\n".encode("utf-16-be"), "line 1: is UTF-16BE without a byte order mark", "UTF-16BE"),
    ],
)
@pytest.mark.parametrize("pack", PACKINGS[:2])
def test_the_command_in_the_advice_gives_the_text(
    tmp_path: Path, content: bytes, line: str, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "my text.txt"
    with pytest.raises(UserError, match=line) as caught:
        lines_of(path, pack(content))
    assert "\n" not in str(caught.value)
    command = str(caught.value).partition("convert it: ")[2]
    assert f"iconv -f {encoding} -t UTF-8" in command
    subprocess.run(command, shell=True, check=True)
    text = content.decode({"LATIN1": "latin-1"}.get(encoding, encoding))
    assert "".join(found for _, found in read_lines(tmp_path / "my text.txt.utf8")) == text


@pytest.mark.parametrize(("text", "encoding"), [("Привет, мир.\n", "koi8-r"), ("日本語の文。\n", "shift-jis")])
def test_no_latin_encoding_is_advised_for_other_alphabets(tmp_path: Path, text: str, encoding: str) -> None:
    with pytest.raises(UserError, match=r"line 2: byte 3 .* find out its encoding .* iconv -f ENCODING -t UTF-8"):
        lines_of(tmp_path / "a.txt", b"a.\n" + text.encode(encoding))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x28\xb5\x2f\xfd....", "is compressed by zstd, no text; decompress it: zstd -d"),
        (gzip.compress(b"PK\x03\x04....", mtime=0), "compressed by gzip, is a zip archive"),
        (b"%PDF-1.7", "is a PDF, no text; give its text: pdftotext"),
        (b"x" * 257 + b"ustar\x00", "is a tar archive"),
        (gzip.compress(b"abc\n" * 99, mtime=0)[:-9], r"after line \d+: broken gzip"),
        (b"\x1f\x8b no gzip", "after line 0: broken gzip"),
        (bz2.compress(b"abc\n" * 99)[:-9], r"after line \d+: broken bzip2"),
        (b"BZh9 no bzip2", "after line 0: broken bzip2"),
        (lzma.compress(b"abc\n" * 99)[:-9], r"after line \d+: broken xz"),
    ],
)
def test_what_is_no_text_is_refused_with_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        lines_of(tmp_path / "a.txt", content)
    assert "a.txt" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none: No such file"):
        list(read_lines(tmp_path / "none"))


def test_content_hashes_the_whole_file_also_where_reading_stopped_early(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 999)
    with open(path, "rb") as file:
        content = Content(file)
        content.read(10)
        assert content.hexdigest() == hash_file(path) and content.size == 256 * 999


@pytest.mark.parametrize("pack", PACKINGS[1:])
def test_a_file_of_repetitions_is_refused_before_it_fills_the_memory(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_UNPACKED", 2**22)
    path = tmp_path / "a.jsonl"
    path.write_bytes(pack(b"a" * 2**20) * 1000)  # 1 GB, in one line
    tracemalloc.start()
    with pytest.raises(
        UserError, match=r"a.jsonl: its first [\d,]+ bytes of .* give over 4,\d+,\d+ bytes of text; .*-dc .*a.jsonl > F"
    ):
        list(read_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000
    with open(path, "rb", buffering=0) as raw:  # in parts, of which none is kept, the same file can be read
        parts = numbered_lines(path, raw, limit=2**20)
        assert sum(len(next(parts)[1]) for _ in range(20)) == 20 * 2**20


def test_text_compresses_too_little_to_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rng = tmp_path / "a.gz", random.Random(1)
    path.write_bytes(gzip.compress(b"a\n" * 10**5))  # repetitions, and few bytes
    assert len(list(read_lines(path))) == 10**5
    monkeypatch.setattr(lines, "MOST_LINES", 10)
    monkeypatch.setattr(lines, "MOST_UNPACKED", 1000)
    records = "".join(f'{{"id": {i}, "label": "yes", "text": "{rng.choice("abcdef") * 3}"}}\n' for i in range(9999))
    for pack in PACKINGS[1:]:
        path.write_bytes(pack(records.encode()))
        assert "".join(line for _, line in read_lines(path)) == records


def test_a_file_of_tiny_lines_is_refused_where_it_has_more_of_them_than_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_LINES", 1000)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a O\n" * 999))
    assert len(list(read_lines(path))) == 999
    path.write_bytes(gzip.compress(b"a O\n" * 10**5))  # about 500 bytes
    with pytest.raises(UserError, match=r"a.gz: its first \d+ bytes of gzip give over 1,000 lines; .*gzip -dc"):
        list(read_lines(path))


def test_a_line_has_a_limit_where_lines_are_given_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_CHARS", 10)
    assert lines_of(tmp_path / "a", b"123456789\n1234567890") == [(1, "123456789\n"), (2, "1234567890")]
    with pytest.raises(UserError, match=r"a, line 2: is longer than 10 characters, the most .*; cut it"):
        lines_of(tmp_path / "a", b"123456789\n1234567890\n")


def test_an_xz_file_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**29}]
    with pytest.raises(UserError, match=r"cannot read .* takes over 268,435,456 bytes of memory; give it decompressed"):
        lines_of(tmp_path / "a.xz", lzma.compress(b"a\n", filters=filters))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 50))
def test_xz_is_decompressed_as_the_standard_library_does(parts: list[bytes], padding: int, step: int) -> None:
    packed = (b"\0" * 4 * padding).join(map(lzma.compress, parts)) + b"\0" * 4 * padding
    file = io.BufferedReader(lines.XzFile(io.BytesIO(packed)), step)
    found = b"".join(iter(lambda: file.read(step), b""))
    assert found == b"".join(parts)
    if not padding:
        assert found == lzma.decompress(packed)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(["a", "é", "中", "😀", "\n", "\r\n"]), max_size=40), st.integers(0, 40), st.integers(1, 9)
)
def test_the_first_byte_that_is_no_utf8_is_found_whatever_the_parts(chars: list[str], at: int, part: int) -> None:
    before = "".join(chars[:at]).encode()
    data = before + b"\xff" + "".join(chars[at:]).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PART_BYTES", part)
        with pytest.raises(UserError, match=rf"line {before.count(bytes([10])) + 1}: byte {len(before)} \(0xff\)"):
            list(numbered_lines("x", io.BytesIO(data), whole=data))  # type: ignore[arg-type]
