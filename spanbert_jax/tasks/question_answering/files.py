"""Questions with answers in a text: SQuAD's JSON, MRQA's and plain JSON lines, SQuAD and MRQA from TFDS.

Invariant: context[start : start + len(text)] == text for every answer that is returned; what is left out is counted.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.example_files import (
    Role,
    Warnings,
    field,
    find_file,
    read_json,
    read_jsonl,
    tfds_examples,
    to_text,
)

_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Example:
    """A question about a context.

    Attributes:
      answers: (first character, text) each; SQuAD's in the order of the file, MRQA's by position, each once.
      impossible: marked as having no answer in the context (SQuAD 2.0).
      gold_texts: what a scorer compares with: all answers as the file gives them, also those not found in the context.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...] = ()
    impossible: bool = False
    title: str = ""
    gold_texts: tuple[str, ...] = ()


def read(path_or_name: str, role: Role = "train") -> tuple[list[Example], list[str]]:
    """The questions of a file or of a TFDS name ("squad", "squad/v2.0:train[:10%]", "mrqa/news_qa"), and warnings.

    A .jsonl(.gz) holds MRQA's lines or, to predict alone, {"id"?, "question", "context"}; all else is SQuAD's JSON. In
    "train", a question without an answer at its offset is left out unless it is marked impossible.

    Raises:
      UserError: naming file and place, for JSON of another shape, an id that comes twice, and no questions.
    """
    warnings = Warnings()
    path = find_file(path_or_name, ("squad", "mrqa"))
    if path is None:
        found = _from_tfds(path_or_name, role)
    elif path.name.removesuffix(".gz").endswith(".jsonl"):
        found = _from_lines(path, role)
    else:
        found = _from_squad(path, role)
    examples, ids = [], set()
    for place, example in found:
        if example.id in ids:
            raise UserError(f"{place}: a question before has the same id; give every question an id of its own")
        ids.add(example.id)
        answers = tuple(one for one in example.answers if _is_at_offset(example.context, *one))
        for _ in range(len(example.answers) - len(answers)):
            warnings.add("answer(s) are not at their offset and are left out", place)
        if role != "predict" and not answers and not example.impossible:
            if role == "train":
                warnings.add("question(s) have no answer in their context and are left out", place)
                continue
            warnings.add("question(s) have no answer in their context, nor are they marked impossible", place)
        examples.append(replace(example, answers=answers) if len(answers) < len(example.answers) else example)
    if not examples:
        what = "has no questions" if not ids else "has no question with an answer at its offset"
        raise UserError(f"{path_or_name} {what}; give SQuAD's JSON or MRQA's JSON lines")
    return examples, warnings.lines()


def _is_at_offset(context: str, start: int, text: str) -> bool:
    return start >= 0 and text != "" and context.startswith(text, start)


def _from_squad(path: Path, role: Role) -> Iterator[tuple[str, Example]]:
    for i, article in enumerate(field(read_json(path), "data", list, str(path))):
        paragraphs = field(article, "paragraphs", list, f"{path}, data[{i}]")
        title = field(article, "title", str, f"{path}, data[{i}]") if "title" in article else ""
        for j, paragraph in enumerate(paragraphs):
            place = f"{path}, data[{i}].paragraphs[{j}]"
            context = field(paragraph, "context", str, place)
            for k, record in enumerate(field(paragraph, "qas", list, place)):
                inner = f"{place}.qas[{k}]"
                example = Example(
                    str(field(record, "id", (str, int), inner)),
                    field(record, "question", str, inner),
                    context,
                    title=title,
                )
                if role != "predict":
                    example = _with_answers(example, record, inner)
                yield f"{path}, question {example.id}", example


def _with_answers(example: Example, record: dict[str, Any], place: str) -> Example:
    answers = tuple(
        (field(answer, "answer_start", int, f"{place}.answers"), field(answer, "text", str, f"{place}.answers"))
        for answer in field(record, "answers", list, place)
    )
    impossible = _is_impossible(record, place)
    if impossible and answers:
        raise UserError(f"{place} is marked is_impossible, but has answers; remove the mark or the answers")
    return replace(example, answers=answers, impossible=impossible, gold_texts=tuple(text for _, text in answers))


