"""Runs one step of a run again, and shows which rows and which operation made a number that is not finite.

    python tools/replay.py --workdir runs/base --step 12345

The state before the step comes from the nearest checkpoint before it and from the run's own steps after that, with the
same batches, masks and dropout. Each row of the batch is then computed by itself. Where a row's loss or gradient is not
finite, the row's operations run one by one with JAX's checks for NaN on. For a trial of several give runs/NAME/trial_N.

Invariant: nothing in the run's directory changes, and the run itself may go on meanwhile.
"""

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from spanbert_jax import cli

if TYPE_CHECKING:
    from spanbert_jax.runs.replay import OpenedRun
    from spanbert_jax.training.replaying import Replay

_CHARACTERS = 2000  # of a block's text


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="the directory of the run")
    parser.add_argument("--step", type=int, required=True, help="the number of the step, which is that of its batch")
    parser.add_argument("--rows", type=int, default=8, help="rows to show, at most; default %(default)s")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from etils import epath

    from spanbert_jax.runs.replay import opened_run
    from spanbert_jax.training.progress import Stage
    from spanbert_jax.training.replaying import replay

    workdir = epath.Path(arguments.workdir)
    with opened_run(workdir) as run:
        with Stage(f"Replaying step {arguments.step:,}", enabled=sys.stderr.isatty()) as stage:
            found = replay(run.config, run.recipe, workdir, arguments.step, lambda words: stage.update(None, words))
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 120
        for line in summary(run, found, arguments.step):
            console.print(line, markup=False, soft_wrap=True)
        console.print(group_table(found))
        console.print(row_table(run, found, arguments.rows))
        for row in [row for row in found.rows if row.block >= 0][: arguments.rows]:
            text = textwrap.shorten(run.text(row.block), _CHARACTERS)
            console.print(f"\n{run.recipe.of.removesuffix('s')} {row.block}: {text}", markup=False, soft_wrap=True)


def summary(run: "OpenedRun", found: "Replay", step: int) -> list[str]:
    """Lines about the way to the step, its loss, and the first operation whose result is not finite."""
    start = "the run's first state" if found.start is None else f"checkpoint {found.start:,}"
    lines = [f"Step {step:,}, run again from {start}"]
    if found.skipped:
        named = ", ".join(f"{number:,}" for number in found.skipped[:8])
        lines.append(f"Of these steps {len(found.skipped):,} were skipped, as in the run: {named}")
    if found.overflowed is not None:
        lines.append(f"The update of step {found.overflowed:,} made parameters that are not finite")
    sums = {name: float(value) for name, value in found.sums.items()}
    lines.append(f"Loss {found.loss:.6g}: {run.recipe.describe(_named(run, sums))}")
    bad = sum(not row.is_finite for row in found.rows)
    if not bad:
        lines.append("Every row's loss and gradient is finite")
    else:
        lines.append(f"{bad:,} of {len(found.rows):,} rows have a loss or a gradient that is not finite")
        lines.append(f"First in row {found.rows[0].row}: {found.first_operation or 'every operation alone is finite'}")
    return lines


def _named(run: "OpenedRun", sums: dict[str, float]) -> dict[str, float]:
    return {f"train/{name}": value for name, value in run.recipe.metrics(sums).items()}


def group_table(found: "Replay") -> Table:
    """A row for each group of trained parameters."""
    table = Table("parameters", "norm", "norm of the gradient", "values not finite", box=None)
    for group in found.groups:
        table.add_row(group.name, f"{group.norm:.4g}", f"{group.gradient_norm:.4g}", f"{group.not_finite:,}")
    return table


def row_table(run: "OpenedRun", found: "Replay", count: int) -> Table:
    """The rows that are not finite first, then those with the highest loss."""
    table = Table("row", run.recipe.of.removesuffix("s"), "part of the loss", "norm of the gradient", box=None)
    for row in found.rows[:count]:
        table.add_row(str(row.row), str(row.block), f"{row.loss:.4g}", f"{row.gradient_norm:.4g}")
    return table


if __name__ == "__main__":
    cli.run(main)
