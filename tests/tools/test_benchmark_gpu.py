"""How tools/benchmark.py compares on a GPU, whose memory one side fills, without one."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks import step
from benchmarks.measure import Options, SideFailed
from benchmarks.step import Variant

SPEC = {"size": "tiny", "precision": "bf16", "length": 64, "batch": 8, "dropout": "none", "attention": "triton"}
SPEC |= {"unroll": True}
OPTIONS = Options(rounds=2, cores=(0,), work=Path(), text=Path(), vocab=Path())
GPU = {"platform": "gpu", "devices": 1, "device": "NVIDIA H200"}


class FakeSide:
    """A peer that has memory for `fits` rows and takes a second for two of them."""

    fits = 4
    started: ClassVar[list[tuple[str, int]]] = []  # of all sides

    def __init__(self, module: str, spec: dict[str, Any], cores: tuple[int, ...], env: dict[str, str]):
        self.rows, self.facts = spec["batch"], {}
        self.started.append((module, self.rows))

    def ready(self, show: Any = None) -> "FakeSide":
        if self.rows > self.fits:
            raise SideFailed("OutOfMemoryError: CUDA out of memory")
        return self

    def ask(self, request: dict[str, Any], show: Any = None) -> dict[str, Any]:
        return {"seconds": request["steps"] * self.rows / 2}

    def __enter__(self) -> "FakeSide":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def test_our_side_is_what_the_sweep_measured_and_a_peer_gets_the_rows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "Side", FakeSide)
    monkeypatch.setattr(FakeSide, "started", [])
    best = Variant(dict(SPEC), speed=9.0, rounds=(8.0, 10.0, 9.0))
    (row,) = step.compare(best, ["transformers"], OPTIONS, GPU)
    assert FakeSide.started == [("peers", 8), ("peers", 4)]
    assert (row.ours, row.theirs, row.ratio) == (9.0, 2.0, 4.5)
    assert "batch 4" in row.counted


def test_a_peer_that_never_fits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "Side", FakeSide)
    monkeypatch.setattr(FakeSide, "fits", 1)
    monkeypatch.setattr(FakeSide, "started", [])
    with pytest.raises(SideFailed, match="transformers: OutOfMemoryError"):
        step.compare(Variant(dict(SPEC), rounds=(1.0,)), ["transformers"], OPTIONS, GPU)
    assert [rows for _, rows in FakeSide.started] == [8, 4, 2]
