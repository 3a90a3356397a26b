"""Reads texts or pairs of texts with labels: GLUE's files, a user's TSV, CSV or JSON, plain text, GLUE from TFDS.

Invariant: every row of a file becomes an example, is counted in a warning, or is an error that names the row's line.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_jax.errors import UserError, listed, quoted
from spanbert_jax.tasks.example_files import (
    Contents,
    Lines,
    Record,
    Role,
    Source,
    Warnings,
    field,
    find_source,
    is_json,
    is_plain_text,
    read_lines,
    read_records,
    split_head,
    tfds_examples,
    to_text,
    unrecognised,
)

# The columns in GLUE's files: text, second text, label. The names of the tasks are those of TFDS.
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
_COLA_HEADER = ["source", "label", "mark", "sentence"]  # train.tsv and dev.tsv have no header; test.tsv has another
# The names of TFDS's texts, in order, where the alphabet gives another order.
_TFDS_TEXTS = {"mnli": ("premise", "hypothesis")}
_NUMBERED = ("cola", "sst2", "mrpc", "qqp", "wnli")  # labels are "0" and "1" in GLUE's files, and words in TFDS


class Columns(NamedTuple):
    """A task of `GLUE`, or "custom", and the names of the task's columns or fields."""

    task: str
    text: str
    second: str  # "" where a row has one text
    label: str


csv.field_size_limit(10**9)  # a text may be a whole book


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts. The label is a number in STS-B, a string in other tasks, and None in "predict"."""

    id: str  # from the column "id" (GLUE: or "index"); otherwise the row's number, from 0
    text: str
    second: str | None
    label: str | float | None


def read(
    source: Source,
    role: Role = "train",
    *,
    task: str = "custom",
    text: str = "text",
    second: str = "",
    label: str = "label",
) -> tuple[list[LabelledText], list[str]]:
    """(examples, warnings) of a file or a TFDS name ("glue/sst2", "glue/mnli:validation_mismatched").

    A file is one of four: JSON lines or a JSON list of objects; a table with a header, whose columns are set apart by
    TABs (without quotes) or commas (with RFC 4180's quotes); GLUE's CoLA, without a header; or, to predict with a task
    of one text, plain text with one example on each line.

    Args:
      task: one of `GLUE`, which fixes the columns, or "custom".
      text, second, label: for "custom", the names of the columns or JSON fields; `second` is "" where there is one
        text.

    Raises:
      UserError: naming file and line, for a missing column, a row with more or fewer columns than the header, a missing
        label, a label of STS-B that is no number, an id that comes twice, and a file without rows.
    """
    columns = columns_of(task, text, second, label)
    warnings = Warnings()
    file = find_source(source, () if task == "custom" else ("glue",))
    found = _from_tfds(source, role, task) if file is None else _from_file(file, role, columns, warnings)
    examples, ids = [], set()
    for place, example in found:
        if example.id in ids:
            raise UserError(f"{place}: the id {quoted(example.id)} has come before; give every row an id of its own")
        ids.add(example.id)
        if task == "mnli" and example.label == "-":
            warnings.add("row(s) have no gold label but '-' and are left out", place)
            continue
        if not example.text.strip() or (example.second is not None and not example.second.strip()):
            warnings.add("row(s) have an empty text", place)
        examples.append(example)
    if not examples:
        raise UserError(f"{source} has no rows with a label; give a file with a header and at least one row")
    return examples, warnings.lines()


def columns_of(task: str, text: str, second: str, label: str) -> Columns:
    """The columns of a task of `GLUE`, or the given ones for "custom"; raises UserError for any other task."""
    if task not in (*GLUE, "custom"):
        raise UserError(f"unknown classification task {task!r}; it is one of {', '.join(GLUE)}, custom")
    return Columns(task, *((text, second, label) if task == "custom" else GLUE[task]))


def parse(record: Record, place: str, name: str, columns: Columns, role: Role = "predict") -> LabelledText:
    """The example of an object with named fields or, to predict with a task of one text, of a text.

    place: the record's name in errors, such as "standard input, line 3". name: the id where the record has none.

    Raises UserError, naming `place`, where a field is missing or of another kind.
    """
    task, text, second, label = columns
    if isinstance(record, str):
        if second or role != "predict":
            raise UserError(f"{place}: {record[:60]!r} is no example; expected {_expected(columns, role)}")
        return LabelledText(name, record.strip(), None, None)
    ids = ("id",) if task == "custom" else ("id", "index")
    id_column = next((one for one in ids if one in record), None)
    return LabelledText(
        str(field(record, id_column, (str, int), place)) if id_column else name,
        field(record, text, str, place),
        field(record, second, str, place) if second else None,
        None if role == "predict" else _label(field(record, label, (str, int, float), place), task, label, place),
    )


def _from_file(
    file: Path | Contents, role: Role, columns: Columns, warnings: Warnings
) -> Iterator[tuple[str, LabelledText]]:
    head, lines = split_head(read_lines(file))
    if is_json(head):
        records: Iterator[tuple[str, Mapping[str, Any]]] = read_records(file, lines)
    elif delimiter := _delimiter(head, columns):
        records = _table_records(file, lines, delimiter, columns.task, warnings)
    elif role == "predict" and not columns.second and is_plain_text(file) and not _is_table(head):
        for number, line in lines:
            if line.strip():
                yield f"{file}, line {number}", parse(line, f"{file}, line {number}", str(number), columns)
        return
    else:
        raise unrecognised(file, head, _expected(columns, role))
    for number, (place, record) in enumerate(records):
        yield place, parse(record, place, str(number), columns, role)


def _expected(columns: Columns, role: Role) -> str:
    names = [columns.text, *filter(None, (columns.second, "" if role == "predict" else columns.label))]
    named = ", ".join(map(repr, names))
    expected = f"a header that names the columns {named}, set apart by TABs or commas, or JSON lines with these fields"
    if columns.task == "cola":
        expected += f"; or, without a header, CoLA's four columns, set apart by TABs ({', '.join(_COLA_HEADER)})"
    one_text = role == "predict" and not columns.second
    return f"{expected}; or plain text, an example a line, in a .txt or on standard input" if one_text else expected


def _label(value: str | float, task: str, column: str, place: str) -> str | float:
    if task != "stsb":
        if value == "" or isinstance(value, float):
            raise UserError(
                f"{place}: the label in {column!r} is {quoted(value)}; give a name or an integer for every row"
            )
        return str(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {column!r} is {quoted(value)}, which is no number; STS-B's scores are 0 to 5")
    return number


def _delimiter(head: Sequence[tuple[int, str]], columns: Columns) -> str:
    """The delimiter of a table's columns, TAB or comma; "" where the first line is no header with the task's columns.

    A header of one column has no delimiter. Its table is a CSV where every other line begins and ends with a quote.
    """
    if not head:
        return ""
    first = head[0][1].rstrip("\r\n")
    by_tab, by_comma = first.split("\t"), _cells_of(first)
    if columns.task == "cola" and _is_cola_row(by_tab):
        return "\t"
    wanted = {columns.text, *filter(None, [columns.second])}
    if by_tab == [columns.text]:
        lines = [line.strip() for _, line in head[1:]]
        return "," if all(line[:1] == line[-1:] == '"' and len(line) > 1 for line in lines) and lines else "\t"
    if wanted & set(by_tab):
        return "\t"
    return "," if wanted & set(by_comma) else ""


def _is_cola_row(cells: Sequence[str]) -> bool:
    """Whether the first line's cells are a row of CoLA, whose file has no header, and not a header."""
    return len(cells) == len(_COLA_HEADER) and cells[_COLA_HEADER.index("label")] in ("0", "1")


def _cells_of(line: str) -> list[str]:
    """The cells of a CSV's line; [] where it is none."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _is_table(head: Sequence[tuple[int, str]]) -> bool:
    """Whether lines without the task's columns look like a table all the same: each line has as many columns, by TAB or
    by comma."""
    lines = [line.rstrip("\r\n") for _, line in head]
    tabs = {line.count("\t") for line in lines}
    try:
        commas = {len(record) for record in csv.reader(lines, strict=True)}
    except csv.Error:
        commas = set()
    names = lines[0].split(",") if lines else []
    named = len(names) > 1 and all(name == name.strip() != "" and " " not in name for name in names)
    return len(lines) > 1 and ((len(tabs) == 1 and tabs != {0}) or (len(commas) == 1 and named))


def _table_records(
    file: Path | Contents, lines: Lines, delimiter: str, task: str, warnings: Warnings
) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, {column: cell}) of each record."""
    records = _csv_records(file, lines) if delimiter == "," else _tsv_records(lines)
    first = next(records, None)
    assert first is not None  # the header's
    number, header = first
    if task == "cola" and _is_cola_row(header):
        yield from _named(file, iter([first]), _COLA_HEADER, task, warnings)
        header = _COLA_HEADER
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}, line {number}: the header has {quoted(twice)} twice; name every column once")
    yield from _named(file, records, header, task, warnings)


