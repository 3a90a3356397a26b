"""A long text of any kind takes time in proportion to its length: each test would take minutes or hours otherwise."""

from collections.abc import Callable
from pathlib import Path

import pytest

from spanbert_jax.serving.gaps import piece_classes, read_gaps
from spanbert_jax.tasks.entities.files import check_entities
from spanbert_jax.tasks.entities.rows import WordExample
from spanbert_jax.tasks.entities.words import WordStyle, find_words
from spanbert_jax.text.documents import read_files
from spanbert_jax.text.words import split_words
from tests.support.fuzzing import bounded
from tests.support.tuned import WORDPIECE

_STYLE = WordStyle(apart="'", leading="@", repeated=".", endings=("'s", "n't"), unspaced=("中文",))
_PATTERNS = ("a", "a'", ".", "@a", "1.", "n't", "a-", "e\u0301", "中", '"', "(")


def _find(pattern: str) -> Callable[[Path], object]:
    return lambda _: (find_words(pattern * 150_000, _STYLE), split_words(pattern * 150_000))


def _gaps(_: Path) -> None:
    found = read_gaps("[MASK] a " * 20_000, None, 2, WORDPIECE, piece_classes(WORDPIECE))
    assert len(found.gaps) == 20_000 and found.around[5] == WORDPIECE.tokenize("a")


def _entities(_: Path) -> None:
    words = ("a",) * 50_000
    example = WordExample("1", words, tuple((i, i + 1, "X") for i in range(len(words))))
    assert check_entities([example], "a.jsonl", 4) == check_entities([example], "a.jsonl", 0) == []


def _title(folder: Path) -> None:
    (folder / "wiki").write_text("<doc " + 'title="' * 100_000 + "\nA\n</doc>\n")
    assert [one.text for one in read_files([folder / "wiki"], "blank_line")] == ["A\n"]


LONG: dict[str, Callable[[Path], object]] = {
    **{f"words of {pattern}": _find(pattern) for pattern in _PATTERNS},
    "gaps": _gaps,
    "entities": _entities,
    "a title": _title,
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_input_takes_seconds(name: str, tmp_path: Path) -> None:
    with bounded():
        LONG[name](tmp_path)
