"""Files to documents: plain text, JSON lines and WikiExtractor's output, gzipped or not, in any mix.

Invariant: the documents, in their order, depend on the files' names and contents alone, and memory stays bounded
by `MAX_CHARS`, or a line of JSON, whatever the size of a file or document.
"""

import codecs
import contextlib
import glob
import gzip
import hashlib
import html
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from spanbert_jax.errors import UserError

_KINDS = "give UTF-8 text, .jsonl, WikiExtractor files, or these in .gz"
MAX_CHARS = 1_000_000  # a document longer than this is cut at the end of a line, or of this many characters


class Document(NamedTuple):
    """A text, or one of the parts of a very long one.

    Attributes:
      text: the text, not blank.
      key: 8 bytes, a hash of the document's first part: equal for equal documents and for the parts of one.
      fraction: share of the corpus that has been read with this document, or None where that is not known.
    """

    text: str
    key: bytes
    fraction: float | None


def make_documents(texts: Iterable[tuple[str, float | None]]) -> Iterator[Document]:
    """Each (text, fraction) as a Document, or several where it is over `MAX_CHARS`; blank ones are left out."""
    for text, fraction in texts:
        text = text.encode("utf-8", "replace").decode()  # half characters, which Python allows and UTF-8 doesn't
        for document in _documents(_assemble(text.splitlines(keepends=True)), lambda: None):
            yield document._replace(fraction=fraction)


def in_share(key: bytes, share: float) -> bool:
    """Whether the document of that key belongs to a `share` of all, the same ones whatever the corpus's order."""
    return int.from_bytes(key, "big") < share * 2**64


def hash_text(text: str) -> bytes:
    """8 bytes, uniform over texts; white space before and after a text does not count."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).digest()


def find_files(globs: str) -> list[Path]:
    """The files that comma-separated globs match, in order of name, each once; raises UserError where one matches none.

    Every file is opened once, so that a missing, unreadable or empty one is found before hours of work.
    """
    paths: set[str] = set()
    for pattern in filter(None, (part.strip() for part in globs.split(","))):
        matches = glob.glob(os.path.expanduser(pattern), recursive=True)
        files = [path for path in matches if not os.path.isdir(path)]
        if not files:
            found = "only directories; name the files in them: " + pattern.rstrip("/") + "/*" if matches else "no file"
            raise UserError(f"config.corpus.files: {pattern!r} matches {found} (seen from {os.getcwd()})")
        paths.update(files)
    if not paths:
        raise UserError(
            f"config.corpus.files is {globs!r}, which names no file; give --config.corpus.files='data/*.txt'"
        )
    ordered = [Path(path) for path in sorted(paths)]
    for path in ordered:
        try:
            with open(path, "rb") as file:
                if not file.read(1):
                    raise UserError(f"{path} is empty; remove it or leave it out of config.corpus.files")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; make it readable or leave it out") from error
    return ordered


def read_files(paths: list[Path], document_break: str) -> Iterator[Document]:
    """The documents of the files, in order.

    Args:
      paths: files; a name in .gz is unpacked, a name in .jsonl (before .gz) has a JSON object with a string `text`
        on every line, and so has a file whose first line is one; a file whose first line begins with "<doc " is
        WikiExtractor's; all others are plain text.
      document_break: in plain text, "blank_line" (documents are set apart by blank lines) or "file".

    Raises:
      UserError: naming file and line, for what cannot be read, decoded or parsed, and for a file without any text.
    """
    total = sum(path.stat().st_size for path in paths)
    before = 0
    for path in paths:
        found = False
        with open(path, "rb") as raw, contextlib.closing(_lines(path, raw)) as lines:
            parts = _assemble(_parse(path, lines, document_break))
            for document in _documents(parts, lambda: min(1.0, (before + raw.tell()) / total)):  # noqa: B023
                found = True
                yield document
        if not found:
            raise UserError(f"{path} holds no text; remove it or leave it out of config.corpus.files")
        before += path.stat().st_size


def _documents(parts: Iterable[tuple[str, bool]], fraction: Callable[[], float | None]) -> Iterator[Document]:
    """Gives the (text, whether it begins a document) of `_assemble` keys; leaves out blank texts."""
    key = None
    for text, begins in parts:
        key = None if begins else key
        if not text.isspace():
            key = key or hash_text(text)
            yield Document(text, key, fraction())


def _assemble(lines: Iterable[str | None]) -> Iterator[tuple[str, bool]]:
    """Joins lines, with their ends, to texts of at most `MAX_CHARS`; None sets documents apart."""
    buffer: list[str] = []
    size, begins = 0, True
    for line in lines:
        for start in range(0, len(line), MAX_CHARS) if line is not None else (0,):
            part = line[start : start + MAX_CHARS] if line is not None else ""
            if buffer and (line is None or size + len(part) > MAX_CHARS):
                yield "".join(buffer), begins
                buffer, size, begins = [], 0, False
            buffer.append(part)
            size += len(part)
        if line is None:
            buffer, size, begins = [], 0, True
    if buffer:
        yield "".join(buffer), begins


def _parse(path: Path, lines: Iterator[tuple[int, str]], document_break: str) -> Iterator[str | None]:
    """The lines of a file's documents, None after each document, by the format that name and first line show."""
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        yield from _parse_jsonl(path, lines)
        return
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    if _is_json_document(first[1]):
        yield from _parse_jsonl(path, lines)
    elif first[1].startswith("<doc "):
        yield from _parse_wiki(path, lines)
    else:
        for _, line in lines:
            yield None if document_break == "blank_line" and not line.strip() else line


