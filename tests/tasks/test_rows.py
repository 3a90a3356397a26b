"""Rows: collating, keeping in files, and building in processes give back what went in."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.tasks import rows as rows_module
from spanbert_jax.tasks.rows import VERSION, Row, build_rows, fingerprint, load_rows, make_rows, save_rows, widen

ROWS: list[list[Row]] = [
    [{"input_ids": [5, 6, 7], "label": [1, 2, 3], "gold": 4, "box": np.array([1.5, 2.5])}],
    [],
    [
        {"input_ids": [8], "label": [9], "gold": 5, "box": np.array([0.5, 1.0])},
        {"input_ids": [1, 2], "label": [3, 4], "gold": 6, "box": np.array([0.0, 0.0])},
    ],
]


def repeated(examples: Sequence[int]) -> list[list[Row]]:
    """As many rows as the example's last digit, with the process that made them."""
    return [[{"input_ids": [n] * (i + 1), "process": os.getpid()} for i in range(n % 10)] for n in examples]


def test_a_batch_pads_ragged_columns_and_marks_empty_rows() -> None:
    batch = make_rows(ROWS).collate(np.array([2, -1, 0]), 4, {"label": -1})
    np.testing.assert_array_equal(batch["input_ids"], [[1, 2, 0, 0], [0, 0, 0, 0], [5, 6, 7, 0]])
    np.testing.assert_array_equal(batch["label"], [[3, 4, -1, -1], [-1, -1, -1, -1], [1, 2, 3, -1]])
    np.testing.assert_array_equal(batch["lengths"], [2, 0, 3])
    np.testing.assert_array_equal(batch["weights"], [1, 0, 1])
    np.testing.assert_array_equal(batch["gold"][[0, 2]], [6, 4])
    np.testing.assert_array_equal(batch["box"][0], [0.0, 0.0])
    assert {batch[name].dtype for name in ("input_ids", "label", "lengths")} == {np.dtype(np.int32)}
    assert "example" not in batch


def test_rows_know_their_example_and_their_columns() -> None:
    rows = make_rows(ROWS)
    np.testing.assert_array_equal(rows.example, [0, 2, 2])
    np.testing.assert_array_equal(rows.lengths, [3, 1, 2])
    np.testing.assert_array_equal(rows.column("label", 2), [3, 4])
    assert len(make_rows([[], []])) == 0


def test_kept_rows_are_read_back(tmp_path: Path) -> None:
    rows = make_rows(ROWS)
    save_rows(rows, tmp_path / "kept" / "rows.npz")
    again = load_rows(tmp_path / "kept" / "rows.npz")
    assert again is not None
    for indices in (np.array([0, 1, 2]), np.array([-1, 2])):
        old, new = (one.collate(indices, 5, {}) for one in (rows, again))
        assert old.keys() == new.keys()
        for name in old:
            np.testing.assert_array_equal(old[name], new[name])
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["rows.npz"]


def test_rows_of_another_version_and_damaged_ones_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.npz"
    assert load_rows(path) is None
    save_rows(make_rows(ROWS), path)
    assert load_rows(path) is not None
    for share in (0.0, 0.3, 0.99):
        (tmp_path / "cut.npz").write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert load_rows(tmp_path / "cut.npz") is None
    monkeypatch.setattr(rows_module, "VERSION", VERSION + 1)
    assert load_rows(path) is None
    with np.load(path) as file:  # as version 1 wrote them
        np.savez(path, **{name: file[name] for name in file.files if name != "version"})
    assert load_rows(path) is None


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_a_range_is_widened_on_both_sides_in_turn(sizes: list[int], data: st.DataObject) -> None:
    low = data.draw(st.integers(0, len(sizes) - 1))
    high = data.draw(st.integers(low + 1, len(sizes)))
    room = sum(sizes[low:high]) + data.draw(st.integers(0, 12))
    start, end = widen(sizes, low, high, room)
    assert start <= low and high <= end and sum(sizes[start:end]) <= room
    assert start == 0 or sum(sizes[start - 1 : end]) > room  # nothing more fits on either side
    assert end == len(sizes) or sum(sizes[start : end + 1]) > room
    if set(sizes) == {1} and start > 0 and end < len(sizes):
        assert low - start - (end - high) in (0, 1)


def test_rows_of_several_processes_are_those_of_one_in_order() -> None:
    examples = list(range(10, 430))
    done: list[float] = []
    many = make_rows(build_rows(examples, repeated, 2, done.append))
    one = make_rows(repeated(examples))
    np.testing.assert_array_equal(many.example, one.example)
    np.testing.assert_array_equal(many.ragged["input_ids"][0], one.ragged["input_ids"][0])
    assert os.getpid() not in many.plain["process"] and done[-1] == 1


def test_the_fingerprint_is_of_the_content_and_the_settings(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").write_text("text")
    (tmp_path / "c").write_text("other")
    marks = [fingerprint(str(tmp_path / name), {"x": 1}) for name in "abc"]
    assert marks[0] == marks[1] != marks[2]
    assert fingerprint(str(tmp_path / "a"), {"x": 2}) != marks[0]
    assert fingerprint("squad", {}) != fingerprint("squad/v2.0", {})


def test_a_pipe_which_can_be_read_once_is_refused_as_data_of_a_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"/pipe is no regular file, .*; write it to a file"):
        fingerprint(str(tmp_path / "pipe"), {})
