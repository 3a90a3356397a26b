"""Shows the spans that rules find in a text, in colour, before a corpus is built with them.

    python tools/find_spans.py --rules 'capitals; pos:NP=D?[AC]*N+' FILE... [--html OUT | --json] [--documents 5]

The rules are those of config.corpus.spans (docs/spans.md), and files are read as --config.corpus.files reads them.
--json prints a line for each document, which the rule file: reads: {"key": ..., "spans": [[begin, end, kind], ...]}.
The counts of the spans of each kind come last, on standard error.

Invariant: the spans are those that a build with these rules stores with its blocks.
"""

import argparse
import collections
import html
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import written_aside
from spanbert_jax.text.documents import find_files, hash_text, read_files
from spanbert_jax.text.spans import SpanFinder, spans_of_text

# A colour for each kind, in turn: for the terminal, and for a page.
COLOURS = (
    ("black on yellow", "#ffe08a"),
    ("black on cyan", "#a8e6ef"),
    ("black on green", "#b7e4b0"),
    ("white on magenta", "#e5b8ee"),
    ("white on blue", "#b9cdf7"),
    ("white on red", "#f7bdb5"),
)
STYLE = """
body { font: 16px/1.8 Georgia, serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { font-family: system-ui, sans-serif; line-height: 1.3 } h2 { font-size: 1rem; margin-top: 2.5rem; color: #555 }
mark { border-radius: .25em; padding: .08em .2em; color: #222 } code { font-size: .9em }
mark sub { font: .65em system-ui, sans-serif; color: #555; margin-left: .3em }
"""


class Found(NamedTuple):
    """A document and its spans: (begin, end, kind from 0) in characters of the stripped text."""

    text: str
    spans: list[tuple[int, int, int]]
    left_out: int


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="text; globs work")
    parser.add_argument("--rules", required=True, help="as config.corpus.spans")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--html", type=Path, metavar="OUT", help="write the documents to this file, as a page")
    output.add_argument("--json", action="store_true", help="print the spans as JSON lines")
    parser.add_argument("--documents", type=int, default=0, metavar="N", help="the first N documents; default: all")
    parser.add_argument(
        "--document-break", choices=("blank_line", "file"), default="blank_line", help="config.corpus.document_break"
    )
    parser.add_argument(
        "--sentences", choices=("sentencex", "none"), default="sentencex", help="config.corpus.sentences"
    )
    parser.add_argument("--language", default="en", help="config.corpus.language")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: show(arguments))


def show(arguments: argparse.Namespace) -> None:
    """Prints or writes the documents, then the counts."""
    if arguments.html and not arguments.html.absolute().parent.is_dir():
        raise UserError(f"--html {arguments.html}: there is no directory {arguments.html.absolute().parent}")
    if arguments.html and arguments.html.is_dir():
        raise UserError(f"--html {arguments.html} is a directory; name a file")
    finder = SpanFinder(arguments.rules)
    found = documents(arguments, finder)
    counts: collections.Counter[int] = collections.Counter()
    totals = collections.Counter[str]()

    def counted() -> Iterator[Found]:
        for document in found:
            counts.update(kind for _, _, kind in document.spans)
            totals.update(documents=1, characters=len(document.text), left_out=document.left_out)
            yield document

    if arguments.html:
        with written_aside(arguments.html) as aside:
            aside.write_text(page(list(counted()), finder.kinds, arguments.rules), encoding="utf-8")
    elif arguments.json:
        for document in counted():
            spans = [(begin, end, finder.kinds[kind]) for begin, end, kind in document.spans]
            line = {"key": hash_text(document.text).hex(), "spans": spans}
            print(json.dumps(line, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        for document in counted():
            console.print(coloured(document), end="\n\n")
    sys.stdout.flush()
    summary = Console(stderr=True, highlight=False)
    summary.print(f"{totals['documents']:,} documents, {totals['characters']:,} characters")
    for kind, name in enumerate(finder.kinds):
        summary.print(Text.assemble("  ", (f" {name} ", COLOURS[kind % len(COLOURS)][0]), f"  {counts[kind]:,} spans"))
    if totals["left_out"]:
        summary.print(f"{totals['left_out']:,} sentences are too long to be searched by patterns and models")


def documents(arguments: argparse.Namespace, finder: SpanFinder) -> Iterator[Found]:
    """The documents of the files with their spans."""
    paths = find_files(",".join(arguments.files))
    for number, document in enumerate(read_files(paths, arguments.document_break)):
        if number == arguments.documents > 0:
            break
        yield find(document.text.strip(), finder, arguments.language, arguments.sentences)


def find(text: str, finder: SpanFinder, language: str, splitter: str) -> Found:
    """The spans of a text by characters."""
    found = spans_of_text(text, finder, language, splitter)
    return Found(text, [(begin, end, kind - 1) for begin, end, kind in found.spans], found.left_out)


def coloured(document: Found) -> Text:
    """The text of a document for the terminal."""
    text = cli.coloured_text(document.text)
    for begin, end, kind in document.spans:
        text.stylize(COLOURS[kind % len(COLOURS)][0], begin, end)
    return text


def page(found: list[Found], kinds: tuple[str, ...], rules: str) -> str:
    """The documents as one HTML file that needs no other file."""
    body = []
    for number, document in enumerate(found, 1):
        parts, at = [], 0
        for begin, end, kind in document.spans:
            style = f"background: {COLOURS[kind % len(COLOURS)][1]}"
            inside = f"{html.escape(document.text[begin:end])}<sub>{kinds[kind]}</sub>"
            parts += [html.escape(document.text[at:begin]), f'<mark style="{style}">{inside}</mark>']
            at = end
        parts.append(html.escape(document.text[at:]))
        text = "".join(parts).replace("\n", "<br>\n")
        body.append(f"<h2>Document {number}: {len(document.spans):,} spans</h2>\n<p>{text}</p>\n")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Spans by {html.escape(rules)}</title>\n<style>{STYLE}</style>\n"
        f"<h1>Spans by <code>{html.escape(rules)}</code></h1>\n{''.join(body)}</html>\n"
    )


if __name__ == "__main__":
    cli.run(main)
