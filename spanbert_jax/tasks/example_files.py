"""Shared parts of the readers of labelled data: files, JSON in any form, TFDS sets, counted warnings.

Invariant: a file's content decides how the file is read, in every role alike. The one exception is plain text, since
any lines could be plain text: only a name in .txt or standard input is read as such. Every error names the file and the
line, or the place in the file's JSON. Nothing is downloaded.
"""

import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spanbert_jax import json_files
from spanbert_jax.errors import UserError, listed, quoted, shortened
from spanbert_jax.text import lines

Role = Literal["train", "dev", "predict"]  # in "predict" no labels are read
Record = str | Mapping[str, Any]  # an example as a user writes it: a text, or an object
Lines = Iterator[tuple[int, str]]  # (number from 1, line with its end)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_BEGINS = re.compile(r"\s*(\{\s*(\"|\}|$)|\[\s*(\{|\]|$))")
_HEAD = 200  # first lines, which decide a file's format
_BEGINNING = 10_000  # characters of each of them in which JSON is looked for


@dataclass(frozen=True)
class Contents:
    """A file's bytes in memory. Errors name the file `name`, such as "standard input"."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


Source = str | Contents  # a path, a TFDS name, or bytes that came another way


class Warnings:
    """Counts the faults of a data set by kind, and remembers where the first of each kind was."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, place: str) -> None:
        """Counts one more fault of the kind. place: where the fault is."""
        count, first = self._kinds.get(kind, (0, place))
        self._kinds[kind] = count + 1, first

    def lines(self) -> list[str]:
        """A line for each kind: "3 answer(s) are not at their offset; the first: FILE, question 17"."""
        return [f"{count:,} {kind}; the first: {first}" for kind, (count, first) in self._kinds.items()]


def warn_of_one_type(token_types: int, pairs: int, source: str) -> list[str]:
    """The warning of examples with two texts, `pairs` in number, for a model with one token type; else none."""
    if token_types > 1 or not pairs:
        return []
    return [
        f"{source}: {pairs:,} example(s) have two texts, and config.model.token_types is {token_types}: both texts get "
        "the same type, and only [SEP] separates them"
    ]


def find_source(source: Source, tfds_names: Sequence[str]) -> Path | Contents | None:
    """The file, or None for a TFDS name; raises UserError where `source` is neither.

    tfds_names: the names of the TFDS sets, without a config, that the caller can read.
    """
    if isinstance(source, Contents):
        return source
    try:
        path = Path(source).expanduser()
        is_there, is_directory = path.exists(), path.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~user for a user that is not there
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read {shortened(source)}: {why}; give the path of a file that may be read") from error
    if is_directory:
        raise UserError(f"{path} is a directory; name a file in it")
    if is_there:
        return path
    if source.partition(":")[0].partition("/")[0] in tfds_names:
        return None
    also = f", and no TFDS name that this task reads ({', '.join(tfds_names)})" if tfds_names else ""
    raise UserError(f"{path} does not exist{also}; give the path of a file (seen from {Path.cwd()})")


def read_lines(source: Path | Contents) -> Lines:
    """The lines of a UTF-8 file, as of `text.lines.read_lines`. Raises UserError, naming the line, where the file is
    not UTF-8."""
    if isinstance(source, Contents):
        raw: Any = io.BytesIO(source.data)
        return lines.numbered_lines(source.name, raw, whole=source.data)
    return lines.read_lines(source)


def split_head(found: Lines) -> tuple[list[tuple[int, str]], Lines]:
    """(the lines among the first 200 that are not blank, which tell the format; all lines)."""
    first = list(itertools.islice(found, _HEAD))
    return [(number, line) for number, line in first if line.strip()], itertools.chain(first, found)


def is_json(head: Sequence[tuple[int, str]]) -> bool:
    """Whether lines begin like a JSON object or a list of objects. A text such as "[laughs]" does not."""
    return bool(_JSON_BEGINS.match("".join(line[:_BEGINNING] for _, line in head)))


def is_plain_text(source: Path | Contents) -> bool:
    """Whether a file may be plain text with one example on each line: standard input, or a name in .txt (.txt.gz, ...).

    Any lines could be plain text, so a reader asks this only where the content has no other format.
    """
    name = re.sub(r"\.(gz|bz2|xz)$", "", str(source))
    return isinstance(source, Contents) or name.endswith(".txt")


