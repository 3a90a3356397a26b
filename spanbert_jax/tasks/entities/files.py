"""Sentences of words with entity tags: CoNLL's columns in any delimiter, and CoNLL-2003 from TFDS.

Invariant: every line of a file is a word of a sentence, a blank, a -DOCSTART- line, a comment, or an error that names
it; and a sentence's tags keep the rules of a tagging scheme, or a warning counts those that don't.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanbert_jax.errors import UserError
from spanbert_jax.metrics import entities
from spanbert_jax.tasks.entities.rows import WordExample
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

SCHEMES = ("auto", "IOB1", "IOB2", "BILOU")  # BILOU is the same as IOBES: E and S for L and U
_TAG = re.compile(r"O|[BILUES](-.+)?")
_WORD = re.compile(r"\w(?:\S*\w)?|[^\w\s]")  # "U.S", "don't", ","
_BLANKS = " \t\r\n"  # not Python's own: a no-break space may be a word's


@dataclass(frozen=True)
class Sentence:
    """Words with their tags, as the file spells them; `tags` is empty where none were asked for."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int  # from 0; of a file without -DOCSTART- lines all are 0
    line: int  # of the first word, from 1; TFDS: the number of the sentence


def read(
    path_or_name: str,
    role: Role = "train",
    *,
    delimiter: str = "",
    column: int = -1,
    word_column: int = 0,
    scheme: str = "auto",
) -> tuple[list[Sentence], list[str]]:
    """The sentences of a file (.gz too) or of a TFDS name ("conll2003", "conll2003:test"), and warnings.

    Blank lines end sentences, -DOCSTART- lines documents. A line before a sentence that begins with "# " and has
    another number of columns than the words have is a comment.

    Args:
      delimiter: between columns; "" is any number of spaces and tabs.
      column, word_column: of the tag and of the word, from 0, or from the end: -1 is the last.
      scheme: one of `SCHEMES`; "auto" finds it. Where B- and I- tags keep neither IOB2's nor IOB1's rules, as in some
        real data, "auto" warns.

    Raises:
      UserError: naming file and line, for lines with more or fewer columns than others, what is no tag, tags that
        break the scheme's rules, and a file without words.
    """
    if scheme not in SCHEMES:
        raise UserError(f"unknown tagging scheme {scheme!r}; it is one of {', '.join(SCHEMES)}")
    warnings = Warnings()
    path = find_file(path_or_name, ("conll2003",))
    tag_column = None if role == "predict" else column
    if path is None:
        sentences = list(_from_tfds(path_or_name, role))
    else:
        sentences = list(_from_columns(path, delimiter, word_column, tag_column, warnings))
    if not sentences:
        raise UserError(f"{path_or_name} has no words; give a file with a word and its tag on every line")
    if role != "predict":
        _check_tags(path_or_name, sentences, scheme, warnings)
    return sentences, warnings.lines()


def _from_columns(
    path: Path, delimiter: str, word_column: int, tag_column: int | None, warnings: Warnings
) -> Iterator[Sentence]:
    lines = [(number, _split(line, delimiter)) for number, line in read_lines(path)]
    first, width = _find_width(path, lines, word_column, tag_column)
    document, begins = -1, True
    words: list[str] = []
    tags: list[str] = []
    for number, fields in [*lines, (len(lines) + 1, [])]:
        if not fields or fields[0] == "-DOCSTART-":
            if words:
                document, begins = document + begins, False
                yield Sentence(tuple(words), tuple(tags), document, number - len(words))
                words, tags = [], []
            begins = begins or bool(fields)
        elif len(fields) == width:
            if not fields[word_column]:
                raise UserError(f"{path}, line {number}: the word is empty; remove the line or give it a word")
            words.append(fields[word_column])
            if tag_column is not None:
                tags.append(fields[tag_column])
        elif not words and _may_be_comment(fields):
            warnings.add("line(s) with # and other columns than words have are comments", f"{path}, line {number}")
        else:
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns, but line {first} has {width}; every line has one word, "
                "and as many columns (a word with a space in it needs another delimiter, such as TAB)"
            )


