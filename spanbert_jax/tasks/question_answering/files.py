"""Reads questions with answers in a text: SQuAD's JSON, MRQA's or plain JSON lines, SQuAD and MRQA from TFDS.

Invariant: context[start : start + len(text)] == text for every answer that `read` returns. Warnings count the
answers and questions that are left out.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spanbert_jax.errors import UserError, quoted, shortened
from spanbert_jax.tasks.example_files import (
    Record,
    Role,
    Source,
    Warnings,
    field,
    find_source,
    is_json,
    read_lines,
    read_records,
    split_head,
    tfds_examples,
    to_text,
    unrecognised,
)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_EXPECTED = 'give each question as an object such as {"question": "...", "context": "..."}'


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
      answers: (first character, text) of each; SQuAD's in the order of the file, MRQA's by position and each once.
      impossible: whether the question has no answer in the context (SQuAD 2.0).
      gold_texts: the answers that a scorer compares with: all that the file gives, also those not in the context.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...] = ()
    impossible: bool = False
    title: str = ""
    gold_texts: tuple[str, ...] = ()


def read(source: Source, role: Role = "train", unanswerable: bool = True) -> tuple[list[Question], list[str]]:
    """(questions, warnings) of a file or of a TFDS name ("squad", "squad/v2.0:train[:10%]", "mrqa/news_qa").

    A file is SQuAD's JSON, MRQA's JSON lines, or objects that `parse` reads, in JSON lines or a JSON list. In "train",
    a question is left out where none of its answers is at its offset. A question with an empty list of answers counts
    as impossible, marked or not.

    Args:
      unanswerable: whether questions without an answer are allowed.

    Raises:
      UserError: naming file and place, for JSON of another shape, an id that comes twice, a file without questions,
        and questions without an answer where they are not allowed.
    """
    warnings = Warnings()
    examples: list[Question] = []
    without, ids = [], set()
    for place, example in _found(source, role):
        if example.id in ids:
            raise UserError(f"{place}: a question before has the same id; give every question an id of its own")
        ids.add(example.id)
        if role != "predict":
            example = _checked(example, role, place, warnings)
            if example.impossible:
                without.append(example.id)
            elif role == "train" and not example.answers:
                continue
        examples.append(example)
    if without and not unanswerable:
        raise UserError(
            f"{source}: {len(without):,} of {len(ids):,} questions have no answer, the first is "
            f"{shortened(without[0])}; for such data (SQuAD 2.0) use configs/squad2.py, or "
            "--config.question_answering.unanswerable=True"
        )
    if not examples:
        what = "has no questions" if not ids else "has no question with an answer at its offset"
        raise UserError(f"{source} {what}; give SQuAD's JSON or MRQA's JSON lines")
    return examples, warnings.lines()


def parse(record: Record, place: str, name: str, role: Role = "predict") -> Question:
    """The question of an object {"question", "context", "id"?, "title"?}, which has "answers" too unless role is
    "predict".

    Args:
      record: the object. "answers" are SQuAD's, [{"text", "answer_start"}, ...], or Hugging Face's, {"text": [...],
        "answer_start": [...]}; "is_impossible" may mark a question without answers.
      place: the record's name in errors, such as "standard input, line 3".
      name: the id where the record has none.

    Raises UserError, naming `place`, where a field is missing or of another kind.
    """
    if isinstance(record, str):
        raise UserError(f"{place}: {record[:60]!r} is no question with its text; {_EXPECTED}")
    example = Question(
        str(field(record, "id", (str, int), place)) if "id" in record else name,
        field(record, "question", str, place),
        field(record, "context", str, place),
        title=field(record, "title", str, place) if "title" in record else "",
    )
    return example if role == "predict" else _with_answers(example, record, place)


def _found(source: Source, role: Role) -> Iterator[tuple[str, Question]]:
    file = find_source(source, ("squad", "mrqa"))
    if file is None:
        yield from _from_tfds(source, role)
        return
    head, lines = split_head(read_lines(file))
    if not is_json(head):
        raise unrecognised(file, head, f"SQuAD's JSON, or JSON lines; {_EXPECTED}")
    for number, (place, record) in enumerate(read_records(file, lines)):
        if "data" in record:
            yield from _from_squad(str(file), record, role)
        elif "qas" in record:
            yield from _from_mrqa(place, record, role)
        elif "context" in record or "header" not in record:
            yield place, parse(record, place, str(number), role)


def _checked(example: Question, role: Role, place: str, warnings: Warnings) -> Question:
    """The question with those answers that are at their offsets; impossible where the file gives no answer."""
    if not example.gold_texts and not example.impossible:
        warnings.add("question(s) have no answers and no mark is_impossible: they count as without an answer", place)
        return replace(example, impossible=True)
    answers = tuple(one for one in example.answers if _is_at_offset(example.context, *one))
    for _ in range(len(example.answers) - len(answers)):
        warnings.add("answer(s) are not at their offset and are left out", place)
    if not answers and not example.impossible:
        left_out = " and are left out" if role == "train" else ", nor are they marked impossible"
        warnings.add(f"question(s) have no answer in their context{left_out}", place)
    return replace(example, answers=answers)


def _is_at_offset(context: str, start: int, text: str) -> bool:
    return start >= 0 and text != "" and context.startswith(text, start)


def _from_squad(name: str, content: Mapping[str, Any], role: Role) -> Iterator[tuple[str, Question]]:
    for i, article in enumerate(field(content, "data", list, name)):
        paragraphs = field(article, "paragraphs", list, f"{name}, data[{i}]")
        more = {"title": field(article, "title", str, f"{name}, data[{i}]")} if "title" in article else {}
        for j, paragraph in enumerate(paragraphs):
            place = f"{name}, data[{i}].paragraphs[{j}]"
            more["context"] = field(paragraph, "context", str, place)
            for k, record in enumerate(field(paragraph, "qas", list, place)):
                inner = f"{place}.qas[{k}]"
                id = str(field(record, "id", (str, int), inner))
                yield f"{name}, question {shortened(id)}", parse({**record, **more}, inner, id, role)


def _with_answers(example: Question, record: Mapping[str, Any], place: str) -> Question:
    given = field(record, "answers", (list, dict), place)
    inner = f"{place}.answers"
    if isinstance(given, dict):
        starts, texts = (field(given, name, list, inner) for name in ("answer_start", "text"))
        if len(starts) != len(texts):
            raise UserError(f"{inner}: {len(texts)} in 'text', {len(starts)} in 'answer_start'; give as many of both")
        given = [{"answer_start": start, "text": text} for start, text in zip(starts, texts, strict=True)]
    answers = tuple((field(one, "answer_start", int, inner), field(one, "text", str, inner)) for one in given)
    impossible = _is_impossible(record, place)
    if impossible and answers:
        raise UserError(f"{place} is marked is_impossible, but has answers; remove the mark or the answers")
    return replace(example, answers=answers, impossible=impossible, gold_texts=tuple(text for _, text in answers))


def _is_impossible(record: Mapping[str, Any], place: str) -> bool:
    return "is_impossible" in record and field(record, "is_impossible", bool, place)


def _from_mrqa(place: str, record: Mapping[str, Any], role: Role) -> Iterator[tuple[str, Question]]:
    context = field(record, "context", str, place)
    for qa in field(record, "qas", list, place):
        id = field(qa, "qid", str, place)
        example = Question(id, field(qa, "question", str, place), context)
        yield f"{place}, question {shortened(id)}", example if role == "predict" else _with_detected(example, qa, place)


def _with_detected(example: Question, qa: Mapping[str, Any], place: str) -> Question:
    spans = []
    for answer in field(qa, "detected_answers", list, place):
        text = field(answer, "text", str, place)
        for span in field(answer, "char_spans", list, place):
            if not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
                raise UserError(f"{place}: {quoted(span)} in 'char_spans' is no [first character, last character]")
            spans.append((span[0], span[1], text))
    gold = tuple(field({"answers": text}, "answers", str, place) for text in field(qa, "answers", list, place))
    return replace(
        example, answers=_detected(example.context, spans), impossible=_is_impossible(qa, place), gold_texts=gold
    )


def _detected(context: str, spans: Iterable[tuple[int, int, str]]) -> tuple[tuple[int, str], ...]:
    """(first character, the context's text) of spans (first, last, text), sorted and each once.

    MRQA normalises the texts. Where the context has other words at a span, the span's offsets are wrong, and the first
    character becomes -1.
    """
    found = set()
    for first, last, text in spans:
        own = context[first : last + 1] if 0 <= first <= last < len(context) else ""
        found.add((first, own) if own and _letters(own) == _letters(text) else (-1, text))
    return tuple(sorted(found))


def _letters(text: str) -> str:
    """The text without case, accents, punctuation, white space and articles, for a comparison."""
    text = _ARTICLES.sub(" ", unicodedata.normalize("NFKD", text).casefold())
    return "".join(filter(str.isalnum, text))


def _from_tfds(name: Source, role: Role) -> Iterator[tuple[str, Question]]:
    _, examples = tfds_examples(name, role)
    for record in examples:
        mrqa = "qid" in record
        id = to_text(record["qid" if mrqa else "id"])
        example = Question(
            id,
            to_text(record["question"]),
            to_text(record["context"]),
            title=to_text(record["title"]) if "title" in record else "",
        )
        if role != "predict":
            example = _mrqa_answers(example, record) if mrqa else _squad_answers(example, record)
        yield f"{name}, question {id}", example


def _squad_answers(example: Question, record: dict[str, Any]) -> Question:
    texts = tuple(to_text(text) for text in record["answers"]["text"])
    starts = (int(start) for start in record["answers"]["answer_start"])
    impossible = bool(record.get("is_impossible", False))
    return replace(example, answers=tuple(zip(starts, texts, strict=True)), impossible=impossible, gold_texts=texts)


def _mrqa_answers(example: Question, record: dict[str, Any]) -> Question:
    detected = record["detected_answers"]
    firsts, lasts = (_as_lists(detected["char_spans"][end]) for end in ("start", "end"))
    spans = [
        (first, last, to_text(text))
        for text, *ends in zip(detected["text"], firsts, lasts, strict=True)
        for first, last in zip(*ends, strict=True)
    ]
    gold = tuple(to_text(text) for text in record["answers"])
    return replace(example, answers=_detected(example.context, spans), gold_texts=gold)


def _as_lists(ragged: Any) -> list[list[int]]:
    """A list of lists from TFDS's form of a sequence of sequences: a ragged tensor, or arrays."""
    return ragged.to_list() if hasattr(ragged, "to_list") else [[int(one) for one in row] for row in ragged]
