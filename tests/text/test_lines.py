"""A file's bytes decide how it is read; a file that is no UTF-8 text gets advice that suits its bytes."""

import bz2
import gzip
import io
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from spanbert_jax.errors import UserError
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