def unrecognised(source: Path | Contents, head: Sequence[tuple[int, str]], expected: str) -> UserError:
    """The error for a file in a format that the task does not read. expected: the formats that it reads."""
    shown = " and ".join(f"line {number} {line.strip()[:60]!r}" for number, line in head[:2])
    return UserError(f"{source} has {shown or 'nothing in it'}; expected {expected}")


def read_records(source: Path | Contents, found: Lines) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each object in JSON lines, in a JSON list, or in a JSON file of one object.

    The place is "FILE, line N", "FILE, [i]", or FILE. Raises UserError where a value is no object.
    """
    first = next(((number, line) for number, line in found if line.strip()), None)
    if first is None:
        return
    try:
        is_one = isinstance(json_files.parse(first[1]), dict)
    except ValueError:
        is_one = False  # the value goes on in the next line, or is damaged
    if is_one:
        for number, line in itertools.chain([first], found):
            if line.strip():
                place = f"{source}, line {number}"
                yield place, _object(load_json(line, place), place)
        return
    value = load_json("\n" * (first[0] - 1) + first[1] + "".join(line for _, line in found), str(source))
    if isinstance(value, list):
        for i, record in enumerate(value):
            yield f"{source}, [{i}]", _object(record, f"{source}, [{i}]")
    else:
        yield str(source), _object(value, str(source))


def load_json(text: str, place: str) -> Any:
    """The value of a JSON text; raises UserError, naming `place` and, in a text of several lines, the line."""
    try:
        return json_files.parse(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.rstrip("\n") else ""
        raise UserError(f"{place}{line}: not JSON ({error.msg} at character {error.colno}); repair it") from error
    except ValueError as error:
        raise UserError(f"{place}: not JSON that can be read ({error}); repair it") from error


def _object(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(
            f"{place}: found a JSON {type(record).__name__}; expected objects with named fields, in a list or one "
            "on each line"
        )
    return record


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which JSON allows and UTF-8 does not. Offsets stay as they are."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def checked_record(record: object, place: str) -> Record:
    """A record for a task's `parse`: an object, or a text, which comes `without_surrogates`. Raises UserError, naming
    the place, for anything else, such as the nan of a table's empty cell."""
    if isinstance(record, str):
        return without_surrogates(record)
    if not isinstance(record, Mapping):
        raise UserError(f"{place} is {quoted(record)}; expected a text, or an object with the task's fields")
    return record


def field(record: Any, name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """record[name], which must have the type `kind`; otherwise raises UserError, naming the place and the value. A text
    comes `without_surrogates`."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    value = record.get(name) if isinstance(record, Mapping) else None
    if isinstance(value, str) and str in kinds:
        return without_surrogates(value)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return value
    if not isinstance(record, Mapping):
        found = f"{type(record).__name__} instead of an object with {name!r}"
    elif name in record:
        found = f"{name!r} is {shortened(json.dumps(value, default=str), 60)}"
    else:
        found = f"no {name!r}, only {listed(list(map(repr, record)))}"
    expected = " or ".join("text" if one is str else one.__name__ for one in kinds)
    raise UserError(f"{place}: {found}; expected {name!r} with a value of type {expected}")


def tfds_examples(source: Source, role: Role) -> tuple[Any, Iterable[dict[str, Any]]]:
    """(the TFDS builder, the examples as NumPy) of the source "name" or "name:split".

    Without a split the role decides: "train", or for other roles the first that exists of "validation" (then matched,
    mismatched), "dev" and "test". Nothing is downloaded to this machine. Raises UserError where the set is neither on
    this machine (TFDS's directory, or $TFDS_DATA_DIR) nor in TFDS's public bucket, or has no such split.
    """
    from spanbert_jax.corpus import tfds_source

    name, _, split = str(source).partition(":")
    builder = tfds_source.find_builder(
        name, "", f"{name} is no file", "Set TFDS_DATA_DIR to where it was prepared, or name a file"
    )
    splits = list(builder.info.splits)
    natural = (
        ("train",) if role == "train" else ("validation", "validation_matched", "validation_mismatched", "dev", "test")
    )
    split = split or next((one for one in natural if one in splits), "")
    if split.partition("[")[0] not in splits:
        raise UserError(f"the TFDS dataset {name} has no split {split or natural[0]!r}, only {', '.join(splits)}")
    return builder, tfds_source.read_examples(builder, split)


def to_text(value: str | bytes) -> str:
    """The text of a value from TFDS, which gives bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
