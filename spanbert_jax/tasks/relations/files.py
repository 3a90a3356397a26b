"""Reads sentences with two entities and their relation, from TACRED's JSON or SemEval-2010 Task 8's own text.

Invariant: subject and object are ranges of whole words, not empty, within the sentence, without words in common.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spanbert_jax.errors import UserError, listed, quoted, shortened
from spanbert_jax.metrics import relations
from spanbert_jax.tasks.example_files import (
    Contents,
    Lines,
    Record,
    Role,
    Source,
    field,
    find_source,
    is_json,
    read_lines,
    read_records,
    split_head,
    unrecognised,
)

Entity = tuple[int, int, str | None]  # first word, word after the last, type

FORMATS = ("tacred", "semeval")
_KEYS = ("subj_start", "subj_end", "obj_start", "obj_end")
_OTHER_KEYS = ("id", "docid", "token", "relation", "subj_type", "obj_type")  # and stanford_*
_EXPECTED = (
    'TACRED\'s JSON, objects with "token", "subj_start" and so on, or SemEval\'s text, lines such as '
    '1 "The <e1>fire</e1> was caused by <e2>heat</e2>."'
)
_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_SENTENCE = re.compile(r'(\d+)\s+"(.*)"')
_MARK = re.compile(r"(</?e[12]>)")
_RELATION = re.compile(r"[\w-]+(\((e1,e2|e2,e1)\))?")
_DIRECTIONS = ("(e1,e2)", "(e2,e1)")  # every relation but Other ends in one, which the metric needs


@dataclass(frozen=True)
class RelationSentence:
    """A sentence; the label is None where none was asked for. SemEval's e1 is the subject, e2 the object."""

    id: str
    words: tuple[str, ...]
    subject: Entity
    object: Entity
    label: str | None


