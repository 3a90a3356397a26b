"""Every reader and converter that is fed with damaged files gives a result or one bounded line: no traceback, no hang,
no memory without an end."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuzz_kept import KEPT
from tests.support.fuzz_targets import TARGETS
from tests.support.fuzzing import Target, check, fuzz, place

INPUTS = 200  # of each target


@functools.cache
def made(name: str) -> Target:
    return TARGETS[name]()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The working directory of a test."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_ten_thousand_inputs_are_tried() -> None:
    assert len(TARGETS) * INPUTS >= 10_000


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused_in_one_bounded_line(name: str, folder: Path) -> None:
    assert fuzz(name, made(name), INPUTS) > 0  # the inputs are damaged enough to matter


@pytest.mark.parametrize(("name", "wrong"), KEPT)
def test_a_file_on_which_a_reader_failed_once_is_refused(name: str, wrong: str, folder: Path) -> None:
    target, (file, damage) = made(name), KEPT[name, wrong]
    data = damage if isinstance(damage, bytes) else damage(target.files[file])
    place({**target.beside, **target.files, file: data})
    assert check(target.read)
