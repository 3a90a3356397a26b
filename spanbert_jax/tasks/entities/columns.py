"""Reads sentences of words with entity tags in CoNLL's columns, set apart by any delimiter.

Invariant: every line of a file is a word of a sentence, a blank, a -DOCSTART- line, a comment, or an error that names
the line. Tags keep the rules of a tagging scheme, or a warning counts the tags that do not.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanbert_jax.errors import UserError, quoted, shortened
from spanbert_jax.tasks.example_files import Contents, Lines, Warnings

SCHEMES = ("auto", "IOB1", "IOB2", "BILOU")  # BILOU includes IOBES, which writes E and S for L and U
_TAG = re.compile(r"O|[BILUES](-.+)?")
_GAP = re.compile(r"[ \t]+")
_BLANKS = " \t\r\n"  # not all of Python's white space: a word may have a no-break space
_COMMENT = re.compile(r"#\s+((id|newdoc|newpar|sent_id|text)\b|\S+\s*=)")  # CoNLL-U's and MultiCoNER's


@dataclass(frozen=True)
class Layout:
    """Where a file's columns are."""

    delimiter: str = ""  # between columns; "" for any number of spaces and TABs
    word_column: int = 0  # counted from 0, or from the end: -1 is the last column
    tag_column: int = -1


