"""The documents in the lines of a file: plain text, JSON lines, JSON lists, WikiExtractor's output.

Invariant: a file's first lines decide, once, which format all of it has. A file in none of these formats is refused,
never taken for plain text, and the error quotes the first line. Memory is bounded by a few lines, or by one JSON value
of at most about `JSON_CHARS`, whatever the size of the file.
"""

import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from spanbert_jax import json_files
from spanbert_jax.errors import UserError, listed, shortened

_HEAD_LINES = 5  # lines that are not blank, which decide on the format
_HEAD_CHARS = 100_000  # The format is decided by fewer lines once they have so many characters.
JSON_CHARS = 64_000_000  # the most that one JSON value may have, about; a long book has 3 million
_TITLE_CHARS = 10_000  # of a <doc ...> line that are searched for the title
_FORMATS = "corpus files are plain text, JSON lines or lists with a string 'text', or WikiExtractor's output"

# Text may begin with a bracket ("[Illustration]", "{{Infobox"), so what follows the bracket decides.
_JSON = re.compile(
    r"""
      null\s*$
    | \{\s*(?: $ | \}\s*$ | "(?:[^"\\]|\\.)*"\s*: )
    | \[\s*(?: $ | \]\s*$ | \{\s*(?:$|") | "(?:[^"\\]|\\.)*"\s*[,\]] | \[\s*["\d] )
    """,
    re.VERBOSE,
)
_JSON_NAME = re.compile(r"\.(jsonl|ndjson|json)(\.\w+)?$")
_CSV_NAME = re.compile(r"\.csv(\.\w+)?$")
_MARKUP = re.compile(
    r"<(\?xml|!doctype|!--|html|head|body|mediawiki|page|doc|tei|text|corpus|article)\b", re.IGNORECASE
)
_ITEM_BREAK = re.compile(r"[\s,]*")
_VALUE_BREAK = re.compile(r"\s*")
_JSON_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def parse(path: Path, lines: Iterator[tuple[int, str]], document_break: str) -> Iterator[str | None]:
    """The lines of a file's documents, with None after each document.

    Args:
      path: the name that errors give.
      lines: (number, line with its end); a long line may come in several parts with the same number.
      document_break: in plain text, "blank_line" (blank lines set documents apart) or "file" (a file is a document).

    Raises:
      UserError: naming file and line, where the format is none of the four, or the file breaks its format.
    """
    head = _head(lines)
    if not head:
        return
    lines = itertools.chain(head, lines)
    number, first = next(_joined(path, head))
    first = first.lstrip()
    if _JSON.match(first.rstrip()) or _JSON_NAME.search(path.name):
        yield from _parse_json(path, lines)
    elif first.startswith("<doc "):
        yield from _parse_wiki(path, lines)
    elif found := _refused(path, [line for _, line in head]):
        kind, cure = found
        raise UserError(f"{path}, line {number}: begins like {kind} ({first.rstrip()[:60]!r}); {_FORMATS}: {cure}")
    else:
        for _, line in lines:
            yield None if document_break == "blank_line" and not line.strip() else line


