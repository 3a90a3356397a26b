"""Files to documents, in any mix of the formats that `formats` knows.

Invariant: the documents, in their order, depend on the files' names and contents alone. Memory is bounded by
`MAX_CHARS` characters, or by one JSON value, whatever the size of a file or document.
"""

import contextlib
import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from spanbert_jax.errors import UserError
from spanbert_jax.text import formats
from spanbert_jax.text.lines import Content, numbered_lines

MAX_CHARS = 1_000_000  # A longer document is cut at the end of a line; a longer line is cut after so many characters.


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
    """Each (text, fraction) as a Document, or several where the text is over `MAX_CHARS`; blank texts are left out."""
    for text, fraction in texts:
        text = text.encode("utf-8", "replace").decode()  # Lone surrogates, which UTF-8 cannot hold, become "?".
        for document in _documents(_assemble(text.splitlines(keepends=True)), lambda: None):
            yield document._replace(fraction=fraction)


def in_share(key: bytes, share: float) -> bool:
    """Whether the document with this key is in a `share` (0 to 1) of all. The choice ignores the corpus's order."""
    return int.from_bytes(key, "big") < share * 2**64


def hash_text(text: str) -> bytes:
    """A hash of 8 bytes; white space before and after the text does not count."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).digest()


def find_files(globs: str) -> list[Path]:
    """The files that comma-separated globs match, in order of name, each once; raises UserError where one matches none.

    Every file is opened once, so that a missing, unreadable or empty one is found before hours of work.
    """
    for pattern in split_globs(globs):
        if not match_files(pattern):
            folders = glob.glob(os.path.expanduser(pattern), recursive=True)
            found = "only directories; name the files in them: " + pattern.rstrip("/") + "/*" if folders else "no file"
            seen = "" if folders else f"; {_seen(os.path.expanduser(pattern))}"
            raise UserError(f"config.corpus.files: {pattern!r} matches {found} (seen from {os.getcwd()}){seen}")
    ordered = match_files(globs)
    if not ordered:
        raise UserError(
            f"config.corpus.files is {globs!r}, which names no file; give --config.corpus.files='data/*.txt'"
        )
    for path in ordered:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file, and a corpus is read more than once; write it to a file")
        try:
            with open(path, "rb") as file:
                if not file.read(1):
                    raise UserError(f"{path} is empty; remove it or leave it out of config.corpus.files")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; make it readable or leave it out") from error
    return ordered


def match_files(globs: str) -> list[Path]:
    """The files that comma-separated globs match, in order of name, each once."""
    matches = (glob.glob(os.path.expanduser(pattern), recursive=True) for pattern in split_globs(globs))
    names = sorted({str(Path(path)) for found in matches for path in found})  # "./a" is "a"
    return [Path(name) for name in names if not os.path.isdir(name)]


def split_globs(globs: str) -> list[str]:
    """The patterns of a comma-separated list, without the white space around them."""
    return [pattern for part in globs.split(",") if (pattern := part.strip())]


def _seen(pattern: str) -> str:
    """Says in words what the directory holds in which the pattern, which matches nothing, looks for files."""
    folder = Path(pattern).parent
    while glob.has_magic(str(folder)) or not folder.is_dir():
        folder = folder.parent
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    return f"{folder} holds {listed or 'nothing'}"


def read_files(paths: list[Path], document_break: str, contents: dict[Path, str] | None = None) -> Iterator[Document]:
    """The documents of the files, in order.

    Args:
      paths: files of plain text, JSON lines, JSON lists or WikiExtractor's output (`formats.parse`), compressed or not.
      document_break: in plain text, "blank_line" (blank lines set documents apart) or "file" (a file is a document).
      contents: a dictionary to fill with path -> sha256, in hex, of each file's bytes. A file's entry is made when its
        last document has been taken.

    Raises:
      UserError: naming file and line, for bytes that cannot be read, decoded or parsed, and for a file without text.
    """
    total = max(sum(path.stat().st_size for path in paths), 1)  # files of /proc have no size
    before = 0
    for path in paths:
        found = False
        with open(path, "rb") as file, contextlib.closing(Content(file)) as content:
            lines = numbered_lines(path, content, universal=True, limit=MAX_CHARS)
            with contextlib.closing(lines):
                parts = _assemble(formats.parse(path, _without_nuls(path, lines), document_break))
                for document in _documents(parts, lambda: min(1.0, (before + content.size) / total)):  # noqa: B023
                    found = True
                    yield document
            if not found:
                raise UserError(f"{path} holds no text; remove it or leave it out of config.corpus.files")
            if contents is not None:
                contents[path] = content.hexdigest()
            before += content.size


def _without_nuls(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if "\0" in line:
            raise UserError(f"{path}, line {number}: holds a NUL byte, so it is no text file; give UTF-8 text")
        yield number, line


def _documents(parts: Iterable[tuple[str, bool]], fraction: Callable[[], float | None]) -> Iterator[Document]:
    """Documents from the (text, whether it begins a document) of `_assemble`; leaves out blank texts.

    fraction: asked for the share of the corpus that has been read, for each document.
    """
    key = None
    for text, begins in parts:
        key = None if begins else key
        if not text.isspace():
            key = key or hash_text(text)
            yield Document(text, key, fraction())


def _assemble(lines: Iterable[str | None]) -> Iterator[tuple[str, bool]]:
    """Joins lines, with their ends, to texts of at most `MAX_CHARS`: (text, whether it begins a document).

    A None among the lines ends a document.
    """
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
