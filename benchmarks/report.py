"""Shows the results of the table in a terminal, as Markdown, as JSON and as a plot.

Invariant: all four show the same numbers; the JSON also has those of each round.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Result
from benchmarks.worker import Json
from spanbert_jax.errors import UserError
from spanbert_jax.files import written_aside

_COLUMNS = ("what", "ours", "theirs", "ratio")


def number(value: float) -> str:
    """The value with at least three significant digits, and a comma between thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def with_unit(value: float, unit: str) -> str:
    """The value with its unit: "12.3 s", "1.2%"."""
    return f"{number(value)}{'' if unit == '%' else ' '}{unit}".rstrip()


def cells(result: Result) -> tuple[str, ...]:
    """The cells of a result, in the order of the table's columns."""
    theirs = "" if result.theirs is None else with_unit(result.theirs, result.unit)
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}x"
    return (result.what, with_unit(result.ours, result.unit), theirs, ratio)


def terminal() -> Console:
    """A console for results, 200 columns wide where it is no terminal, so that a file's lines are not cut."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200
    return console


def table(results: Iterable[Result]) -> Table:
    """The table for a terminal, without the results' `counted`."""
    out = Table(*_COLUMNS, box=None)
    for result in results:
        out.add_row(*cells(result))
    return out


def show(results: list[Result]) -> None:
    """Prints the table, and under it what each result counted."""
    console = terminal()
    console.print()
    console.print(table(results))
    console.print()
    for result in results:
        console.print(f"{result.what}: {result.counted}", markup=False)
    console.print(machine(), markup=False)


def machine() -> str:
    """The processor, the cores that this process may use, and the libraries' versions, in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = []
    for package in ("jax", "torch", "transformers", "tensorflow-cpu"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{name}, {cores} cores; {', '.join(versions)}"


def markdown(results: Iterable[Result]) -> str:
    """The table as docs/speed.md shows it."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(result)) + " |" for result in results]
    return "\n".join([*lines, "", machine(), ""])


def as_json(results: Iterable[Result]) -> Json:
    """All results with all their fields, and the machine."""
    return {
        "machine": machine(),
        "results": [{**dataclasses.asdict(result), "ratio": result.ratio} for result in results],
    }


def plot(results: list[Result], path: Path) -> None:
    """Draws a bar for each comparison, from 1 to the ratio of ours to theirs.

    Raises UserError where matplotlib is missing, or no result compares two sides.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot: matplotlib is missing; pip install -r requirements-dev.txt") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [result for result in results if result.ratio is not None]
    if not shown:
        raise UserError("--plot: no result of this call compares two sides; use --json")
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.42 * len(shown)), constrained_layout=True)
    for place, result in enumerate(reversed(shown)):
        assert result.ratio is not None
        axis.barh(place, result.ratio - 1, left=1, color="tab:blue", height=0.6)
        what = f"{cells(result)[3]}   {cells(result)[1]}, {cells(result)[2]}"
        axis.text(1.01, place, what, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    axis.axvline(1.0, color="black", lw=1.2)
    axis.set_yticks(range(len(shown)), [result.what for result in reversed(shown)], fontsize=8)
    axis.set(xscale="log", xlabel="ours over theirs (line: equal); at the right the ratio, ours, theirs")
    axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
    figure.savefig(path)
    plt.close(figure)


def write(path: Path, text: str) -> None:
    """Writes the text aside, then renames the file; raises UserError where the file cannot be written."""
    try:
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def save(results: list[Result], json_file: Path | None, plot_file: Path | None, markdown_file: Path | None) -> None:
    """Writes the files whose paths are given."""
    if json_file:
        write(json_file, json.dumps(as_json(results), indent=2) + "\n")
    if markdown_file:
        write(markdown_file, markdown(results))
    if plot_file:
        plot(results, plot_file)