def _find_width(
    path: Path, lines: list[tuple[int, list[str]]], word_column: int, tag_column: int | None
) -> tuple[int, int]:
    """The first line of a word and its number of columns; raises UserError if those asked for are not among them."""
    words = [(number, fields) for number, fields in lines if fields and fields[0] != "-DOCSTART-"]
    no_comments = [(number, fields) for number, fields in words if not _may_be_comment(fields)]
    if not words:
        return 0, 0
    number, fields = (no_comments or words)[0]
    width = len(fields)
    for column in (word_column, tag_column):
        if column is not None and not -width <= column < width:
            raise UserError(f"{path}, line {number}: no column {column}; columns are counted from 0, here are {width}")
    if tag_column is not None and tag_column % width == word_column % width:
        raise UserError(
            f"{path}, line {number}: column {word_column % width} of {width} would be both word and tag; give every "
            "word a tag, or another delimiter"
        )
    return number, width


def _may_be_comment(fields: list[str]) -> bool:
    return " ".join(fields).startswith("# ")  # and no hashtag


def _split(line: str, delimiter: str) -> list[str]:
    """The columns, none for a line of blanks and delimiters alone."""
    if not delimiter:
        return re.split(r"[ \t]+", line.strip(_BLANKS)) if line.strip(_BLANKS) else []
    fields = [field.strip(_BLANKS) for field in line.split(delimiter)]
    return fields if any(fields) else []


def _from_tfds(name: str, role: Role) -> Iterator[Sentence]:
    builder, examples = tfds_examples(name, role)
    names = builder.info.features["ner"].feature.names
    for number, row in enumerate(examples, start=1):
        words = tuple(to_text(word) for word in row["tokens"])
        if words:
            yield Sentence(words, () if role == "predict" else tuple(names[int(tag)] for tag in row["ner"]), 0, number)


def _check_tags(name: str, sentences: list[Sentence], scheme: str, warnings: Warnings) -> None:
    letters = _find_letters(name, sentences, scheme)
    if scheme != "auto" or not letters <= set("OBI"):
        scheme = "BILOU" if scheme == "auto" else scheme
        broken = _breaches(name, sentences, scheme)
        if broken:
            raise UserError(
                f"{broken[0]} breaks the rules of {scheme}, the first of {len(broken):,} to do so; repair them"
            )
        return
    breaches = {one: _breaches(name, sentences, one) for one in ("IOB2", "IOB1")}
    if all(breaches.values()):
        nearest, other = sorted(breaches, key=lambda one: len(breaches[one]))
        kind = (
            f"tag(s) break the rules of {nearest}, and {len(breaches[other]):,} those of {other}; B- is read as the "
            "beginning of an entity, I- as one where none of its type is before it"
        )
        for place in breaches[nearest]:
            warnings.add(kind, place)


def _find_letters(name: str, sentences: list[Sentence], scheme: str) -> set[str]:
    """The first letters of all tags; raises UserError for what is no tag, or not of the scheme."""
    allowed = {"IOB1": ["OBI"], "IOB2": ["OBI"], "BILOU": ["OBILU", "OBIES"], "auto": ["OBI", "OBILU", "OBIES"]}[scheme]
    seen: set[str] = set()
    for sentence in sentences:
        for number, tag in enumerate(sentence.tags, start=sentence.line):
            if not _TAG.fullmatch(tag):
                raise UserError(
                    f"{name}, line {number}: {tag!r} is no tag; tags are O, and B-, I-, L-, U- (or E-, S-) with a type"
                )
            if tag[0] not in seen:
                seen.add(tag[0])
                if not any(seen <= set(letters) for letters in allowed):
                    schemes = " or ".join(", ".join(letters) for letters in allowed)
                    raise UserError(
                        f"{name}, line {number}: {tag!r}, after tags with {', '.join(sorted(seen - {tag[0]}))}; the "
                        f"scheme {scheme} has {schemes}"
                    )
    return seen


