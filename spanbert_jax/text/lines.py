"""Any file of text, line by line: decompressed, decoded, numbered.

Invariant: the file's bytes decide how the file is read, never its name. A file that is not UTF-8 text, compressed or
not, is refused in one line, which names the file and the line and advises a command that suits the bytes found there.
Memory is bounded by the longest part of a line that is given, `LINE_CHARS` at most. What a compressed file gives to a
reader of whole lines, which keeps them, is bounded by the file's size (`MOST_TIMES`).
"""

import bz2
import codecs
import contextlib
import errno
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

LINE_CHARS = 2**28  # of a line that is given whole. SQuAD 2.0's training set, an object in one line, has 4.2e7.
# A compressed file with whole lines gives so many times its size, or so many bytes, whichever is more. Text takes a
# third to a tenth of its size in gzip. A file of repetitions alone, made to fill the memory, takes a thousandth.
# For the same reason it has fewer lines than bytes, or so many lines: columns of words and tags take 3 bytes a line.
MOST_TIMES = 40
MOST_UNPACKED = 2**26
MOST_LINES = 2**20
_XZ_MEMORY = 2**28  # bytes that a decompressor of xz may take; files of xz -9 need 2**26

_BUFFER = 2**16  # bytes; so many at a file's start decide what the file is
PART_BYTES = 2**20  # bytes of a line that are looked at together


class XzFile(io.RawIOBase):
    """The decompressed bytes of an .xz file, read with at most `_XZ_MEMORY` for the decompressor; lzma.LZMAFile has no
    limit, and a file can ask for 4 GB."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._input = raw, b""
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decoder.eof or self._begins_next():
            if not self._input and self._decoder.needs_input:
                self._input = self._raw.read(_BUFFER)
                if not self._input:
                    raise EOFError("it ends inside of its stream")
            try:
                data, self._input = self._decoder.decompress(self._input, len(buffer)), b""
            except lzma.LZMAError as error:
                if "limit" in str(error):
                    more = f"to decompress its xz takes over {_XZ_MEMORY:,} bytes of memory; give it decompressed"
                    raise OSError(errno.ENOMEM, more) from error
                raise
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _begins_next(self) -> bool:
        """Whether another stream follows the one that has ended, after any padding."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        while not rest and (more := self._raw.read(_BUFFER)):
            rest = more.lstrip(b"\0")
        if rest:
            self._decoder, self._input = lzma.LZMADecompressor(memlimit=_XZ_MEMORY), rest
        return bool(rest)


class _Compression(NamedTuple):
    """A compression format."""

    name: str
    open: Callable[[IO[bytes]], Any]  # compressed bytes -> a file of the decompressed bytes
    command: str  # decompresses a file to standard output


