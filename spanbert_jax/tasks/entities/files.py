"""Reads sentences with entities: CoNLL's columns, JSON with entities that may nest, plain text, CoNLL-2003 from TFDS.

Invariant: the same content is read the same way in every role. Entities that a head cannot learn or predict are counted
in a warning, or are an error.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from spanbert_jax.errors import UserError, quoted, shortened
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

_WORD_FIRST = Layout()  # the word in the first column, the tag in the last
_RECORD = '{"words": ["Anna", "sings"], "entities": [[0, 1, "PER"]]}'  # the words [0, 1) are a PER


def read(
    source: Source,
    role: Role = "train",
    *,
    layout: Layout = _WORD_FIRST,
    scheme: str = "auto",
    context: int = 0,
    style: WordStyle = NO_STYLE,
) -> tuple[list[WordExample], list[str]]:
    """(sentences, warnings) of a file or of a TFDS name ("conll2003", "conll2003:test").

    A file is one of three: columns with a word and its tag on every line; objects that `parse` reads, in JSON lines or
    a JSON list; or, to predict for, plain text with a sentence on every line.

    Args:
      layout: where the columns are.
      scheme: of the tags in columns, one of `SCHEMES`.
      context: how many words of its document a sentence in columns gets on either side.
      style: how plain text is cut into words.

    Raises:
      UserError: naming file and line, for the faults that `read_columns`, `check_tags` and `parse` name, for an id that
        comes twice, for a file of another form, for a file without words, and for a TFDS name with a `context`.
    """
    if scheme not in SCHEMES:
        raise UserError(f"unknown tagging scheme {scheme!r}; it is one of {', '.join(SCHEMES)}")
    warnings = Warnings()
    file = find_source(source, ("conll2003",))
    sentences: list[Sentence] | None = None
    examples: list[WordExample] = []
    if file is None:
        if context:
            raise UserError(
                f"config.tagging.document_context is True, and the data is TFDS's {source}, which keeps neither the "
                "order of sentences nor documents; name CoNLL-2003's own file instead, or set the field to False"
            )
        sentences = list(_from_tfds(source, role))
    else:
        head, lines = split_head(read_lines(file))
        if is_json(head):
            records = enumerate(read_records(file, lines), start=1)
            ids: set[str] = set()
            for number, (place, record) in records:
                examples.append(example := parse(record, place, str(number), role, style))
                if example.id in ids:
                    raise UserError(
                        f"{place}: the id {quoted(example.id)} has come before; give every sentence an id of its own"
                    )
                ids.add(example.id)
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
    """Whether a file is plain text, or else columns; raises UserError where it can be neither."""
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
    """The sentence of {"words", "entities", "id"?} or, to predict for, of a text, {"text", "id"?} or {"words", "id"?}.

    Args:
      record: the text or object. Each entity is [first word, the word after its last, type]; entities may nest.
      place: the record's name in errors, such as "standard input, line 3".
      name: the id where the record has none.
      style: how a text is cut into words.

    Raises UserError, naming `place`, where a field is missing or of another kind, or an entity is outside the words.
    """
    if isinstance(record, str) or (role == "predict" and "words" not in record and "text" in record):
        if role != "predict":
            raise UserError(f"{place}: {str(record)[:60]!r} has no entities; give an object such as {_RECORD}")
        text = record if isinstance(record, str) else field(record, "text", str, place)
        name = name if isinstance(record, str) else _id(record, name, place)
        places = find_words(text, style)
        if not places:
            raise UserError(f"{place}: the text has no words; leave it out")
        return WordExample(name, tuple(text[start:end] for start, end in places), text=text, places=places)
    words = tuple(field({"word": word}, "word", str, place) for word in field(record, "words", (list, tuple), place))
    if not all(words) or not words:
        raise UserError(f"{place}: 'words' is {quoted(list(words[:3]))}; expected the sentence's words, one at least")
    given = [] if role == "predict" else field(record, "entities", (list, tuple), place)
    return WordExample(_id(record, name, place), words, tuple(_span(one, len(words), place) for one in given))


def _id(record: Record, name: str, place: str) -> str:
    return str(field(record, "id", (str, int), place)) if "id" in record else name


def _span(span: object, count: int, place: str) -> Span:
    if isinstance(span, list | tuple) and len(span) == 3 and all(type(end) is int for end in span[:2]):
        start, end = span[:2]
        kind = field({"type": span[2]}, "type", str, f"{place}: entity {quoted(span)}")
        if not kind.strip():
            raise UserError(f"{place}: entity {quoted(span)} has a blank type; name its type")
        if 0 <= start < end <= count:
            return start, end, kind
    raise UserError(f"{place}: entity {quoted(span)} does not fit the {count} words; expected [first, end, type]")


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
    """The examples of the sentences, each with up to `room` words of its document on either side."""
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
    """Warnings of the entities that a head cannot find.

    max_width: of the span head, the most words in a span that it scores; 0 for the token head. Raises UserError where
    entities overlap and the head is the token head, since a word has one tag.
    """
    warnings = Warnings()
    for example in examples:
        place = f"{source}, sentence {shortened(example.id)}"
        for start, end, kind in example.spans if max_width else ():
            if end - start > max_width:
                kind = f"entities are longer than config.tagging.max_width {max_width} words, and cannot be found"
                warnings.add(kind, f"{place}, words {start} to {end - 1}")
        for a, b in _overlapping(sorted(example.spans)):
            if not max_width:
                raise _overlap(a, b, place)
            if a[:2] == b[:2]:
                warnings.add(
                    "span(s) have two entities, of which one is learnt and can be found",
                    f"{place}: {quoted(a)} and {quoted(b)}",
                )
            elif a[0] < b[0] < a[1] < b[1]:
                warnings.add(
                    "pair(s) of entities cross, of which one can be found", f"{place}: {quoted(a)} and {quoted(b)}"
                )
    return warnings.lines()


def _overlapping(spans: Sequence[Span]) -> Iterator[tuple[Span, Span]]:
    """The pairs of spans, given ascending, that have words in common."""
    for i, a in enumerate(spans):
        for place in range(i + 1, len(spans)):
            if spans[place][0] >= a[1]:
                break
            yield a, spans[place]


def _overlap(a: Span, b: Span, place: str) -> UserError:
    cure = "remove one of them" if a[:2] == b[:2] else "use --config.tagging.head=span, or remove one of them"
    return UserError(
        f"{place}: entities {quoted(list(a))} and {quoted(list(b))} have words in common, and a word has one tag; "
        f"{cure}"
    )