def _breaches(name: str, sentences: list[Sentence], scheme: str) -> list[str]:
    return [
        f"{name}, line {sentence.line + i}: {sentence.tags[i]} after {sentence.tags[i - 1] if i else 'the beginning'}"
        for sentence in sentences
        for i in _find_breaches(sentence.tags, scheme)
    ]


def _find_breaches(tags: Sequence[str], scheme: str) -> Iterator[int]:
    """The words at which tags break the scheme's rules; an entity without an end breaks them at the last word."""
    before = "O"
    for i, tag in enumerate((*tags, "O")):
        is_open = before[0] in "BI"
        goes_on = is_open and before[2:] == tag[2:]
        if scheme == "IOB2":
            wrong = tag[0] == "I" and not goes_on
        elif scheme == "IOB1":  # where a B- sets apart neighbours of one type, and does nothing else
            wrong = tag[0] == "B" and not goes_on
        else:
            wrong = not goes_on if tag[0] in "ILE" else is_open
        if wrong:
            yield min(i, len(tags) - 1)
        before = tag


def with_context(sentences: Iterable[Sentence], room: int) -> list[WordExample]:
    """The examples of a document, each with up to `room` words of it on either side."""
    document = list(sentences)
    words = [word for sentence in document for word in sentence.words]
    examples, place = [], 0
    for sentence in document:
        end = place + len(sentence.words)
        around = tuple(words[max(place - room, 0) : place]), tuple(words[end : end + room])
        found = tuple(entities.spans(sentence.tags))
        examples.append(WordExample(str(sentence.line), sentence.words, found, *around))
        place = end
    return examples


def has_columns(source: str) -> bool:
    """Whether a .txt is CoNLL's columns after all, as its first line shows."""
    path = find_file(source, ())
    return path is not None and any(line.startswith("-DOCSTART-") for _, line in itertools.islice(read_lines(path), 1))


def read_text(source: str) -> list[WordExample]:
    """A sentence a line; punctuation marks at a word's ends are words, as in columns."""
    path = find_file(source, ())
    assert path is not None  # only a TFDS name has none
    examples = []
    for number, line in read_lines(path):
        text = line.rstrip("\r\n")
        places = tuple(match.span() for match in _WORD.finditer(text))
        if places:
            words = tuple(text[start:end] for start, end in places)
            examples.append(WordExample(str(number), words, text=text, places=places))
    if not examples:
        raise UserError(f"{source} has no words; give a file with a sentence on every line")
    return examples


def read_spans(source: str, role: Role) -> list[WordExample]:
    """An object a line: "words", and unless it is to predict for "entities", [first word, the one after the last, type]
    each."""
    path = find_file(source, ())
    assert path is not None  # only a TFDS name has none
    examples = []
    for place, record in read_jsonl(path):
        words = tuple(field(record, "words", list, place))
        spans = [] if role == "predict" else field(record, "entities", list, place)
        for span in spans:
            whole = isinstance(span, list) and len(span) == 3 and all(isinstance(end, int) for end in span[:2])
            if not whole or not 0 <= span[0] < span[1] <= len(words):
                raise UserError(f"{place}: entity {span} is none of {len(words)} words; expected [first, end, type]")
        if not words or not all(isinstance(word, str) for word in words):
            raise UserError(f"{place}: 'words' is {words[:3]}; expected the sentence's words, one at least")
        name = str(record.get("id", place.rpartition(" ")[2]))
        examples.append(WordExample(name, words, tuple((start, end, str(kind)) for start, end, kind in spans)))
    if not examples:
        raise UserError(f"{source} has no sentences; give a file with an object on every line")
    return examples