_COMPRESSIONS = {
    b"\x1f\x8b": _Compression("gzip", lambda raw: gzip.GzipFile(fileobj=raw), "gzip -dc"),
    b"BZh": _Compression("bzip2", bz2.BZ2File, "bzip2 -dc"),
    b"\xfd7zXZ\0": _Compression("xz", XzFile, "xz -dc"),
}
_REFUSED = {  # the bytes that a file begins with -> (what the file is, what to do)
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "decompress it: zstd -d"),
    b"\x04\x22\x4d\x18": ("compressed by lz4", "decompress it: lz4 -d"),
    b"\x1f\x9d": ("compressed by compress", "decompress it: gzip -d"),
    b"PK\x03\x04": ("a zip archive (as .docx and .xlsx are)", "give the text files that are in it: unzip"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "give the text files that are in it: 7z x"),
    b"Rar!": ("a RAR archive", "give the text files that are in it: unrar x"),
    b"%PDF": ("a PDF", "give its text: pdftotext"),
    b"PAR1": ("a Parquet table", "write its texts as JSON lines, and give that file instead of"),
}
_BYTE_ORDER_MARKS = (  # UTF-32's come first, because the little-endian one begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_LINES_TO_JUDGE = 1000  # An encoding is guessed from so many lines that are not UTF-8.


class _Counted(io.RawIOBase):
    """An open file that counts the bytes which are read from it: `size`."""

    def __init__(self, file: Any) -> None:
        self._file, self.size = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._file.readinto(buffer))
        self.size += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Unpacked(_Counted):
    """The decompressed bytes of a file; raises UserError once they are too many for the compressed bytes read."""

    def __init__(self, packed: _Counted, stream: Any, compression: _Compression, path: Path | str) -> None:
        super().__init__(compression.open(stream))
        self._packed, self._compression, self._path = packed, compression, path

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if self.size > max(MOST_UNPACKED, MOST_TIMES * self._packed.size):
            raise _too_much(self._path, self._compression, self._packed.size, f"{self.size - 1:,} bytes of text")
        return count


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
    """(number from 1, line with its end) of a UTF-8 file, which may be compressed; a byte order mark is left out.

    Lines end at LF, so that a CR or U+2028 within a text stays. In a file with CRs and no LF, as old Macs wrote, lines
    end at CR, and this end is given as LF. Raises UserError, naming file and line, where the file cannot be read,
    decompressed or decoded.
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
      limit: the most characters that are given at once; a longer line comes in several parts with the same number.
        -1: each line is given whole. A line then has `LINE_CHARS` at most, and a compressed file gives no more than its
        size allows (`MOST_TIMES`).
      whole: all of the bytes, where there is no file that could be read again for an error message (standard input).
    """
    number, ended, compression, is_bounded = 0, True, None, False
    try:
        with contextlib.ExitStack() as opened:
            packed = _Counted(raw)
            stream: Any = opened.enter_context(io.BufferedReader(packed, _BUFFER))
            head = stream.peek(_BUFFER)
            compression = next(
                (compression for magic, compression in _COMPRESSIONS.items() if head.startswith(magic)), None
            )
            if compression:
                is_bounded = limit < 0
                unpacked = _Unpacked(packed, stream, compression, path) if is_bounded else compression.open(stream)
                stream = opened.enter_context(io.BufferedReader(unpacked, _BUFFER))
                head = stream.peek(_BUFFER)
            _refuse(path, head, compression)
            newline = None if universal or (b"\r" in head and b"\n" not in head) else "\n"
            text = opened.enter_context(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline))
            while line := text.readline(limit if limit >= 0 else LINE_CHARS + 1):
                number, ended = number + ended, line.endswith("\n")
                if limit < 0 and len(line) > LINE_CHARS:
                    raise UserError(
                        f"{path}, line {number}: is longer than {LINE_CHARS:,} characters, the most that a line may "
                        "have; cut it into lines"
                    )
                if is_bounded and number > max(MOST_LINES, packed.size):
                    raise _too_much(path, compression, packed.size, f"{number - 1:,} lines")
                yield number, line
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(path, whole, compression, error)) from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {path} after line {number}: {error.strerror}") from error
        name = compression.name if compression else "file"
        raise UserError(f"{path}, after line {number}: broken {name} ({error}); copy the file again") from error


def _too_much(path: Path | str, compression: _Compression | None, packed: int, what: str) -> UserError:
    """The error of a compressed file whose first `packed` bytes give more than `what`."""
    assert compression is not None
    return UserError(
        f"{path}: its first {packed:,} bytes of {compression.name} give over {what}; the most is {MOST_TIMES} times "
        f"the size, or {MOST_UNPACKED:,} bytes, and a line a byte, or {MOST_LINES:,}. If the text is right, give it "
        f"decompressed: {compression.command} {shlex.quote(str(path))} > FILE"
    )


def _refuse(path: Path | str, head: bytes, compression: _Compression | None) -> None:
    """Raises UserError where a file's first bytes show that the file is no UTF-8 text."""
    quoted = shlex.quote(str(path))
    inside = f", compressed by {compression.name}," if compression else ""
    for magic, (kind, cure) in _REFUSED.items():
        if head.startswith(magic):
            raise UserError(f"{path}{inside} is {kind}, no text; {cure} {quoted}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}{inside} is a tar archive, no text; give the files that are in it: tar -xf {quoted}")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise UserError(f"{path}, line 1: is {encoding}, not UTF-8; {_conversion(path, compression, encoding)}")
    if encoding := _utf16_without_mark(head):
        raise UserError(
            f"{path}, line 1: is {encoding} without a byte order mark, not UTF-8; "
            f"{_conversion(path, compression, encoding)}"
        )