@dataclass(frozen=True)
class Sentence:
    """Words with their tags, as the file spells them; `tags` is empty where tags were not read."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int  # the document's number, from 0; 0 in a file without -DOCSTART- lines
    line: int  # the first word's line, from 1; in TFDS the sentence's number


def has_columns(head: Sequence[tuple[int, str]], layout: Layout) -> bool:
    """Whether `head`, a file's first lines that are not blank, are columns and not text.

    The lines are columns where one of them is a -DOCSTART- line, where at least half of them have a tag in the tag's
    column, or where TABs (or the layout's delimiter) divide each of them into the same number of columns.
    """
    lines = [line for _, line in head if not line.startswith("# ")]
    table = [_split(line, layout.delimiter) for line in lines]
    if any(cells[:1] == ["-DOCSTART-"] for cells in table):
        return True
    tags = [cells[layout.tag_column] for cells in table if _is_tagged(cells, layout)]
    parted = {line.count(layout.delimiter or "\t") for line in lines}
    return 2 * len(tags) >= len(lines) or (len(parted) == 1 and 0 not in parted)


def has_one_width(head: Sequence[tuple[int, str]], layout: Layout) -> bool:
    """Whether all lines of `head`, apart from comments, have the same number of columns."""
    return len({len(_split(line, layout.delimiter)) for _, line in head if not line.startswith("# ")}) == 1


def read_columns(
    file: Path | Contents, lines: Lines, layout: Layout, tagged: bool, warnings: Warnings
) -> list[Sentence]:
    """The sentences of a file. tagged: whether to read the tags.

    A blank line ends a sentence, and a -DOCSTART- line ends a document. A line that begins with "# " before a sentence
    is a comment where it has another number of columns than the words, or where it has no tag and the words have tags.

    Raises UserError, naming file and line, where a line has more or fewer columns than others, where the layout's
    columns do not exist, and where a word is empty.
    """
    table = [(number, _split(line, layout.delimiter)) for number, line in lines]
    words = [(number, cells) for number, cells in table if cells and cells[0] != "-DOCSTART-"]
    certain = [(number, cells) for number, cells in words if not _may_be_comment(cells)] or words
    if not certain:
        return []
    width = _width(file, *certain[0], layout, tagged)
    has_tags = 2 * sum(_is_tagged(cells, layout) for _, cells in certain) >= len(certain)
    sentences: list[Sentence] = []
    document, begins = -1, True
    open_words: list[tuple[int, list[str]]] = []
    for number, cells in [*table, (len(table) + 1, [])]:
        if not cells or cells[0] == "-DOCSTART-":
            if open_words:
                document, begins = document + begins, False
                sentences.append(_sentence(open_words, layout, tagged, document))
                open_words = []
            begins = begins or bool(cells)
        elif not open_words and _may_be_comment(cells) and _is_comment(cells, width, has_tags, layout):
            warnings.add("line(s) that begin with # before a sentence are comments", f"{file}, line {number}")
        elif len(cells) != width:
            raise UserError(
                f"{file}, line {number}: {len(cells)} columns, but line {certain[0][0]} has {width}; every line has "
                "one word, and as many columns (a word with a space in it needs another delimiter, such as TAB)"
            )
        elif not cells[layout.word_column]:
            raise UserError(f"{file}, line {number}: the word is empty; remove the line or give it a word")
        else:
            open_words.append((number, cells))
    return sentences


def _sentence(lines: Sequence[tuple[int, list[str]]], layout: Layout, tagged: bool, document: int) -> Sentence:
    words = tuple(cells[layout.word_column] for _, cells in lines)
    tags = tuple(cells[layout.tag_column] for _, cells in lines) if tagged else ()
    return Sentence(words, tags, document, lines[0][0])


def _width(file: Path | Contents, number: int, row: list[str], layout: Layout, tagged: bool) -> int:
    """The number of columns in the first word's line; raises UserError where the layout's columns are not among
    them."""
    width = len(row)
    for column in (layout.word_column, *([layout.tag_column] if tagged else [])):
        if not -width <= column < width:
            raise UserError(f"{file}, line {number}: no column {column}; the line has {width} columns, counted from 0")
    if tagged and layout.tag_column % width == layout.word_column % width:
        raise UserError(
            f"{file}, line {number}: column {layout.word_column % width} of {width} would be both word and tag; give "
            "every word a tag, or another delimiter"
        )
    return width


def _is_tagged(row: list[str], layout: Layout) -> bool:
    """Whether a line has a tag in the tag's column, and that column is not the word's."""
    width = len(row)
    if not -width <= layout.tag_column < width or layout.tag_column % width == layout.word_column % width:
        return False
    return bool(_TAG.fullmatch(row[layout.tag_column]))


def _may_be_comment(row: list[str]) -> bool:
    return (row[0] == "#" and len(row) > 1) or row[0].startswith("# ")  # a hashtag is no comment


def _is_comment(row: list[str], width: int, has_tags: bool, layout: Layout) -> bool:
    """Whether a line that begins with "# " before a sentence is a comment, and not the word "#"."""
    if len(row) != width:
        return True
    return not _is_tagged(row, layout) if has_tags else bool(_COMMENT.match(" ".join(row)))


def _split(line: str, delimiter: str) -> list[str]:
    """A line's columns; [] for a line of blanks and delimiters alone."""
    if not delimiter:
        line = line.strip(_BLANKS)
        return _GAP.split(line) if line else []
    fields = [field.strip(_BLANKS) for field in line.split(delimiter)]
    return fields if any(fields) else []


def check_tags(name: str, sentences: list[Sentence], scheme: str, warnings: Warnings) -> None:
    """Checks that tags keep the rules of `scheme`, one of `SCHEMES`; "auto" finds the scheme.

    Real data have B- and I- tags that keep neither IOB2's nor IOB1's rules: for "auto" these are a warning. Raises
    UserError, naming file and line, where a column's text is no tag, and where tags break the rules of another scheme.
    """
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
    """The first letters of all tags; raises UserError where a text is no tag, or a letter is not the scheme's."""
    allowed = {"IOB1": ["OBI"], "IOB2": ["OBI"], "BILOU": ["OBILU", "OBIES"], "auto": ["OBI", "OBILU", "OBIES"]}[scheme]
    seen: set[str] = set()
    for sentence in sentences:
        for number, tag in enumerate(sentence.tags, start=sentence.line):
            if not _TAG.fullmatch(tag):
                raise UserError(
                    f"{name}, line {number}: {quoted(tag)} is no tag; tags are O, and B-, I-, L-, U- (or E-, S-) with "
                    "a type"
                )
            if tag[0] not in seen:
                seen.add(tag[0])
                if not any(seen <= set(letters) for letters in allowed):
                    schemes = " or ".join(", ".join(letters) for letters in allowed)
                    raise UserError(
                        f"{name}, line {number}: {quoted(tag)}, after tags with {', '.join(sorted(seen - {tag[0]}))}; "
                        f"the scheme {scheme} has {schemes}"
                    )
    return seen


def _breaches(name: str, sentences: list[Sentence], scheme: str) -> list[str]:
    return [
        f"{name}, line {sentence.line + i}: {shortened(sentence.tags[i])} after "
        f"{shortened(sentence.tags[i - 1]) if i else 'the beginning'}"
        for sentence in sentences
        for i in _find_breaches(sentence.tags, scheme)
    ]


def _find_breaches(tags: Sequence[str], scheme: str) -> Iterator[int]:
    """The numbers of the words at which tags break the scheme's rules; an entity without an end breaks them at the last
    word."""
    before = "O"
    for i, tag in enumerate((*tags, "O")):
        is_open = before[0] in "BI"
        goes_on = is_open and before[2:] == tag[2:]
        if scheme == "IOB2":
            wrong = tag[0] == "I" and not goes_on
        elif scheme == "IOB1":  # in IOB1 a B- tag only separates neighbouring entities of one type
            wrong = tag[0] == "B" and not goes_on
        else:
            wrong = not goes_on if tag[0] in "ILE" else is_open
        if wrong:
            yield min(i, len(tags) - 1)
        before = tag
