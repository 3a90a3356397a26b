"""Cells of a grid of trainings: asked for, run side by side, one on each core, and kept as the lines of a file.

Invariant: a finished cell is a line of the file, which is used again only for the settings that it was made with. So a
grid that is started again goes on.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from benchmarks.worker import Json
from spanbert_jax.errors import UserError
from spanbert_jax.training.progress import Stage, clock


def names_of(option: str, given: str, known: Collection[str]) -> list[str]:
    """The names of an option, such as "a,b" of --tasks; raises UserError for one that is not known."""
    names = given.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"--{option}: {name!r} is unknown; known are {', '.join(known)}")
    return names


def seeds_of(given: str) -> list[int]:
    """The numbers of --seeds, such as "1,2,3"; raises UserError for anything else."""
    if not all(seed.isdecimal() for seed in given.split(",")):
        raise UserError(f"--seeds {given}: expected numbers with commas between them, such as 1,2,3")
    return [int(seed) for seed in given.split(",")]


def mean(values: Sequence[float], digits: int) -> str:
    """The mean and, from two values on, the standard deviation; "" without values."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}" if values else ""


class Cell(Hashable, Protocol):
    """A training of the grid."""

    def settings(self) -> Json:
        """All that the cell's result depends on, as JSON."""


def read_records(path: Path) -> list[Json]:
    """The lines of a file of cells; raises UserError, naming the line, where one cannot be read."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), start=1):
        try:
            record = json.loads(line)
            record["settings"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: no line of a finished cell; delete the line") from error
        found.append(record)
    return found


C = TypeVar("C", bound=Cell)


def run_cells(
    cells: Sequence[C],
    kept: Path,
    cores: Sequence[int],
    train: Callable[[C, int], Json],
    cancel: Callable[[], None],
    stage: Stage,
    told: Callable[[C, Json], str],
) -> dict[C, Json]:
    """The record of every cell; trains those that the file `kept` lacks, as many at once as there are cores.

    train: a cell and its core -> the record's other entries than "settings". cancel: ends all cells that are being
    trained. told: a line for people. The first cell that fails ends the others, and its exception is raised.
    """
    wanted = list(dict.fromkeys(cells))
    known = {json.dumps(record["settings"], sort_keys=True): record for record in read_records(kept)}
    found = {cell: known[key] for cell in wanted if (key := json.dumps(cell.settings(), sort_keys=True)) in known}
    left = [cell for cell in wanted if cell not in found]
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    lock, stopped = threading.Lock(), threading.Event()
    for core in cores:
        free.put(core)

    began: dict[C, float] = {}  # of the cells that are being trained
    took: list[float] = []  # seconds, of those that were trained

    def one(cell: C) -> None:
        core = free.get()
        try:
            if stopped.is_set():
                return
            with lock:
                began[cell] = time.monotonic()
            record = {"settings": cell.settings(), **train(cell, core)}
        except BaseException:
            stopped.set()
            raise
        finally:
            free.put(core)
        with lock:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            found[cell] = record
            took.append(time.monotonic() - began.pop(cell))
            stage.say(told(cell, record))

    def show() -> None:
        with lock:
            running = [time.monotonic() - start for start in began.values()]
            waiting = len(wanted) - len(found) - len(running)
            seconds = time_left(took, running, waiting, len(cores))
        left = "" if seconds is None else f" · {clock(seconds)} left"
        stage.update(None, f"{len(found)} of {len(wanted)} cells{left}")

    pool = ThreadPoolExecutor(len(cores))
    try:
        pending = {pool.submit(one, cell) for cell in left}
        while pending:
            done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            show()
    finally:
        stopped.set()
        cancel()
        pool.shutdown(cancel_futures=True)
    return found


def time_left(took: Sequence[float], running: Sequence[float], waiting: int, cores: int) -> float | None:
    """Seconds until all cells are trained, if each takes as long as the mean of those before it; None before the first.

    took: seconds of the cells that were trained. running: seconds since each of the others began. waiting: how many
    have not begun.
    """
    if not took:
        return None
    each = sum(took) / len(took)
    rest = [max(each - seconds, 0.0) for seconds in running]
    return max((sum(rest) + waiting * each) / cores, *rest, 0.0)
