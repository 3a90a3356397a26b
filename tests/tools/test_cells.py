"""benchmarks/cells.py: a grid goes on where it was stopped, and what it kept is used for the same settings alone."""

import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.cells import read_records, run_cells, time_left
from spanbert_jax.errors import UserError
from spanbert_jax.training.progress import Stage


class Cell(NamedTuple):
    name: str
    steps: int

    def settings(self) -> dict[str, Any]:
        return {**self._asdict(), "rate": 0.1}


def test_a_finished_cell_is_used_again_only_for_its_own_settings(tmp_path: Path) -> None:
    kept, one, other = tmp_path / "cells.jsonl", Cell("a", 1), Cell("b", 2)
    stale = {"settings": {**other.settings(), "rate": 0.2}, "loss": 9.0}
    kept.write_text("".join(f"{json.dumps(record)}\n" for record in ({"settings": one.settings(), "loss": 1.0}, stale)))
    trained: list[tuple[Cell, int]] = []

    def train(cell: Cell, core: int) -> dict[str, Any]:
        trained.append((cell, core))
        return {"loss": 2.0}

    with Stage("Cells") as stage:
        found = run_cells([one, other, one], kept, (3,), train, lambda: None, stage, lambda cell, record: cell.name)
    assert trained == [(other, 3)]
    assert {cell: record["loss"] for cell, record in found.items()} == {one: 1.0, other: 2.0}
    assert [record["loss"] for record in read_records(kept)] == [1.0, 9.0, 2.0]


def test_the_first_cell_that_fails_ends_the_others(tmp_path: Path) -> None:
    cancelled, both = threading.Event(), threading.Barrier(2)
    trained: list[str] = []

    def train(cell: Cell, core: int) -> dict[str, Any]:
        trained.append(cell.name)
        both.wait(timeout=10)
        if cell.name == "fails":
            raise UserError("no memory")
        assert cancelled.wait(timeout=10)
        raise UserError("ended")

    cells = [Cell(name, 1) for name in ("long", "fails", "later")]
    with Stage("Cells") as stage, pytest.raises(UserError, match="no memory"):
        run_cells(cells, tmp_path / "cells.jsonl", (0, 1), train, cancelled.set, stage, lambda *_: "")
    assert set(trained) == {"fails", "long"}
    assert not (tmp_path / "cells.jsonl").exists()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    kept = tmp_path / "cells.jsonl"
    kept.write_text('{"settings": {}}\n{}\n')
    with pytest.raises(UserError, match=r"cells\.jsonl, line 2: no line of a finished cell; delete the line"):
        read_records(kept)


def test_the_time_left_counts_what_running_cells_have_done() -> None:
    assert time_left([], [50.0], 3, 2) is None
    assert time_left([90.0, 110.0], [100.0, 40.0], 0, 2) == 60.0  # of the last cell, beside which a core is idle
    assert time_left([90.0, 110.0], [20.0, 40.0], 4, 2) == (80.0 + 60.0 + 400.0) / 2
    assert time_left([100.0], [130.0, 120.0], 0, 2) == 0.0  # slower than those before
