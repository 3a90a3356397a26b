"""The sources of a corpus's documents, and whether the sources have changed since blocks were made from them.

Invariant: the documents and their order depend on config.corpus and on the sources' contents alone. The description of
the sources has the size and the hash of every file, by which other text is told from the same.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spanbert_jax.config import CorpusConfig
from spanbert_jax.corpus import tfds_source
from spanbert_jax.errors import UserError
from spanbert_jax.text import docstrings, worker_pool
from spanbert_jax.text.documents import Document, find_files, in_share, match_files, read_files
from spanbert_jax.text.lines import hash_file
from spanbert_jax.text.pairs import one_document

_CLOCK_SECONDS = 2.0  # the most by which a file system's times are expected to be off


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of a corpus, always in the same order, and their sources.

    Attributes:
      documents: can be iterated over once.
      sources: [{"file": path, "bytes": size, "sha256": hex}, ...] or [{"name": dataset}]; "sha256" is missing until all
        documents have been taken.
    """

    documents: Iterator[Document]
    sources: list[dict[str, Any]]


def read_corpus(corpus: CorpusConfig, pool: worker_pool.Workers) -> Corpus:
    """Opens the corpus. `pool` parses the embedded corpus. Raises UserError where a source is missing or unreadable."""
    if corpus.files:
        return _read_files(corpus)
    if corpus.name == "docstrings":
        return Corpus(docstrings.read_docstrings(pool), [{"name": corpus.name}])
    return Corpus(tfds_source.read_tfds(corpus.name, corpus.tfds_data_dir), [{"name": corpus.name}])


def _read_files(corpus: CorpusConfig) -> Corpus:
    paths = find_files(corpus.files)
    sources = [describe_file(str(path), path.stat().st_size) for path in paths]

    def documents() -> Iterator[Document]:
        contents: dict[Path, str] = {}
        yield from read_files(paths, corpus.document_break, contents)
        for source, path in zip(sources, paths, strict=True):
            source["sha256"] = contents[path]

    return Corpus(documents(), sources)


def describe_file(path: str, size: int) -> dict[str, Any]:
    """A file's entry in `Corpus.sources`, without "sha256"."""
    return {"file": path, "bytes": size}


def check_documents(corpus: CorpusConfig) -> None:
    """Raises UserError where config.corpus.held_out would leave training or evaluation without a document, or with a
    single one where config.corpus.pairs needs two.

    Documents are read until each of the two has enough. This takes seconds, whatever the size of the corpus, unless all
    documents go to one of the two. The embedded corpus always has documents for both, and is not read.
    """
    if corpus.files:
        check_sides(corpus, _read_files(corpus).documents)
    elif corpus.name != "docstrings":
        check_sides(corpus, tfds_source.read_tfds(corpus.name, corpus.tfds_data_dir))


def check_sides(corpus: CorpusConfig, documents: Iterator[Document]) -> None:
    """The check of `check_documents`, for documents that are already open."""
    smallest: set[bytes] = set()  # the two smallest keys, by which documents are held out
    enough = 2 if corpus.pairs else 1
    sides: dict[bool, set[bytes]] = {}  # whether held out -> the keys of at most two documents
    count = 0
    for document in documents:
        keys = sides.setdefault(in_share(document.key, corpus.held_out), set())
        if len(keys) < 2:
            keys.add(document.key)
        if len(sides) == 2 and all(len(keys) >= enough for keys in sides.values()):
            return
        count += 1
        smallest = set(sorted({*smallest, document.key})[:2])
    if not count:
        raise UserError("the corpus holds no text; check config.corpus.files or config.corpus.name")
    if len(sides) == 2:
        raise UserError(one_document("evaluation" if len(sides[True]) == 1 else "training"))
    if len(smallest) == 2:
        share = _share_between(*sorted(smallest))
        side = "evaluation" if True in sides else "training"
        raise UserError(
            f"the corpus has {count} documents, and config.corpus.held_out={corpus.held_out} puts all of them into "
            f"{side}; give more documents, or --config.corpus.held_out={share}, which holds out the first that is "
            "drawn"
        )
    raise UserError(
        f"the corpus has {'one document' if count == 1 else f'{count} documents with the same text'}, and needs "
        f"another to hold out for evaluation; {_how_to_split(corpus)}"
    )


def _share_between(low: bytes, high: bytes) -> str:
    """The shortest decimal share under which documents of key `low` are held out and those of key `high` are not."""
    for digits in range(1, 25):
        share = float(f"{int.from_bytes(high, 'big') / 2**64:.{digits}f}")
        for candidate in (share, round(share - 10**-digits, digits)):
            if candidate > 0 and in_share(low, candidate) and not in_share(high, candidate):
                return f"{candidate:.{digits}f}"
    raise AssertionError(f"no share between {low.hex()} and {high.hex()}")


def _how_to_split(corpus: CorpusConfig) -> str:
    if corpus.files and corpus.document_break == "file":
        by_lines = dataclasses.replace(corpus, document_break="blank_line")
        if len({document.key for document, _ in zip(_read_files(by_lines).documents, range(2), strict=False)}) == 2:
            return "give --config.corpus.document_break=blank_line, or name more files"
    if corpus.files and corpus.document_break == "blank_line":
        return "put a blank line after each document of a text file, or name more files"
    return "name more files with --config.corpus.files"


def changed_sources(sources: list[dict[str, Any]], corpus: CorpusConfig, read_at: float) -> str:
    """How the files of a corpus differ from those that blocks were made from; "" where they are the same, or all gone.

    Where all files are gone, the blocks were brought to a machine without them. Sizes are always compared. A hash in
    `sources` is compared only where the file was touched after `read_at`, the time at which the build began to read
    (seconds since 1970). Users can set back a file's time of modification, but not that of the last change of its
    status (ctime). So a change of equal size escapes only where `read_at` is too late: in a copy of the blocks that did
    not keep their times (`cp -r`; `cp -a` keeps the times).
    """
    recorded = {source["file"]: source for source in sources if "file" in source}
    found = [str(path) for path in match_files(corpus.files)] if recorded else []
    if not recorded or not any(path in recorded for path in found):
        return ""
    rewritten = [path for path in found if path in recorded and _is_rewritten(recorded[path], read_at)]
    changes = {
        "added": [path for path in found if path not in recorded],
        "removed": [path for path in recorded if path not in found],
        "rewritten": rewritten,
    }
    return "; ".join(_describe_change(how, paths) for how, paths in changes.items() if paths)


def _describe_change(how: str, paths: list[str]) -> str:
    if len(paths) == 1:
        return f"one file was {how} ({paths[0]})"
    return f"{len(paths):,} files were {how} ({paths[0]}, ...)"


def _is_rewritten(source: dict[str, Any], read_at: float) -> bool:
    path = Path(source["file"])
    try:
        status = os.stat(path)
        if status.st_size != source["bytes"]:
            return True
        touched = max(status.st_mtime, status.st_ctime) > read_at - _CLOCK_SECONDS
        return touched and "sha256" in source and hash_file(path) != source["sha256"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable or leave it out") from error