def _is_impossible(record: dict[str, Any], place: str) -> bool:
    return "is_impossible" in record and field(record, "is_impossible", bool, place)


def _from_lines(path: Path, role: Role) -> Iterator[tuple[str, Example]]:
    for number, (place, record) in enumerate(read_jsonl(path)):
        if "header" in record and "context" not in record:
            continue
        context = field(record, "context", str, place)
        if "qas" in record:
            for qa in field(record, "qas", list, place):
                id = field(qa, "qid", str, place)
                example = Example(id, field(qa, "question", str, place), context)
                yield f"{place}, question {id}", example if role == "predict" else _with_detected(example, qa, place)
        elif role == "predict":
            id = str(field(record, "id", (str, int), place)) if "id" in record else str(number)
            yield place, Example(id, field(record, "question", str, place), context)
        else:
            raise UserError(
                f"{place}: no 'qas', so the question has no answers; give SQuAD's JSON or MRQA's JSON lines to {role}"
            )


def _with_detected(example: Example, qa: dict[str, Any], place: str) -> Example:
    spans = []
    for answer in field(qa, "detected_answers", list, place):
        text = field(answer, "text", str, place)
        for span in field(answer, "char_spans", list, place):
            if not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
                raise UserError(f"{place}: {span!r} in 'char_spans' is no [first character, last character]")
            spans.append((span[0], span[1], text))
    gold = tuple(field({"answers": text}, "answers", str, place) for text in field(qa, "answers", list, place))
    return replace(
        example, answers=_detected(example.context, spans), impossible=_is_impossible(qa, place), gold_texts=gold
    )


def _detected(context: str, spans: Iterable[tuple[int, int, str]]) -> tuple[tuple[int, str], ...]:
    """The context's own text at spans whose ends are included; MRQA's text of them is normalised.

    Where the two are different words, the offsets are wrong: those get an offset of -1.
    """
    found = set()
    for first, last, text in spans:
        own = context[first : last + 1] if 0 <= first <= last < len(context) else ""
        found.add((first, own) if own and _letters(own) == _letters(text) else (-1, text))
    return tuple(sorted(found))


def _letters(text: str) -> str:
    """What is left to compare when case, accents, punctuation, white space and articles do not count."""
    text = _ARTICLES.sub(" ", unicodedata.normalize("NFKD", text).casefold())
    return "".join(filter(str.isalnum, text))


def _from_tfds(name: str, role: Role) -> Iterator[tuple[str, Example]]:
    _, examples = tfds_examples(name, role)
    for row in examples:
        mrqa = "qid" in row
        id = to_text(row["qid" if mrqa else "id"])
        example = Example(
            id, to_text(row["question"]), to_text(row["context"]), title=to_text(row["title"]) if "title" in row else ""
        )
        if role != "predict":
            example = _mrqa_answers(example, row) if mrqa else _squad_answers(example, row)
        yield f"{name}, question {id}", example


def _squad_answers(example: Example, row: dict[str, Any]) -> Example:
    texts = tuple(to_text(text) for text in row["answers"]["text"])
    starts = (int(start) for start in row["answers"]["answer_start"])
    impossible = bool(row.get("is_impossible", False))
    return replace(example, answers=tuple(zip(starts, texts, strict=True)), impossible=impossible, gold_texts=texts)


def _mrqa_answers(example: Example, row: dict[str, Any]) -> Example:
    detected = row["detected_answers"]
    firsts, lasts = (_as_lists(detected["char_spans"][end]) for end in ("start", "end"))
    spans = [
        (first, last, to_text(text))
        for text, *ends in zip(detected["text"], firsts, lasts, strict=True)
        for first, last in zip(*ends, strict=True)
    ]
    gold = tuple(to_text(text) for text in row["answers"])
    return replace(example, answers=_detected(example.context, spans), gold_texts=gold)


def _as_lists(ragged: Any) -> list[list[int]]:
    """A list of lists, of what TFDS gives for a sequence of sequences: a ragged tensor, or arrays."""
    return ragged.to_list() if hasattr(ragged, "to_list") else [[int(one) for one in row] for row in ragged]
