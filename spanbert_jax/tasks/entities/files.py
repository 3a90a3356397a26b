"""Sentences with entities: CoNLL's columns, JSON with entities that may nest, plain text, CoNLL-2003 from TFDS.

Invariant: a file is read the same way whatever its name and whatever it is read for; entities that training or
prediction cannot have are counted in a warning, or refused.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from spanbert_jax.errors import UserError
from spanbert_jax.metrics import entities
from spanbert_jax.tasks.entities.columns import (
    SCHEMES,
    Layout,
    Sentence,
    check_tags,
    has_columns,
    has_one_width,
    read_columns,
)
from spanbert_jax.tasks.entities.rows import Span, WordExample
from spanbert_jax.tasks.entities.words import NO_STYLE, WordStyle, find_words
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

_WORD_FIRST = Layout()  # and the tag last
_RECORD = '{"words": ["Anna", "sings"], "entities": [[0, 1, "PER"]]}'  # first word, the one after the last, type


def read(
    source: Source,
    role: Role = "train",
    *,
    layout: Layout = _WORD_FIRST,
    scheme: str = "auto",
    context: int = 0,
    style: WordStyle = NO_STYLE,
) -> tuple[list[WordExample], list[str]]:
    """The sentences of a file or of a TFDS name ("conll2003", "conll2003:test"), and warnings.

    A file has a word and its tag on every line; or objects that `parse` reads, in JSON lines or a JSON list; or, to
    predict for, is plain text with a sentence on every line.

    Args:
      layout: of columns.
      scheme: of columns, one of `SCHEMES`.
      context: words of its document that a sentence in columns brings along on either side.
      style: how plain text is cut into words.

    Raises:
      UserError: naming file and line, for what `read_columns`, `check_tags` and `parse` refuse, for a file that is none
        of these, and a file without words.
    """
    if scheme not in SCHEMES:
        raise UserError(f"unknown tagging scheme {scheme!r}; it is one of {', '.join(SCHEMES)}")
    warnings = Warnings()
    file = find_source(source, ("conll2003",))
    sentences: list[Sentence] | None = None
    if file is None:
        sentences = list(_from_tfds(source, role))
    else:
        head, lines = split_head(read_lines(file))
        if is_json(head):
            records = enumerate(read_records(file, lines), start=1)
            examples = [parse(record, place, str(number), role, style) for number, (place, record) in records]
        elif _is_text(file, head, role, layout):
            examples = _from_text(file, lines, style)
        else:
            sentences = read_columns(file, lines, layout, role != "predict", warnings)
    if sentences is not None:
        if role != "predict":
            check_tags(str(source), sentences, scheme, warnings)
        examples = _with_context(sentences, context)
    if not examples:
        raise UserError(f"{source} has no words; give a file with a word and its tag on every line")
    return examples, warnings.lines()


def _is_text(file: Path | Contents, head: Sequence[tuple[int, str]], role: Role, layout: Layout) -> bool:
    """Whether a file is plain text; raises UserError for what is neither text nor columns."""
    may_be_text = role == "predict" and is_plain_text(file)
    if may_be_text and len(head) == 1 and "-" not in head[0][1]:  # "the blood group O"
        return True
    if not head or has_columns(head, layout):
        return False
    if may_be_text:
        return True
    if role == "predict" and has_one_width(head, layout):  # words alone
        return False
    text = ", or plain text, a sentence a line, in a .txt or on standard input" if role == "predict" else ""
    raise unrecognised(file, head, f"columns, a word and its tag on every line, or objects such as {_RECORD}{text}")


def parse(record: Record, place: str, name: str, role: Role = "predict", style: WordStyle = NO_STYLE) -> WordExample:
    """The sentence of {"words", "entities", "id"?}, or, to predict for, of a text, {"text", "id"?}, or words alone.

    Args:
      record: its entities are [first word, the one after the last, type] each, and may nest.
      place: what errors name, such as "standard input, line 3".
      name: the id where the record has none.
      style: how a text is cut into words.

    Raises UserError, naming place, where a field is missing or of another kind, or an entity is none of the words.
    """
    if isinstance(record, str) or (role == "predict" and "words" not in record and "text" in record):
        if role != "predict":
            raise UserError(f"{place}: {str(record)[:60]!r} has no entities; give an object such as {_RECORD}")
        text = record if isinstance(record, str) else field(record, "text", str, place)
        name = name if isinstance(record, str) else _id(record, name, place)
        places = find_words(text, style)
        if not places:
            raise UserError(f"{place}: a text without words; leave it out")
        return WordExample(name, tuple(text[start:end] for start, end in places), text=text, places=places)
    words = tuple(field({"word": word}, "word", str, place) for word in field(record, "words", (list, tuple), place))
    if not all(words) or not words:
        raise UserError(f"{place}: 'words' is {list(words[:3])}; expected the sentence's words, one at least")
    given = [] if role == "predict" else field(record, "entities", (list, tuple), place)
    return WordExample(_id(record, name, place), words, tuple(_span(one, len(words), place) for one in given))


def _id(record: Record, name: str, place: str) -> str:
    return str(field(record, "id", (str, int), place)) if "id" in record else name


def _span(span: object, count: int, place: str) -> Span:
    if isinstance(span, list | tuple) and len(span) == 3 and all(type(end) is int for end in span[:2]):
        start, end, kind = span
        if 0 <= start < end <= count:
            return start, end, str(kind)
    raise UserError(f"{place}: entity {span} is none of {count} words; expected [first, end, type]")


def _from_text(file: Path | Contents, lines: Lines, style: WordStyle) -> list[WordExample]:
    found = ((number, line.rstrip("\r\n")) for number, line in lines)
    return [parse(text, f"{file}, line {number}", str(number), style=style) for number, text in found if text.strip()]


def _from_tfds(name: Source, role: Role) -> Iterator[Sentence]:
    builder, examples = tfds_examples(name, role)
    names = builder.info.features["ner"].feature.names
    for number, row in enumerate(examples, start=1):
        words = tuple(to_text(word) for word in row["tokens"])
        if words:
            yield Sentence(words, () if role == "predict" else tuple(names[int(tag)] for tag in row["ner"]), 0, number)


def _with_context(sentences: Iterable[Sentence], room: int) -> list[WordExample]:
    """The examples of documents, each with up to `room` words of its document on either side."""
    examples = []
    for _, group in itertools.groupby(sentences, lambda one: one.document):
        document = list(group)
        words = [word for sentence in document for word in sentence.words]
        place = 0
        for sentence in document:
            end = place + len(sentence.words)
            around = tuple(words[max(place - room, 0) : place]), tuple(words[end : end + room])
            found = tuple(entities.spans(sentence.tags))
            examples.append(WordExample(str(sentence.line), sentence.words, found, *around))
            place = end
    return examples


def check_entities(examples: Sequence[WordExample], source: str, max_width: int) -> list[str]:
    """Warnings of entities that are lost to a head that scores spans of up to `max_width` words, or, 0, tags words.

    Raises UserError where entities overlap and words are tagged: a word has one tag.
    """
    warnings = Warnings()
    for example in examples:
        place = f"{source}, sentence {example.id}"
        for start, end, kind in example.spans if max_width else ():
            if end - start > max_width:
                kind = f"entities are over config.tagging.max_width {max_width} words, and can not be found"
                warnings.add(kind, f"{place}, words {start} to {end - 1}")
        for a, b in itertools.combinations(sorted(example.spans), 2):
            if b[0] >= a[1]:
                continue
            if not max_width:
                raise _overlap(a, b, place)
            if a[:2] == b[:2]:
                warnings.add(
                    "span(s) have two entities, of which one is learnt and can be found", f"{place}: {a} and {b}"
                )
            elif a[0] < b[0] < a[1] < b[1]:
                warnings.add("pair(s) of entities cross, of which one can be found", f"{place}: {a} and {b}")
    return warnings.lines()


def _overlap(a: Span, b: Span, place: str) -> UserError:
    cure = "remove one of them" if a[:2] == b[:2] else "use --config.tagging.head=span, or remove one of them"
    return UserError(f"{place}: entities {list(a)} and {list(b)} have words in common, and a word has one tag; {cure}")