def _utf16_without_mark(head: bytes) -> str:
    """ "UTF-16LE" or "UTF-16BE" where every second byte of the first line is NUL, as in Latin text; else ""."""
    first = head[: max(4, (head.find(b"\n") & ~1) if b"\n" in head else len(head) & ~1)]
    for encoding, nuls, others in (("UTF-16LE", first[1::2], first[::2]), ("UTF-16BE", first[::2], first[1::2])):
        if len(first) >= 4 and not nuls.strip(b"\0") and b"\0" not in others:
            return encoding
    return ""


def _undecodable(
    path: Path | str, whole: bytes | None, compression: _Compression | None, error: UnicodeDecodeError
) -> str:
    """Says where the first byte is that is not UTF-8, and how to convert the file.

    The decoder knows the byte's place only within its buffer. So the file is read again, where there is a file.
    """
    if whole is None and not Path(path).is_file():
        return f"{path}: byte 0x{error.object[error.start]:02x} is not UTF-8; give UTF-8 text"
    where, undecoded, offset, number, carried = "", [], 0, 1, b""
    with contextlib.suppress(EOFError, zlib.error, lzma.LZMAError, OSError), _reopened(path, whole) as raw:
        file = io.BufferedReader(compression.open(raw)) if compression else raw
        while (read := file.readline(PART_BYTES)) or carried:
            part, carried = carried + read, b""
            try:
                # A character that is cut at the end of a part belongs to the next one.
                used = codecs.utf_8_decode(part, "strict", not read or part.endswith(b"\n"))[1]
                part, carried = part[:used], part[used:]
            except UnicodeDecodeError as found:
                byte = part[found.start]
                where = where or f"{path}, line {number}: byte {offset + found.start} (0x{byte:02x}) is not UTF-8"
                undecoded.append(part[:_BUFFER].decode(errors="surrogateescape"))
            offset, number = offset + len(part), number + part.endswith(b"\n")
            if len(undecoded) == _LINES_TO_JUDGE:
                break
    return f"{where}; {_conversion(path, compression, _latin_encoding(' '.join(undecoded)))}"


def _reopened(path: Path | str, whole: bytes | None) -> IO[bytes]:
    return open(path, "rb") if whole is None else io.BytesIO(whole)


def _latin_encoding(text: str) -> str:
    """The Latin encoding of a text whose bytes that are not UTF-8 are surrogates; "" where the text is not Latin.

    CP1252 has marks such as quotation marks at most of 0x80 to 0x9f, where LATIN1 has control characters. In encodings
    of other alphabets most bytes over 0x7f stand beside each other, in Latin encodings most stand among ASCII letters.
    """
    runs = re.findall("[\udc80-\udcff]+", text)
    if re.search("[\udc81\udc8d\udc8f\udc90\udc9d]", text) or len("".join(runs)) > 1.5 * len(runs):
        return ""
    return "CP1252" if re.search("[\udc80-\udc9f]", text) else "LATIN1"


def _conversion(path: Path | str, compression: _Compression | None, encoding: str) -> str:
    """Advice to convert a file from an encoding; encoding: "" where it is unknown."""
    source, target = shlex.quote(str(path)), shlex.quote(f"{path}.utf8")
    convert = f"iconv -f {encoding or 'ENCODING'} -t UTF-8"
    command = (
        f"{compression.command} {source} | {convert} > {target}" if compression else f"{convert} {source} > {target}"
    )
    if not Path(path).is_file():  # standard input
        command = f"{compression.command} | {convert}" if compression else convert
    if encoding:
        return f"convert it: {command}"
    return f"give UTF-8 text, or find out its encoding ('file -i' guesses it) and convert it: {command}"