def read(source: Source, role: Role = "train", format: str = "tacred") -> tuple[list[RelationSentence], list[str]]:
    """(examples, warnings) of a file. There are no warnings so far, since every fault is an error.

    A file is TACRED's JSON, as a list of objects or as one object on each line, or SemEval's text.

    Args:
      format: one of `FORMATS`, which chooses the metric. A file with labels must have this format; a file to predict
        for may have either.

    Raises:
      UserError: naming file and id, for unknown or missing keys, entities outside the sentence or with words in common,
        marks that do not match, a relation without a direction in SemEval's text, an id that comes twice, labels in the
        other format, and a file without sentences.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r} of relations; it is one of {', '.join(FORMATS)}")
    file = find_source(source, ())
    assert file is not None  # there are no TFDS names
    examples, ids = [], set()
    for example in _found(file, role, format):
        if example.id in ids:
            raise UserError(
                f"{source}, id {shortened(example.id)}: this id has come before; give every sentence one of its own"
            )
        ids.add(example.id)
        examples.append(example)
    if not examples:
        raise UserError(f"{source} has no sentences; give {_EXPECTED}")
    return examples, []


def _found(file: Path | Contents, role: Role, format: str) -> Iterator[RelationSentence]:
    head, lines = split_head(read_lines(file))
    found = "tacred" if is_json(head) else "semeval" if any(_is_semeval(line) for _, line in head) else ""
    if head and not found:
        raise unrecognised(file, head, _EXPECTED)
    if found and found != format and role != "predict":
        raise UserError(
            f"{file} is in the format {found}, but config.relation.format, by which the metric is chosen, is {format}; "
            f"give --config.relation.format={found}"
        )
    if found == "semeval":
        yield from _from_semeval(file, lines, role)
    else:
        for number, (place, record) in enumerate(read_records(file, lines)):
            id = str(field(record, "id", (str, int), place)) if role != "predict" or "id" in record else str(number)
            yield parse(record, f"{file}, id {shortened(id)}", id, role)


def parse(record: Record, place: str, name: str, role: Role = "predict") -> RelationSentence:
    """The sentence of an object with TACRED's fields or, to predict for, of a text with SemEval's marks.

    In TACRED's fields an entity's end is its last word, and the Penn Treebank's brackets ("-LRB-") become brackets. A
    text is split at white space and at both ends of each entity.

    Args:
      place: the record's name in errors, such as "standard input, line 3".
      name: the id where the record has none.

    Raises UserError, naming `place`, for unknown or missing keys, and for entities that are outside the sentence or
    have words in common.
    """
    if isinstance(record, str):
        if role != "predict":
            raise UserError(f"{place}: {record[:60]!r} has no relation; expected {_EXPECTED}")
        return _marked(name, record, f"{place}, id {shortened(name)}")
    unknown = [key for key in record if key not in (*_KEYS, *_OTHER_KEYS) and not key.startswith("stanford_")]
    if unknown:
        raise UserError(f"{place}: unknown keys {listed(unknown)}; TACRED has {', '.join((*_OTHER_KEYS, *_KEYS))}")
    words = tuple(
        _unescape(field({"token": word}, "token", str, place)) for word in field(record, "token", (list, tuple), place)
    )
    subject, object = (_entity(record, role, len(words), place) for role in ("subj", "obj"))
    if subject[0] < object[1] and object[0] < subject[1]:
        raise UserError(
            f"{place}: the subject is words {subject[0]} to {subject[1] - 1}, the object {object[0]} to "
            f"{object[1] - 1}; they must not have words in common"
        )
    id = str(field(record, "id", (str, int), place)) if "id" in record else name
    return RelationSentence(
        id, words, subject, object, None if role == "predict" else field(record, "relation", str, place)
    )


def _entity(record: Mapping[str, Any], role: str, length: int, place: str) -> Entity:
    first, last = (field(record, f"{role}_{end}", int, place) for end in ("start", "end"))
    if not 0 <= first <= last < length:
        raise UserError(
            f"{place}: {role}_start {quoted(first)} and {role}_end {quoted(last)} are not a range within the "
            f"sentence's words 0 to {length - 1}"
        )
    return first, last + 1, field(record, f"{role}_type", str, place) if f"{role}_type" in record else None


def _unescape(word: str) -> str:
    return _BRACKETS.get(word.lower(), word)


def _is_semeval(line: str) -> bool:
    return bool(_SENTENCE.fullmatch(line.strip()) or _MARK.search(line))


def _from_semeval(file: Path | Contents, lines: Lines, role: Role) -> Iterator[RelationSentence]:
    """The examples of SemEval's blocks of sentence, relation and comment; to predict for, also of marked sentences
    alone."""
    example: RelationSentence | None = None
    for number, line in lines:
        line, place = line.strip(), f"{file}, line {number}"
        sentence = _SENTENCE.fullmatch(line)
        if sentence or (role == "predict" and _MARK.search(line) and not re.match(r"\d+\t", line)):
            if example is not None:
                yield _finished(example, role, file)
            id, text = sentence.groups() if sentence else (str(number), line)
            example = parse(text, place, id)
        elif not line or line.startswith("Comment"):
            continue
        elif example is None or example.label is not None or not _RELATION.fullmatch(line):
            raise UserError(
                f"{place}: {line[:60]!r} is out of place; expected a number with a sentence in quotes, then a "
                "relation such as Cause-Effect(e1,e2), then a line that begins with Comment:"
            )
        elif role != "predict" and line != relations.OTHER and not line.endswith(_DIRECTIONS):
            raise UserError(
                f"{place}: the relation {quoted(line)} has no direction; write which entity is first, such as "
                f"{line[:60]}(e1,e2) or {line[:60]}(e2,e1)"
            )
        else:
            example = replace(example, label=line)
    if example is not None:
        yield _finished(example, role, file)


def _finished(example: RelationSentence, role: Role, file: Path | Contents) -> RelationSentence:
    if role == "predict":
        return replace(example, label=None)
    if example.label is None:
        raise UserError(
            f"{file}, id {shortened(example.id)}: no relation after the sentence; give its line, such as Other"
        )
    return example


def _marked(id: str, text: str, place: str) -> RelationSentence:
    words: list[str] = []
    borders: dict[str, int] = {}
    marks = _MARK.findall(text)
    if marks not in (["<e1>", "</e1>", "<e2>", "</e2>"], ["<e2>", "</e2>", "<e1>", "</e1>"]):
        raise UserError(
            f"{place}: the marks are {shortened(' '.join(marks)) or 'missing'}; a sentence has one <e1>...</e1> "
            "and one <e2>...</e2>"
        )
    for part in _MARK.split(text):
        if part in marks:
            borders[part] = len(words)
        else:
            words += part.split()
    subject, object = ((borders[f"<{e}>"], borders[f"</{e}>"], None) for e in ("e1", "e2"))
    if subject[0] == subject[1] or object[0] == object[1]:
        raise UserError(f"{place}: an entity without a word; put one between <e1> and </e1>, and <e2> and </e2>")
    return RelationSentence(id, tuple(words), subject, object, None)
