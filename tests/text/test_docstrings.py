"""The embedded corpus is prose, in the same order always, and says nothing twice."""

from pathlib import Path

import pytest

from spanbert_jax.text import docstrings
from spanbert_jax.text.docstrings import clean, extract, module_paths, read_docstrings
from spanbert_jax.text.documents import make_documents
from spanbert_jax.text.worker_pool import Workers

DOCSTRING = """Return the sum of two numbers, which may
    be wrapped over several lines.

    >>> add(1, 2)
    3
    and this is doctest output

    Some code follows the next line::

        result = this is not prose at all
        more code here in this block

    But this is prose again, with :class:`Number` and ``literal`` and *stress*.

    .. note:: ignored
    ===== =====
    table of many words in it
    ===== =====

    Args:
      first: The first of the two numbers.
      second: The second number, or
        nothing at all.
      x: 1

    - the first of several items
    - the second of several items

    ```python
    fenced = "code that is dropped too"
    ```
    """


def test_cleaning_keeps_prose_unwrapped_and_drops_code() -> None:
    assert clean(DOCSTRING) == [
        "Return the sum of two numbers, which may be wrapped over several lines.",
        "Some code follows the next line:",
        "But this is prose again, with Number and literal and stress.",
        "table of many words in it",
        "first: The first of the two numbers.",
        "second: The second number, or nothing at all.",
        "- the first of several items",
        "- the second of several items",
    ]


def test_half_a_character_in_a_docstring_becomes_text_that_utf_8_can_hold() -> None:
    (paragraph,) = clean("A docstring may hold half a character: \ud800 in the middle of it.")
    (document,) = make_documents([(paragraph, None)])
    assert document.text.encode("utf-8").decode() == document.text.replace("\ud800", "?")


def test_docstrings_of_modules_classes_and_functions_are_found_in_order(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""The module says this sentence."""\n'
        "x = '''A string that is no docstring at all.'''\n"
        "class A:\n"
        '    """The class says this sentence."""\n'
        "    def f(self):\n"
        '        """The method says this sentence."""\n'
        "try:\n"
        "    async def g():\n"
        '        """The function says this sentence."""\n'
        "except ImportError:\n"
        "    def g():\n"
        '        """The fallback says this sentence."""\n'
        'def h():\n    """The class says this sentence."""\n'
    )
    speakers = ("module", "class", "method", "function", "fallback")
    assert extract([module]) == [[f"The {speaker} says this sentence." for speaker in speakers]]


CHAIN = b"'''x'''\nif x: pass\n" + b"elif x: pass\n" * 1_000  # deeper than Python recurses


@pytest.mark.parametrize("source", [b"def f(:\n  '''x'''", b"\xff\xfe'''", b"'''a\0b'''", b"", b"x = 1", CHAIN])
def test_a_module_that_cannot_be_parsed_has_no_text(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "module.py").write_bytes(source)
    assert extract([tmp_path / "module.py", tmp_path / "missing.py"]) == [[], []]


def test_modules_are_documents_and_no_paragraph_comes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i}.py" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_text(f'"""Module {"abcdef"[i]} has a line.\n\nAll modules have this line in common.\n"""\n')
    monkeypatch.setattr(docstrings, "module_paths", lambda: paths)
    monkeypatch.setattr(docstrings, "TASK_BYTES", 100)
    monkeypatch.setattr(docstrings, "found_texts", [])
    with Workers(2) as pool:
        documents = list(read_docstrings(pool))
        assert [document[:2] for document in read_docstrings(pool)] == [document[:2] for document in documents]
    assert documents[-1].fraction == 1.0
    assert [document.text for document in documents] == [
        "Module a has a line.\nAll modules have this line in common.",
        *(f"Module {letter} has a line." for letter in "bcdef"),
    ]


def test_this_python_has_prose_for_a_small_run() -> None:
    paths = module_paths()
    assert paths == module_paths() and len(paths) > 1000
    names = {path.name for path in paths}
    assert "argparse.py" in names and not any(name.endswith("_pb2.py") for name in names)
    argparse = next(path for path in paths if path.name == "argparse.py" and path.parent.name.startswith("python3"))
    text = "\n".join(extract([argparse])[0])
    assert "Action objects are used by an ArgumentParser to represent the information needed" in text
    assert ">>>" not in text