def _head(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines that decide on the format: the first lines that are not blank, and the blank lines among them."""
    head: list[tuple[int, str]] = []
    for number, line in lines:
        if head or line.strip():
            head.append((number, line))
        full = sum(bool(line.strip()) for _, line in head) == _HEAD_LINES
        if full or sum(len(line) for _, line in head) > _HEAD_CHARS:
            break
    return head


def _refused(path: Path, head: list[str]) -> tuple[str, str] | None:
    """(what the file seems to be, what to do) for a file that is not plain text; None for plain text."""
    first = head[0].lstrip()
    if first.startswith("{\\rtf"):
        return "RTF", "save it as plain text"
    if markup := _MARKUP.match(first):
        dump = markup[1].lower() in ("mediawiki", "page")
        return "markup", "run WikiExtractor on it" if dump else "take the text out of its tags"
    filled = [line.strip("\n\t ") for line in head if line.strip()]
    tabs = {line.count("\t") for line in filled}
    if len(filled) >= 3 and len(tabs) == 1 and 0 not in tabs:
        return "a table with tabs", "give the column with the text alone, a document a line apart"
    if _CSV_NAME.search(path.name) and all("," in line for line in filled):
        return "CSV", "give the column with the text alone"
    return None


def _joined(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Whole lines from parts of lines, which have their line's number."""
    for number, pieces in itertools.groupby(lines, lambda line: line[0]):
        parts, size = [], 0
        for _, piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size > JSON_CHARS:
                raise _too_long(path, number)
        yield number, "".join(parts)


def _too_long(path: Path, number: int) -> UserError:
    return UserError(
        f"{path}, line {number}: no whole JSON value within {JSON_CHARS:,} characters, the most that one may have; "
        "cut its text, or repair it"
    )


def _parse_json(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[str | None]:
    """The lines of the texts of JSON objects, with None after each text.

    The objects stand one in each line, or span lines, or are the items of lists.
    """
    head = [next(lines)]
    is_list = head[0][1].lstrip().startswith("[")
    # The first line tells whether each line is an object. The line of a list may be as long as the file.
    while not is_list and not head[-1][1].endswith("\n") and (more := next(lines, None)):
        head.append(more)
        if sum(len(part) for _, part in head) > JSON_CHARS:
            raise _too_long(path, head[0][0])
    try:
        one_a_line = not is_list and isinstance(json_files.parse("".join(part for _, part in head)), dict)
    except ValueError:
        one_a_line = False
    lines = itertools.chain(head, lines)
    records = _parse_each(path, _joined(path, lines)) if one_a_line else _parse_values(path, lines)
    for number, record in records:
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            found = f"no string field 'text', but {_describe(record)}"
            raise UserError(f"{path}, line {number}: {found}; put each document's text there")
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON allows lone surrogates
        yield from whole.splitlines(keepends=True)
        yield None


def _describe(record: Any) -> str:
    if isinstance(record, dict) and "text" in record:
        return f"'text' is {json.dumps(record['text'])[:60]}"
    if isinstance(record, dict) and record:
        return f"the fields {listed(record)}"
    return _JSON_TYPES.get(type(record), "a number")


def _parse_each(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """(line number, value) of one JSON value a line."""
    for number, line in lines:
        if line.strip():
            try:
                yield number, json_files.parse(line)
            except ValueError as error:
                _not_json(path, number, error)


def _parse_values(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """(line number, value) of JSON values one after another; a list counts as its items."""
    text, place, line, inside = "", 0, 0, False  # `line` is the one that text[place] stands in
    more: list[str] = []  # follows `text`
    size, needed = 0, 0  # A value that was not whole is tried again when there are `needed` characters from `place` on.
    for number, part in itertools.chain(lines, [(0, "")]):
        line = line or number
        more.append(part)
        size += len(part)
        if part and size < needed:
            continue
        text, place, more = text[place:] + "".join(more), 0, []
        while True:
            space = (_ITEM_BREAK if inside else _VALUE_BREAK).match(text, place)
            start = space.end() if space else place
            line += text.count("\n", place, start)
            place, size = start, len(text) - start
            if not size:
                break
            if text[place] in "[]" and (text[place] == "]") == inside:
                inside, place, needed = not inside, place + 1, 0
                continue
            try:
                value, end = json_files.parse_first(text, place)
            except json_files.NotWhole as error:
                if not part:
                    _not_json(path, line, error)
                if size > JSON_CHARS:
                    raise _too_long(path, line) from error
                needed = min(2 * size, JSON_CHARS + 1)
                break
            except ValueError as error:
                _not_json(path, line, error)
            yield line, value
            line += text.count("\n", place, end)
            place, needed = end, 0
    if inside:
        raise UserError(f"{path} ends within a JSON list; copy it again")


def _not_json(path: Path, number: int, error: ValueError) -> NoReturn:
    reason = shortened(str(error).partition(": line ")[0])
    raise UserError(f"{path}, line {number}: not JSON ({reason}); a .jsonl file has one object a line") from error


def _parse_wiki(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[str | None]:
    """WikiExtractor's articles without their tags, and without the title, which is no sentence of the text."""
    title: str | None = None  # until the body's first line has been seen
    inside = False
    for number, line in lines:
        if line.startswith("<doc "):
            match = re.search(r'title="(.*?)"\s*>', line[:_TITLE_CHARS])
            title = html.unescape(match[1]) if match else ""
            inside = True
            yield None
        elif line.startswith("</doc>"):
            inside = False
            yield None
        elif line.strip():
            if not inside:
                raise UserError(f"{path}, line {number}: text outside of <doc ...> and </doc>; repair the file")
            if title is None or line.strip() != title:
                yield line
            title = None
