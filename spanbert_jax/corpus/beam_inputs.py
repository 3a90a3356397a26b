"""The files of a corpus as Beam's workers read them, one at a time: text and TFDS's records, on disks and in buckets.

Invariant: the documents of all files, one file after another, are those that `read_corpus` gives. No TensorFlow is
imported.
"""

import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from apache_beam.io.filesystems import FileSystems

from spanbert_jax.config import CorpusConfig
from spanbert_jax.corpus import tfds_source
from spanbert_jax.corpus.blocks import read_records
from spanbert_jax.corpus.sources import describe_file
from spanbert_jax.errors import UserError
from spanbert_jax.text.documents import Document, find_files, make_documents, read_files, split_globs

_MOST_RECORD = 2**31 - 1  # bytes; protobuf has no longer messages


class Input(NamedTuple):
    """A file of the corpus."""

    place: int  # among the files of the corpus
    path: str
    kind: str  # "text", "tfrecord" or "array_record"


def find_inputs(corpus: CorpusConfig) -> tuple[list[Input], list[dict[str, Any]]]:
    """The files of the corpus in order, and its sources as `Metadata` has them, without "sha256".

    Raises UserError where a pattern matches nothing, or where several machines cannot read the corpus.
    """
    if corpus.files:
        sizes = _text_files(corpus.files)
        inputs = [Input(place, path, "text") for place, path in enumerate(sizes)]
        return inputs, [describe_file(path, size) for path, size in sizes.items()]
    if corpus.name == "docstrings":
        raise UserError(
            "config.corpus.name is 'docstrings', which only one machine can read; give --config.corpus.files"
        )
    paths, kind = tfds_source.record_files(corpus.name, corpus.tfds_data_dir)
    return [Input(place, path, kind) for place, path in enumerate(paths)], [{"name": corpus.name}]


def _text_files(globs: str) -> dict[str, int]:
    """path -> size in bytes of the files that comma-separated globs match, in order of name."""
    patterns = split_globs(globs)
    remote = [pattern for pattern in patterns if "://" in pattern]
    local = [pattern for pattern in patterns if "://" not in pattern]
    sizes = {str(path): path.stat().st_size for path in find_files(",".join(local))} if local or not remote else {}
    for pattern, match in zip(remote, FileSystems.match(remote), strict=True):
        if not match.metadata_list:
            raise UserError(f"config.corpus.files: {pattern!r} matches no file")
        sizes.update({found.path: found.size_in_bytes for found in match.metadata_list})
    return dict(sorted(sizes.items()))


def read_input(file: Input, document_break: str, contents: list[str]) -> Iterator[Document]:
    """The documents of a file. At their end, the sha256 (in hex) of a text file is appended to `contents`.

    document_break: as in `read_files`. Raises UserError where the file is damaged or holds no text.
    """
    if file.kind == "tfrecord":
        with FileSystems.open(file.path) as stream:
            yield from make_documents(_texts(file.path, _tfrecords(file.path, stream)))
        return
    with tempfile.TemporaryDirectory() as aside:
        path = _local(file.path, Path(aside))
        if file.kind == "array_record":
            yield from make_documents(_texts(file.path, read_records(path)))
            return
        try:
            hashes: dict[Path, str] = {}
            yield from read_files([path], document_break, hashes)
            contents += hashes.values()
        except UserError as error:
            raise UserError(str(error).replace(str(path), file.path)) from error


def _local(path: str, aside: Path) -> Path:
    """The file itself, or a copy in `aside`, with the file's name, where the file is in a bucket."""
    if "://" not in path:
        return Path(path)
    copy = aside / path.rpartition("/")[2]
    with FileSystems.open(path, compression_type="uncompressed") as source, open(copy, "wb") as target:
        shutil.copyfileobj(source, target, 2**20)
    return copy


def _texts(path: str, records: Iterator[bytes]) -> Iterator[tuple[str, None]]:
    """The texts of a file's records; raises UserError, naming the file and the record, where one cannot be read."""
    place = 1
    try:
        for record in records:
            yield tfds_source.text_of(record), None
            place += 1
    except (OSError, ValueError, RuntimeError, IndexError) as error:  # array_record raises various ones
        raise UserError(f"{path}: damaged at record {place:,} ({str(error)[:200]!r}); copy it again") from error


def _tfrecords(path: str, stream: IO[bytes]) -> Iterator[bytes]:
    """The records of a TFRecord file. Before a record stand its length (uint64) and the length's checksum (4 bytes),
    behind it the record's checksum (4 bytes)."""
    while header := stream.read(12):
        size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else _MOST_RECORD + 1
        record = stream.read(size + 4) if size <= _MOST_RECORD else b""
        if len(record) < size + 4:
            raise UserError(f"{path} ends within a record, or is damaged; copy it again")
        yield record[:size]