def _is_json_document(line: str) -> bool:
    """Whether a file without .jsonl in its name has JSON lines all the same, such as WikiExtractor's with --json."""
    try:
        record = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("text"), str)


def _parse_jsonl(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[str | None]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error}); a .jsonl file has one object a line"
            ) from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            found = f"the fields {', '.join(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
            raise UserError(
                f"{path}, line {number}: no string field 'text', but {found}; put each document's text there"
            )
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON allows half characters
        yield from whole.splitlines(keepends=True)
        yield None


def _parse_wiki(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[str | None]:
    """WikiExtractor's articles without their tags, and without the title, which is no sentence of the text."""
    title: str | None = None  # until the body's first line has been seen
    inside = False
    for number, line in lines:
        if line.startswith("<doc "):
            match = re.search(r'title="(.*?)"\s*>', line)
            title = html.unescape(match[1]) if match else ""
            inside = True
            yield None
        elif line.startswith("</doc>"):
            inside = False
            yield None
        elif line.strip():
            if not inside:
                raise UserError(f"{path}, line {number}: text outside of <doc ...> and </doc>; repair the file")
            if title is None or line.strip() != title:
                yield line
            title = None


def _lines(path: Path, raw: io.BufferedReader) -> Generator[tuple[int, str], None, None]:
    """(number, line with its end), decoded; a line of a text file that is over `MAX_CHARS` comes in pieces."""
    stream = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
    limit = -1 if path.name.removesuffix(".gz").endswith(".jsonl") else MAX_CHARS
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    number = 0
    try:
        while line := text.readline(limit):
            number += 1
            if "\0" in line:
                raise UserError(f"{path}, line {number}: holds a NUL byte, so it is no text file; {_KINDS}")
            yield number, line
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(path)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}, after line {number}: broken gzip ({error}); copy the file again") from error
    except OSError as error:
        raise UserError(f"cannot read {path} after line {number}: {error.strerror}") from error
    finally:
        text.detach()


def _undecodable(path: Path) -> str:
    """Says where the first byte is that is not UTF-8; the decoder itself knows its place in a buffer alone."""
    offset = 0
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return f"{path}, line 1: is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"{path}, line {number}: byte {offset + error.start} (0x{line[error.start]:02x}) is not UTF-8"
                return f"{where}; {_KINDS}, or convert it, such as with iconv -f LATIN1 -t UTF-8"
            offset += len(line)
    return f"{path} is not UTF-8; {_KINDS}"
