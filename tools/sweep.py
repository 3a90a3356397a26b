"""Fine-tunes over a grid of learning rates, batch sizes and seeds, and prints a table.

    python tools/sweep.py --config configs/squad.py --workdir runs/sweep --learning-rates 1e-5,2e-5,3e-5 \\
        --batch-sizes 16,32 --seeds 1,2,3 -- --config.init_from=DIRECTORY --config.data.train=... --config.data.dev=...

The flags after -- go to every run. The paper's grids: learning rates 5e-6 to 5e-5, batches of 16 and 32.

Invariant: every run has a directory of its own, named by its point of the grid. A sweep that was stopped goes on with
the same command. All runs of a workdir have the same --config and flags, which its sweep.json holds; the grid may grow.
"""

import argparse
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from spanbert_jax import cli, json_files, signals
from spanbert_jax.errors import UserError, shortened
from spanbert_jax.files import make_directory, written_aside


def command(config: str, place: Path, rate: str, batch: str, seed: str, rest: list[str]) -> list[str]:
    """The command line of one run."""
    point = {"optimizer.learning_rate": rate, "train.batch_size": batch, "train.seed": seed}
    flags = [f"--config.{name}={value}" for name, value in point.items()]
    return [sys.executable, "-m", "spanbert_jax.main", "--config", config, "--workdir", str(place), *rest, *flags]


def run_to_its_end(command: list[str]) -> int:
    """Runs a command and returns its exit status. A signal to stop is handed on to the run, which saves and ends.

    The run has a process group of its own, or it would get Ctrl-C twice.
    """
    with signals.patience(), subprocess.Popen(command, process_group=0) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            return process.wait()


def check_the_same(workdir: Path, config: str, rest: list[str]) -> None:
    """Keeps --config and the flags of all runs in sweep.json at the first start, and compares them later.

    The runs of a sweep of an earlier version, which has no sweep.json, are not compared. Raises UserError where a flag
    differs, or where the file is damaged.
    """
    file, given = workdir / "sweep.json", [f"--config={config}", *rest]
    if not file.exists():
        if not any(workdir.glob("rate_*")):
            make_directory(workdir, "--workdir")
            with written_aside(file) as aside:
                aside.write_text(json.dumps(given, indent=2) + "\n", encoding="utf-8")
        return
    try:
        kept = [str(flag) for flag in json_files.read(file)]
    except json_files.OTHER_SHAPE as error:
        raise UserError(f"{file} is damaged ({shortened(repr(error))}); choose another --workdir") from error
    if kept != given:
        before, now = [flag for flag in kept if flag not in given], [flag for flag in given if flag not in kept]
        raise UserError(
            f"{file}: the runs there have {shlex.join(before or kept)}, and this command has "
            f"{shlex.join(now or given)}; give the flags of the first start in their order, or another --workdir"
        )


def table_of(results: dict[tuple[str, str], list[float]], metric: str) -> Table:
    """A row for each (learning rate, batch size): the mean over the seeds, the standard deviation, and every value. The
    row with the best mean is bold; a mean of nan is the worst."""
    best = max(results, key=lambda point: float(np.nan_to_num(np.mean(results[point]), nan=-np.inf)))
    table = Table("learning rate", "batch", f"{metric}, mean", "deviation", "seeds", box=None)
    for point, values in results.items():
        deviation = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
        each = ", ".join(f"{value:.2f}" for value in values)
        table.add_row(*point, f"{np.mean(values):.2f}", deviation, each, style="bold" if point == best else None)
    return table


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", required=True, help="the experiment: a file in configs/")
    parser.add_argument("--workdir", type=Path, required=True, help="gets a directory for each run")
    parser.add_argument("--learning-rates", default="5e-6,1e-5,2e-5,3e-5,5e-5")
    parser.add_argument("--batch-sizes", default="16,32")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("rest", nargs="*", help="flags of spanbert_jax.main for every run, after --")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: sweep(arguments))


def sweep(arguments: argparse.Namespace) -> int:
    """Runs the points of the grid that are not finished and prints the table.

    Returns 0, or the exit status of the first run that failed or was stopped. Raises UserError where a flag for the
    runs is one of the sweep's own, and where a run leaves no results.
    """
    own = [flag for flag in arguments.rest if re.match(r"--?(no)?(config|workdir)(=|$)", flag)]
    if own:
        raise UserError(f"{own[0]} stands after --, and each run gets it from the sweep; give it before --")
    lists = [text.split(",") for text in (arguments.learning_rates, arguments.batch_sizes, arguments.seeds)]
    grid = list(itertools.product(*lists))
    results: dict[tuple[str, str], list[float]] = {}
    metric = ""
    check_the_same(arguments.workdir.resolve(), arguments.config, arguments.rest)
    for number, (rate, batch, seed) in enumerate(grid, start=1):
        place = arguments.workdir.resolve() / f"rate_{rate}-batch_{batch}-seed_{seed}"
        file = place / "results.json"
        if not file.exists():
            print(f"[{number} of {len(grid)}] {place}", flush=True)
            run = command(arguments.config, place, rate, batch, seed, arguments.rest)
            status = run_to_its_end(run)
            if status:
                if status != cli.STOPPED_EARLY:  # of which the run has said so
                    print(f"error: the run in {place} ended with status {status}", file=sys.stderr)
                return status
            if not file.exists():
                raise UserError(f"{place}: the run left no results.json; give a --config that fine-tunes a task")
        try:
            result = json_files.read(file)
            metric = result["best"]
            value = float(np.mean([trial[metric] for trial in result["trials"]]))
        except json_files.OTHER_SHAPE as error:
            again = "delete it, and the sweep makes it again"
            raise UserError(f"{file} is damaged ({shortened(repr(error))}); {again}") from error
        results.setdefault((rate, batch), []).append(value)
    Console(highlight=False, soft_wrap=True).print(table_of(results, metric))
    return 0


if __name__ == "__main__":
    cli.run(main)
