"""The embedded corpus: the documentation strings of the standard library and of the installed packages.

Invariant: on one machine the documents are always the same, in the same order. Each module is a document. A paragraph
that an earlier module has too is left out, so that boilerplate is not learnt by heart and held-out modules do not
repeat the text of other modules.
"""

import ast
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from spanbert_jax.text import worker_pool
from spanbert_jax.text.documents import Document, make_documents

_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "_api"}
TASK_BYTES = 500_000  # of source code in one task of a worker
_MIN_WORDS = 5  # in a paragraph
_MIN_PROSE = 0.75  # share of letters and spaces in a paragraph

_MARKUP = re.compile(r"(?::\w+)+:(?=`)|`+_*|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)")
_BEGINS_PARAGRAPH = re.compile(r"[-*+•] |\d+[.)] |:\w+ |\w+(?: ?\([^)]*\))?: |\w+ : |@\w+")
_NOT_PROSE = re.compile(r"\.\. |[-=~^\"'#*+_|]{3,}|\+[-=]|\||>>>|\.\.\. ?$|\w+( \w+)?:$|\$ ")
_FENCE = ("```", "~~~")


# The texts, once this process has read them all: a run reads the corpus twice, and parsing is slow.
found_texts: list[str] = []


def read_docstrings(pool: worker_pool.Workers) -> Iterator[Document]:
    """The prose in the docstrings of this Python's modules, a document a module, in the order of `module_paths`.

    The processes of `pool` parse the modules.
    """
    return make_documents(_again() if found_texts else _read(pool))


def _again() -> Iterator[tuple[str, float | None]]:
    for done, text in enumerate(found_texts, start=1):
        yield text, done / len(found_texts)


def _read(pool: worker_pool.Workers) -> Iterator[tuple[str, float | None]]:
    tasks = list(_tasks(module_paths()))
    seen: set[bytes] = set()
    texts: list[str] = []
    for done, modules in enumerate(pool.map(extract, tasks), start=1):
        for paragraphs in modules:
            texts.append("\n".join(paragraph for paragraph in paragraphs if _is_new(paragraph, seen)))
            yield texts[-1], done / len(tasks)
    found_texts[:] = texts


def module_paths() -> list[Path]:
    """Source files of the standard library, then of every installed package, each in order of path, without tests."""
    site_packages = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    paths: list[Path] = []
    for root in dict.fromkeys([sysconfig.get_path("stdlib"), *site_packages]):
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
            paths += [Path(folder, name) for name in sorted(files) if _is_wanted(name)]
    return paths


def _is_wanted(name: str) -> bool:
    return name.endswith(".py") and not name.endswith("_pb2.py")


def extract(paths: list[Path]) -> list[list[str]]:
    """The paragraphs of prose in each module's docstrings; a module that cannot be read or parsed has none."""
    return [_paragraphs_of_module(path) for path in paths]


def _paragraphs_of_module(path: Path) -> list[str]:
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in other people's code
            docstrings = dict.fromkeys(_docstrings(ast.parse(source)))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [paragraph for docstring in docstrings for paragraph in clean(docstring)]


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in order; expressions are not searched, for speed."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield docstring
    for field in ("body", "handlers", "orelse", "finalbody"):
        children = getattr(node, field, ())
        if isinstance(children, list):
            for child in children:
                yield from _docstrings(child)


def clean(docstring: str) -> list[str]:
    """The docstring's paragraphs of prose, each unwrapped to one line: no doctests, code, tables or markup."""
    paragraphs: list[list[str]] = [[]]
    code_indent: int | None = None  # lines indented deeper than this are code
    in_fence, in_doctest, indent = False, False, 0
    for line in inspect.cleandoc(docstring).splitlines():
        text = line.strip()
        previous, indent = indent, len(line) - len(line.lstrip()) if text else indent
        if text.startswith(_FENCE):
            in_fence = not in_fence
        in_doctest = bool(text) and (in_doctest or text.startswith(">>>"))
        if code_indent is not None and text and indent <= code_indent:
            code_indent = None
        if not text or in_fence or in_doctest or code_indent is not None or _NOT_PROSE.match(text):
            paragraphs.append([])
            if text.startswith(".. ") and text.endswith("::"):
                code_indent = indent if "code" in text or "math" in text else code_indent
            continue
        if _BEGINS_PARAGRAPH.match(text) or indent < previous:
            paragraphs.append([])
        paragraphs[-1].append(text)
        if text.endswith("::"):
            code_indent = indent
    joined = (_MARKUP.sub("", " ".join(lines)).replace("::", ":") for lines in paragraphs)
    return [paragraph for paragraph in joined if _is_prose(paragraph)]


def _is_prose(paragraph: str) -> bool:
    if len(paragraph.split()) < _MIN_WORDS:
        return False
    return sum(char.isalpha() or char == " " for char in paragraph) >= _MIN_PROSE * len(paragraph)


def _is_new(paragraph: str, seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(paragraph.encode("utf-8", "replace"), digest_size=8).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _tasks(paths: list[Path]) -> Iterator[list[Path]]:
    task: list[Path] = []
    size = 0
    for path in paths:
        task.append(path)
        size += path.stat().st_size if path.exists() else 0
        if size >= TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task
