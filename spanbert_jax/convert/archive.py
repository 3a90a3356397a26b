"""Takes a model's files out of an archive: a .tar, or one that gzip compressed.

Invariant: an archive decides the contents of files, and nothing else. This program makes each directory and each file
itself, under names of its own and the known names of a model's files. No path, link, owner or mode of the archive is
followed, and memory and disk are bounded: a member that is no plain file inside the archive's folder, a header of more
than 1 MiB, and contents of more than 20 times the archive's size end in a UserError.

`tarfile` parses headers here and extracts nothing. Its filter "data" lets a chain of links write outside of the folder
on Pythons with CVE-2025-4517.
"""

import gzip
import io
import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from spanbert_jax.errors import UserError
from spanbert_jax.files import disk_errors

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "model.pt")
# The other files of a model: shards and the span-boundary head, settings, vocabularies.
_WANTED = re.compile(
    r"pytorch_model\.bin|model\.pt|vocab\.txt|\w[\w.-]{0,199}\.(safetensors|safetensors\.index\.json|model)"
    r"|(config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|spanbert_tokenizer)\.json"
)
_TENSORS = (".safetensors", ".bin", ".pt")
# Weights hardly compress: gzip takes 8% off float32, and half off float16 that is stored as float32. Vocabularies and
# settings compress by up to 10 times.
_MOST_RATIO, ALWAYS_ALLOWED = 20, 2**26
MOST_SETTINGS = 2**28  # bytes of a file without tensors; the largest tokenizer.json of a published model has 34 MB
_MOST_HEADER = 2**20  # bytes; tarfile reads a header of long names or of PAX fields into memory as a whole
_MOST_MEMBERS = 10_000
_CHUNK = 2**16  # bytes
_KINDS = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.CHRTYPE: "a device"}
_KINDS |= {tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a named pipe"}


class _Stream:
    """The unpacked bytes of an archive, as `tarfile` reads them. Raises TarError where they are more than `limit`, and
    where one read asks for more than a header may have."""

    def __init__(self, file: gzip.GzipFile | io.BufferedReader, limit: int) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes; at most {_MOST_HEADER:,} are read")
        data = self._file.read(size)
        self._check(self._file.tell())
        return data

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        if position < self._file.tell():  # after a header with a negative size, whose like would come for ever
            raise tarfile.ReadError("a header that points backwards")
        self._check(position)
        return self._file.seek(position)

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise tarfile.ReadError(
                f"it unpacks to more than {self._limit:,} bytes; weights of an archive of its size take less"
            )


def take_out(archive: Path, folder: Path) -> Path:
    """Writes the model's files of `archive` below the empty directory `folder`; returns the directory in there that
    holds the weights. Of several such directories the first by its name in the archive counts.

    Raises UserError where the archive is damaged or holds no weights, where a member is no plain file (a link, a
    device) or has a name outside of the archive's own folder, and where the contents are larger than the disk or the
    bounds at the top of this module allow.
    """
    try:
        with open(archive, "rb") as raw, disk_errors(folder):
            is_gzip = raw.read(2) == b"\x1f\x8b"
            limit = max(_MOST_RATIO * raw.seek(0, os.SEEK_END), ALWAYS_ALLOWED)
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if is_gzip else raw as file:
                places = _take_members(_Stream(file, limit), archive, folder)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, RecursionError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({str(error)[:200]}); fetch it again") from error
    holding = [name for name, place in places.items() if any((place / file).is_file() for file in WEIGHTS)]
    if not holding:
        raise UserError(f"{archive}: holds none of {', '.join(WEIGHTS)}")
    return places[min(holding)]


def _take_members(stream: _Stream, archive: Path, folder: Path) -> dict[str, Path]:
    """Writes the wanted members. Returns the directories that hold them, by their names in the archive."""
    places: dict[str, Path] = {}
    tar = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]  # it reads, tells and seeks, and nothing else
    count = 0
    while member := tar.next():
        tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
        count += 1
        if count > _MOST_MEMBERS:
            raise UserError(f"{archive}: has more than {_MOST_MEMBERS:,} members; expected a model's few files")
        path = _checked(member, archive)
        if member.isdir() or not _WANTED.fullmatch(path.name):
            continue
        place = places.setdefault(str(path.parent), folder / str(len(places)))
        place.mkdir(exist_ok=True)
        _check_size(member, archive, folder)
        contents = tar.extractfile(member)
        assert contents is not None  # of a regular member
        with open(place / path.name, "wb") as file:
            shutil.copyfileobj(contents, file, _CHUNK)
    while stream.read(_CHUNK):  # to the end, where gzip has its checksum
        pass
    return places


def _checked(member: tarfile.TarInfo, archive: Path) -> PurePosixPath:
    """The member's name; raises UserError unless it is a directory or a plain file inside of the archive's folder."""
    path = PurePosixPath(member.name)
    wrong = _KINDS.get(member.type, "" if member.isreg() or member.isdir() else f"of the unknown type {member.type!r}")
    if member.issparse():
        wrong = "a sparse file"
    if path.is_absolute() or ".." in path.parts:
        wrong = "outside of the archive's folder"
    if wrong:
        raise UserError(
            f"{archive}: its member {member.name[:100]!r} is {wrong}; only plain files inside of one folder are taken "
            "out. If you trust the archive, unpack it yourself and give the directory"
        )
    return path


def _check_size(member: tarfile.TarInfo, archive: Path, folder: Path) -> None:
    """Raises UserError where a member is larger than files of its kind, or than the space on the disk."""
    if not member.name.endswith(_TENSORS) and member.size > MOST_SETTINGS:
        raise UserError(
            f"{archive}: its member {member.name[:100]!r} has {member.size:,} bytes; a file of settings or a "
            f"vocabulary has at most {MOST_SETTINGS:,}"
        )
    free = shutil.disk_usage(folder).free
    if member.size > free:
        raise UserError(
            f"{archive}: its member {member.name[:100]!r} takes {member.size / 1e9:,.3f} GB, and {free / 1e9:,.3f} GB "
            f"are free in {folder.parent}; make room, or set TMPDIR to a directory on another disk"
        )