def _named(
    file: Path | Contents, records: Iterator[tuple[int, list[str]]], header: list[str], task: str, warnings: Warnings
) -> Iterator[tuple[str, dict[str, str]]]:
    for number, cells in records:
        if len(cells) == len(header):
            yield f"{file}, line {number}", dict(zip(header, cells, strict=True))
        elif task == "qqp" and len(cells) < len(header):  # in GLUE's train.tsv, line breaks split a few rows
            warnings.add("row(s) have too few columns and are left out", f"{file}, line {number}")
        else:
            raise UserError(
                f"{file}, line {number}: {len(cells)} columns, but the header has {len(header)} ({listed(header)}); "
                "take delimiters and line breaks out of the texts, or quote the texts in a CSV"
            )


def _tsv_records(lines: Lines) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _csv_records(file: Path | Contents, lines: Lines) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line for _, line in lines), strict=True)
    before = 0
    try:
        for record in reader:
            if record:
                yield before + 1, record
            before = reader.line_num
    except csv.Error as error:
        raise UserError(
            f"{file}, line {before + 1}: not CSV ({error}); texts with commas, quotes or line breaks must be quoted, "
            "and quotes within them doubled"
        ) from error


def _from_tfds(name: Source, role: Role, task: str) -> Iterator[tuple[str, LabelledText]]:
    builder, examples = tfds_examples(name, role)
    config = builder.builder_config.name
    if config != task and not (task == "mnli" and config in ("mnli_matched", "mnli_mismatched")):
        raise UserError(f"{name} is GLUE's {config}, but the task is {task}; name the data glue/{task}")
    for number, record in enumerate(examples):
        place = f"{name}, example {number}"
        names = _TFDS_TEXTS.get(task) or sorted(record.keys() - {"idx", "label"})
        texts = [to_text(record[key]) for key in names]
        label: str | float | None = None
        if role != "predict":
            label = float(str(record["label"]))  # 4.8, as in a file; float() of a float32 is 4.800000190734863
            if label == -1:
                raise UserError(f"{place} has no label (-1), as GLUE's test sets; name another split")
            if task in _NUMBERED:
                label = str(int(label))
            elif task != "stsb":
                label = builder.info.features["label"].int2str(int(label))
        yield place, LabelledText(str(int(record["idx"])), texts[0], texts[1] if texts[1:] else None, label)
