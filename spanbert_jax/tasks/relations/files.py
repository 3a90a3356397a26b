"""Sentences with two entities and their relation: TACRED's JSON, SemEval-2010 Task 8's own text.

Invariant: subject and object are ranges of whole words, not empty, within the sentence, and apart from each other.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.example_files import Role, field, find_file, read_json, read_lines

Entity = tuple[int, int, str | None]  # first word, word after the last, type

FORMATS = ("tacred", "semeval")
_KEYS = ("subj_start", "subj_end", "obj_start", "obj_end")
_OTHER_KEYS = ("id", "docid", "token", "relation", "subj_type", "obj_type")  # and stanford_*
_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_SENTENCE = re.compile(r'(\d+)\s+"(.*)"')
_MARK = re.compile(r"(</?e[12]>)")
_RELATION = re.compile(r"[\w-]+(\((e1,e2|e2,e1)\))?")


@dataclass(frozen=True)
class Example:
    """A sentence; the label is None where none was asked for. SemEval's e1 is the subject, e2 the object."""

    id: str
    words: tuple[str, ...]
    subject: Entity
    object: Entity
    label: str | None


def read(path: str, role: Role = "train", format: str = "tacred") -> tuple[list[Example], list[str]]:
    """The examples of a file (.gz too), and warnings (none so far: every fault is an error).

    Args:
      format: one of `FORMATS`. "tacred": a list of objects, whose ends of entities are included and whose brackets are
        the Penn Treebank's ("-LRB-"), which become brackets again. "semeval": its text is split at white space and
        before and after entities.

    Raises:
      UserError: naming file and id, for unknown or missing keys, entities outside of the sentence or over each other,
        marks that do not match, an id that comes twice, and a file without sentences.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r} of relations; it is one of {', '.join(FORMATS)}")
    found = find_file(path, ())
    assert found is not None  # there are no TFDS names
    examples, ids = [], set()
    for example in _from_tacred(found, role) if format == "tacred" else _from_semeval(found, role):
        if example.id in ids:
            raise UserError(f"{path}, id {example.id}: this id has come before; give every sentence one of its own")
        ids.add(example.id)
        examples.append(example)
    if not examples:
        raise UserError(f"{path} has no sentences; give a file in the format {format}")
    return examples, []


def _from_tacred(path: Path, role: Role) -> Iterator[Example]:
    records = read_json(path)
    if not isinstance(records, list):
        raise UserError(f"{path} is no list but a {type(records).__name__}; TACRED's JSON is a list of objects")
    for number, record in enumerate(records):
        id = str(field(record, "id", (str, int), f"{path}, [{number}]"))
        place = f"{path}, id {id}"
        unknown = [key for key in record if key not in (*_KEYS, *_OTHER_KEYS) and not key.startswith("stanford_")]
        if unknown:
            raise UserError(
                f"{place}: unknown keys {', '.join(unknown)}; TACRED has {', '.join((*_OTHER_KEYS, *_KEYS))}"
            )
        words = tuple(
            _unescape(field({"token": word}, "token", str, place)) for word in field(record, "token", list, place)
        )
        subject, object = (_entity(record, role, len(words), place) for role in ("subj", "obj"))
        if subject[0] < object[1] and object[0] < subject[1]:
            raise UserError(
                f"{place}: the subject is words {subject[0]} to {subject[1] - 1}, the object {object[0]} to "
                f"{object[1] - 1}; they must not have words in common"
            )
        yield Example(id, words, subject, object, None if role == "predict" else field(record, "relation", str, place))


def _entity(record: dict[str, Any], role: str, length: int, place: str) -> Entity:
    first, last = (field(record, f"{role}_{end}", int, place) for end in ("start", "end"))
    if not 0 <= first <= last < length:
        raise UserError(
            f"{place}: {role}_start {first} and {role}_end {last} are no words of the sentence, which has 0 to "
            f"{length - 1}"
        )
    return first, last + 1, field(record, f"{role}_type", str, place) if f"{role}_type" in record else None


def _unescape(word: str) -> str:
    return _BRACKETS.get(word.lower(), word)


def _from_semeval(path: Path, role: Role) -> Iterator[Example]:
    example: Example | None = None
    for number, line in read_lines(path):
        line, place = line.strip(), f"{path}, line {number}"
        if sentence := _SENTENCE.fullmatch(line):
            if example is not None:
                yield _finished(example, role, path)
            example = _marked(sentence[1], sentence[2], f"{place}, id {sentence[1]}")
        elif not line or line.startswith("Comment"):
            continue
        elif example is None or example.label is not None or not _RELATION.fullmatch(line):
            raise UserError(
                f"{place}: {line[:60]!r} is out of place; expected a number with a sentence in quotes, then a "
                "relation such as Cause-Effect(e1,e2), then a line that begins with Comment:"
            )
        else:
            example = replace(example, label=line)
    if example is not None:
        yield _finished(example, role, path)


def _finished(example: Example, role: Role, path: Path) -> Example:
    if role == "predict":
        return replace(example, label=None)
    if example.label is None:
        raise UserError(f"{path}, id {example.id}: no relation after the sentence; give its line, such as Other")
    return example


def _marked(id: str, text: str, place: str) -> Example:
    words: list[str] = []
    borders: dict[str, int] = {}
    marks = _MARK.findall(text)
    if marks not in (["<e1>", "</e1>", "<e2>", "</e2>"], ["<e2>", "</e2>", "<e1>", "</e1>"]):
        raise UserError(
            f"{place}: the marks are {' '.join(marks) or 'missing'}; a sentence has one <e1>...</e1> "
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
    return Example(id, tuple(words), subject, object, None)
