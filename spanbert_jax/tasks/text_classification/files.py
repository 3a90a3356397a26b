"""One or two texts with a label or a number: GLUE's files, a user's own TSV, CSV or JSON lines, and GLUE from TFDS.

Invariant: every row of a file becomes an example, is counted in a warning, or is an error that names its line.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.example_files import (
    Role,
    Warnings,
    field,
    find_file,
    read_jsonl,
    read_lines,
    tfds_examples,
    to_text,
)

# GLUE's own columns: text, second text, label. Its tasks' names are those of TFDS.
GLUE = {
    "cola": ("sentence", "", "label"),
    "sst2": ("sentence", "", "label"),
    "mrpc": ("#1 String", "#2 String", "Quality"),
    "qqp": ("question1", "question2", "is_duplicate"),
    "stsb": ("sentence1", "sentence2", "score"),
    "mnli": ("sentence1", "sentence2", "gold_label"),
    "qnli": ("question", "sentence", "label"),
    "rte": ("sentence1", "sentence2", "label"),
    "wnli": ("sentence1", "sentence2", "label"),
}
_COLA_HEADER = ["source", "label", "mark", "sentence"]  # which train.tsv and dev.tsv leave out, test.tsv not
_NUMBERED = ("cola", "sst2", "mrpc", "qqp", "wnli")  # labels are "0" and "1" in GLUE's files, words in TFDS


@dataclass(frozen=True)
class Example:
    """A row: `label` is a number for STS-B, a string for all others, None where none was asked for."""

    id: str  # of the column "id" (GLUE: or "index"), else the row's number from 0
    text: str
    second: str | None
    label: str | float | None


def read(
    path_or_name: str,
    role: Role = "train",
    *,
    task: str = "custom",
    text: str = "text",
    second: str = "",
    label: str = "label",
) -> tuple[list[Example], list[str]]:
    """The examples of a file or a TFDS name ("glue/sst2", "glue/mnli:validation_mismatched"), and warnings.

    A .csv has RFC 4180's quotes, a .jsonl an object a line, everything else is tab-separated, without quotes; .gz too.

    Args:
      task: one of `GLUE`, which fixes the columns, or "custom".
      text, second, label: custom: names of columns in the header, or of JSON fields; a `second` of "" is one text.

    Raises:
      UserError: naming file and line, for a missing column, a row with more or fewer columns than the header, a missing
        label, a number that is none, an id that comes twice, and a file without rows.
    """
    if task not in (*GLUE, "custom"):
        raise UserError(f"unknown classification task {task!r}; it is one of {', '.join(GLUE)}, custom")
    warnings = Warnings()
    columns = (text, second, label) if task == "custom" else GLUE[task]
    path = find_file(path_or_name, () if task == "custom" else ("glue",))
    if path is None:
        found = _from_tfds(path_or_name, role, task)
    else:
        rows = _rows(path, task, warnings)
        found = _examples(rows, task, columns, role != "predict")
    examples, ids = [], set()
    for place, example in found:
        if example.id in ids:
            raise UserError(f"{place}: the id {example.id!r} has come before; give every row an id of its own")
        ids.add(example.id)
        if task == "mnli" and example.label == "-":
            warnings.add("row(s) have no gold label but '-' and are left out", place)
            continue
        if not example.text.strip() or (example.second is not None and not example.second.strip()):
            warnings.add("row(s) have an empty text", place)
        examples.append(example)
    if not examples:
        raise UserError(f"{path_or_name} has no rows with a label; give a file with a header and at least one row")
    return examples, warnings.lines()


def _examples(
    rows: Iterator[tuple[str, dict[str, Any]]], task: str, columns: tuple[str, str, str], labelled: bool
) -> Iterator[tuple[str, Example]]:
    text, second, label = columns
    ids = ("id",) if task == "custom" else ("id", "index")
    for number, (place, row) in enumerate(rows):
        id_column = next((name for name in ids if name in row), None)
        yield (
            place,
            Example(
                str(field(row, id_column, (str, int), place)) if id_column else str(number),
                field(row, text, str, place),
                field(row, second, str, place) if second else None,
                _label(field(row, label, (str, int, float), place), task, label, place) if labelled else None,
            ),
        )


def _label(value: str | float, task: str, column: str, place: str) -> str | float:
    if task != "stsb":
        if value == "" or isinstance(value, float):
            raise UserError(f"{place}: the label in {column!r} is {value!r}; give a name or an integer for every row")
        return str(value)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {column!r} is {value!r}, which is no number; STS-B's scores are 0 to 5")
    return number


def _rows(path: Path, task: str, warnings: "Warnings") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, columns by name) of each row, by the format that the name shows."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".jsonl":
        yield from read_jsonl(path)
        return
    lines = _csv_rows(path) if suffix == ".csv" else _tsv_rows(path)
    first = next(lines, None)
    if first is None:
        return
    number, header = first
    if task == "cola" and header != ["index", "sentence"]:
        yield from _named(path, iter([first]), _COLA_HEADER, task, warnings)
        header = _COLA_HEADER
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}, line {number}: the header has {twice!r} twice; name every column once")
    yield from _named(path, lines, header, task, warnings)


def _named(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: list[str], task: str, warnings: "Warnings"
) -> Iterator[tuple[str, dict[str, str]]]:
    for number, row in rows:
        if len(row) == len(header):
            yield f"{path}, line {number}", dict(zip(header, row, strict=True))
        elif task == "qqp" and len(row) < len(header):  # GLUE's train.tsv has a few that a line break tears apart
            warnings.add("row(s) have too few columns and are left out", f"{path}, line {number}")
        else:
            raise UserError(
                f"{path}, line {number}: {len(row)} columns, but the header has {len(header)} ({', '.join(header)}); "
                f"{'quote' if '.csv' in path.name else 'remove'} delimiters and line breaks inside of texts"
            )


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), 10**9))  # a text may be a whole book
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    before = 0
    try:
        for row in reader:
            if row:
                yield before + 1, row
            before = reader.line_num
    except csv.Error as error:
        raise UserError(
            f"{path}, line {before + 1}: no CSV ({error}); texts with commas, quotes or line breaks must be quoted, "
            "and quotes within them doubled"
        ) from error


def _from_tfds(name: str, role: Role, task: str) -> Iterator[tuple[str, Example]]:
    builder, examples = tfds_examples(name, role)
    config = builder.builder_config.name
    if config != task and not (task == "mnli" and config in ("mnli_matched", "mnli_mismatched")):
        raise UserError(f"{name} is GLUE's {config}, but the task is {task}; name the data glue/{task}")
    for number, row in enumerate(examples):
        place = f"{name}, example {number}"
        texts = [to_text(row[key]) for key in sorted(row) if key not in ("idx", "label")]
        label: str | float | None = None
        if role != "predict":
            label = float(str(row["label"]))  # not float32's 4.800000190734863 for a file's 4.8
            if label == -1:
                raise UserError(f"{place} has no label (-1), as GLUE's test sets; name another split")
            if task in _NUMBERED:
                label = str(int(label))
            elif task != "stsb":
                label = builder.info.features["label"].int2str(int(label))
        yield place, Example(str(int(row["idx"])), texts[0], texts[1] if texts[1:] else None, label)
