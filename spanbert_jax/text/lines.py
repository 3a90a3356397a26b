"""Any file of text, line by line: unpacked, decoded, numbered.

Invariant: the file's bytes decide how the file is read, never its name. A file that is not UTF-8 text, packed or not,
is refused in one line that names the file and the line, and advises a command that suits the bytes found there.
"""

import bz2
import codecs
import contextlib
import gzip
import hashlib
import io
import lzma
import re
import shlex
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from spanbert_jax.errors import UserError

_BUFFER = 2**16  # bytes; the first so many decide what a file is


class _Packing(NamedTuple):
    """A way to pack a file: its name, how it is opened, and the command that unpacks it."""

    name: str
    open: Callable[[IO[bytes]], Any]
    command: str


_PACKINGS = {
    b"\x1f\x8b": _Packing("gzip", lambda raw: gzip.GzipFile(fileobj=raw), "gzip -dc"),
    b"BZh": _Packing("bzip2", bz2.BZ2File, "bzip2 -dc"),
    b"\xfd7zXZ\0": _Packing("xz", lzma.LZMAFile, "xz -dc"),
}
_REFUSED = {  # what a file begins with -> what the file is, what to do
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it: zstd -d"),
    b"\x04\x22\x4d\x18": ("packed by lz4", "unpack it: lz4 -d"),
    b"\x1f\x9d": ("packed by compress", "unpack it: gzip -d"),
    b"PK\x03\x04": ("a zip archive (as .docx and .xlsx are)", "give the text files that are in it: unzip"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "give the text files that are in it: 7z x"),
    b"Rar!": ("a RAR archive", "give the text files that are in it: unrar x"),
    b"%PDF": ("a PDF", "give its text: pdftotext"),
    b"PAR1": ("a Parquet table", "write its texts as JSON lines, and give that file instead of"),
}
_BYTE_ORDER_MARKS = (  # UTF-32's before UTF-16's, which they begin with
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_LINES_TO_JUDGE = 1000  # that are not UTF-8, when their encoding is guessed


class Content(io.RawIOBase):
    """An open file that counts and hashes the bytes which are read from it.

    Attributes:
      size: bytes read so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._count(data)
        return len(data)

    def _count(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)

    def hexdigest(self) -> str:
        """sha256, in hex, of the whole file: reads the rest first."""
        while data := self._file.read(2**20):
            self._count(data)
        return self._digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256, in hex, of a file's bytes; raises OSError."""
    with open(path, "rb") as file:
        return Content(file).hexdigest()


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a UTF-8 file, unpacked where it is packed, without a byte order mark.

    Lines end at LF, so that a CR or U+2028 within a text stays. A file that has CRs and no LF, as old Macs wrote, has
    lines that end at CR; their end is given as LF. Raises UserError naming the line.
    """
    try:
        with open(path, "rb", buffering=0) as raw:
            yield from numbered_lines(path, raw)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable or give another") from error


def numbered_lines(
    path: Path | str, raw: io.RawIOBase, universal: bool = False, limit: int = -1, whole: bytes | None = None
) -> Generator[tuple[int, str], None, None]:
    """`read_lines` of an open file.

    Args:
      path: the name that errors give; any words where there is no file.
      raw: the bytes; closed when the lines end.
      universal: LF, CRLF and CR all end a line, and are given as LF.
      limit: characters that are given at once, -1 for any number; a longer line comes in pieces with one number.
      whole: all of the bytes where there is no file to read again for an error, as of standard input.
    """
    number, ended, packing = 0, True, None
    try:
        with contextlib.ExitStack() as opened:
            stream: Any = opened.enter_context(io.BufferedReader(raw, _BUFFER))
            head = stream.peek(_BUFFER)
            packing = next((packing for magic, packing in _PACKINGS.items() if head.startswith(magic)), None)
            if packing:
                stream = opened.enter_context(io.BufferedReader(packing.open(stream), _BUFFER))
                head = stream.peek(_BUFFER)
            _refuse(path, head, packing)
            newline = None if universal or (b"\r" in head and b"\n" not in head) else "\n"
            text = opened.enter_context(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline))
            while line := text.readline(limit):
                number, ended = number + ended, line.endswith("\n")
                yield number, line
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(path, whole, packing, error)) from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {path} after line {number}: {error.strerror}") from error
        name = packing.name if packing else "file"
        raise UserError(f"{path}, after line {number}: broken {name} ({error}); copy the file again") from error


def _refuse(path: Path | str, head: bytes, packing: _Packing | None) -> None:
    """Raises UserError where a file's first bytes are known not to be UTF-8 text."""
    quoted = shlex.quote(str(path))
    inside = f", packed by {packing.name}," if packing else ""
    for magic, (kind, cure) in _REFUSED.items():
        if head.startswith(magic):
            raise UserError(f"{path}{inside} is {kind}, no text; {cure} {quoted}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}{inside} is a tar archive, no text; give the files that are in it: tar -xf {quoted}")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise UserError(f"{path}, line 1: is {encoding}, not UTF-8; {_conversion(path, packing, encoding)}")
    if encoding := _utf16_without_mark(head):
        raise UserError(
            f"{path}, line 1: is {encoding} without a byte order mark, not UTF-8; "
            f"{_conversion(path, packing, encoding)}"
        )


def _utf16_without_mark(head: bytes) -> str:
    """UTF-16LE or UTF-16BE where every second byte of the first line is NUL, as in Latin text; else ""."""
    first = head[: max(4, (head.find(b"\n") & ~1) if b"\n" in head else len(head) & ~1)]
    for encoding, nuls, others in (("UTF-16LE", first[1::2], first[::2]), ("UTF-16BE", first[::2], first[1::2])):
        if len(first) >= 4 and not nuls.strip(b"\0") and b"\0" not in others:
            return encoding
    return ""


def _undecodable(path: Path | str, whole: bytes | None, packing: _Packing | None, error: UnicodeDecodeError) -> str:
    """Says where the first byte is that is not UTF-8, and how to convert the file.

    The decoder itself knows the byte's place in its buffer alone, so the file is read again where that can be done.
    """
    if whole is None and not Path(path).is_file():
        return f"{path}: byte 0x{error.object[error.start]:02x} is not UTF-8; give UTF-8 text"
    where, undecoded, offset = "", [], 0
    with contextlib.suppress(EOFError, zlib.error, lzma.LZMAError, OSError), _reopened(path, whole) as raw:
        for number, line in enumerate(packing.open(raw) if packing else raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as found:
                byte = line[found.start]
                where = where or f"{path}, line {number}: byte {offset + found.start} (0x{byte:02x}) is not UTF-8"
                undecoded.append(line[:_BUFFER].decode(errors="surrogateescape"))
            offset += len(line)
            if len(undecoded) == _LINES_TO_JUDGE:
                break
    return f"{where}; {_conversion(path, packing, _latin_encoding(' '.join(undecoded)))}"


def _reopened(path: Path | str, whole: bytes | None) -> IO[bytes]:
    return open(path, "rb") if whole is None else io.BytesIO(whole)


def _latin_encoding(text: str) -> str:
    """The Latin encoding of a text whose foreign bytes are surrogates; "" where they look like no Latin text's.

    CP1252 has marks such as quotation marks at most of 0x80 to 0x9f, where LATIN1 has control characters. In other
    alphabets' encodings most foreign bytes stand beside each other, in Latin ones most stand among ASCII letters.
    """
    runs = re.findall("[\udc80-\udcff]+", text)
    if re.search("[\udc81\udc8d\udc8f\udc90\udc9d]", text) or len("".join(runs)) > 1.5 * len(runs):
        return ""
    return "CP1252" if re.search("[\udc80-\udc9f]", text) else "LATIN1"


def _conversion(path: Path | str, packing: _Packing | None, encoding: str) -> str:
    """Advice to convert a file from an encoding, "" for an unknown one."""
    source, target = shlex.quote(str(path)), shlex.quote(f"{path}.utf8")
    convert = f"iconv -f {encoding or 'ENCODING'} -t UTF-8"
    command = f"{packing.command} {source} | {convert} > {target}" if packing else f"{convert} {source} > {target}"
    if not Path(path).is_file():  # standard input
        command = f"{packing.command} | {convert}" if packing else convert
    if encoding:
        return f"convert it: {command}"
    return f"give UTF-8 text, or find out its encoding ('file -i' guesses it) and convert it: {command}"
