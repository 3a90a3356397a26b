"""The paper's tables 6 and 7 in miniature, and what each extension of the encoder is worth.

    python -m benchmarks.ablation                                          all cells; started again, it goes on
    python -m benchmarks.ablation --groups masking --seeds 1 --starts random

A cell is one recipe (benchmarks/ablation_grid.py) with one seed: pre-training on Wikipedia, from random weights or from
a trained BERT, and fine-tuning of the result on SQuAD, WNUT-17, SemEval-2010 and the mentions of LitBank. Each cell is
a process on one core, as many side by side as there are cores. Finished cells are lines of cells.jsonl in --work, and
a pre-training that was stopped goes on from its checkpoint. All of it takes hours of two cores, and minutes of an
accelerator.

Rows are compared seed by seed. A difference is called noise where Student's t allows it in over 5% of draws without any
difference: with three seeds, where its mean is at most 4.3 times its standard error.

Invariant: within a start, all recipes train for the same number of steps of the same size.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

from benchmarks.ablation_grid import GUESS, LENGTHS, MINILM, RULES, STARTS, TASKS, TEXT, TUNING, recipes, rows_of
from benchmarks.cells import mean, names_of, run_cells, seeds_of
from benchmarks.measure import ROOT, Side, cores_of
from benchmarks.report import machine, write
from benchmarks.worker import Json
from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory, written_aside
from spanbert_jax.training.progress import Stage

SHARED = ROOT.parent / "shared" / "data"
GROUPS = {
    "masking": "What is masked (two segments and NSP, no SBO)",
    "objective": "Which objectives",
    "extension": "Extensions of the encoder, each beside its control of equal parameters",
}


class Cell(NamedTuple):
    """A recipe from a start with a seed; or the guess, which has neither steps nor seeds."""

    recipe: str
    start: str
    seed: int
    steps: int

    @classmethod
    def of_guess(cls, start: str) -> "Cell":
        """The guess on the held-out blocks of a start."""
        return cls(GUESS, start, 1, 1)

    @property
    def fields(self) -> Json:
        """The fields of the pre-training, files apart."""
        start = STARTS[self.start]
        steps = {"train.steps": self.steps, "optimizer.warmup_steps": self.steps // 10, "train.seed": self.seed}
        often = {"train.eval_every": self.steps, "train.checkpoint_every": self.steps, "train.log_every": self.steps}
        return {"corpus.spans": RULES, **start.fields, **recipes()[self.recipe].fields, **steps, **often}

    def settings(self) -> Json:
        tasks = {name: {**task._asdict(), "fields": dict(task.fields)} for name, task in TASKS.items()}
        return {**self._asdict(), "fields": self.fields, "tasks": tasks, "tuning": self.tuning}

    @property
    def tuning(self) -> Json:
        """The fields of every fine-tuning."""
        return {**TUNING, **STARTS[self.start].tuning}


def train(cell: Cell, arguments: argparse.Namespace, core: int, running: dict[Cell, Side]) -> Json:
    """The results of the cell, from a process on one core."""
    data, work = arguments.data.resolve(), arguments.work.resolve()
    workdir = work / f"{cell.recipe}-{cell.start}-{cell.seed}"
    fields = {**cell.fields, **files_of(cell, arguments)}
    if cell.start == "minilm":
        fields["init_from"] = str(data / MINILM)
    tasks = {}
    for name, task in TASKS.items() if cell.recipe != GUESS else ():
        folder = work / "litbank" if name == "litbank" else data
        spec = {"train": str(folder / task.train), "dev": str(folder / task.dev), "seed": cell.seed}
        spec |= {"train_examples": task.train_examples, "dev_examples": task.dev_examples, "config": task.config}
        tasks[name] = {**spec, "fields": {**cell.tuning, **task.fields, "finetuning.epochs": task.epochs}}
    spec = {"config": STARTS[cell.start].config, "fields": fields, "tasks": tasks}
    if tasks:
        spec["workdir"] = str(workdir)
    spec["held_out"] = str(work / f"data-{cell.start}-one" / "blocks")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"}
    with Side("ablation_cell", spec, (core,), {"JAX_PLATFORMS": "cpu", **cache}) as side:
        running[cell] = side
        try:
            found = side.ready().ask({})
        finally:
            running.pop(cell, None)
    if tasks:
        shutil.rmtree(workdir)
    return found


def files_of(cell: Cell, arguments: argparse.Namespace) -> Json:
    """The fields that name files: the text, and the blocks that all cells of the start share."""
    kind = "pairs" if cell.fields.get("corpus.pairs") else "one"
    place = arguments.work.resolve() / f"data-{cell.start}-{kind}"
    return {"corpus.files": str(arguments.data.resolve() / TEXT), "data.dir": str(place)}


def build(cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """Builds the blocks that the cells read, where they are missing: each kind by a run of one step."""
    of_losses = [cell._replace(recipe="one") for cell in cells]  # all held-out losses are those on single sequences
    for cell in {files_of(cell, arguments)["data.dir"]: cell for cell in [*of_losses, *cells]}.values():
        fields = {**cell.fields, **files_of(cell, arguments), "train.steps": 1, "optimizer.warmup_steps": 0}
        place = Path(fields["data.dir"])
        if (place / "blocks").is_dir():
            continue
        if cell.start == "minilm":
            fields["init_from"] = str(arguments.data.resolve() / MINILM)
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        workdir = place.with_name(place.name + "-run")
        module, _, argument = STARTS[cell.start].config.partition(":")
        config = f"configs/{module}.py" + (f":{argument}" if argument else "")
        command = [sys.executable, "-m", "spanbert_jax.main", "--config", config, "--workdir", str(workdir), *flags]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            raise UserError(f"{place}: its blocks could not be built; the lines above say why")
        shutil.rmtree(workdir)


def litbank(source: Path, output: Path) -> None:
    """Writes the mentions of LitBank's documents as JSON lines of nested entities: every tenth document is "dev"."""
    make_directory(output, "--work")
    sides: dict[str, list[str]] = {"train": [], "dev": []}
    for number, file in enumerate(sorted(source.glob("*"))):
        lines = sentences_with_mentions(file.read_text(encoding="utf-8"))
        sides["dev" if number % 10 == 9 else "train"] += [json.dumps(one, ensure_ascii=False) for one in lines]
    for side, texts in sides.items():
        write(output / f"{side}.jsonl", "".join(f"{text}\n" for text in texts))


def sentences_with_mentions(text: str) -> list[Json]:
    """The sentences of a document in CoNLL-2012's columns, with the mentions of the last column, which may nest."""
    found = []
    for block in text.split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if line.strip() and not line.startswith("#")]
        words, mentions = [row[3] for row in rows], set()
        open_at: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            marks = next((cell for cell in reversed(row) if cell.strip()), "_")
            for mark in marks.split("|") if marks != "_" else ():
                cluster = mark.strip("()")
                if mark.startswith("("):
                    open_at.setdefault(cluster, []).append(place)
                if mark.endswith(")"):
                    mentions.add((open_at[cluster].pop(), place + 1))
        if words:
            found.append({"words": words, "entities": [[*ends, "mention"] for ends in sorted(mentions)]})
    return found


Results = Mapping[Cell, Json]


def table(results: Results, start: str, group: str, seeds: Sequence[int], steps: int) -> str:
    """The table of a group in Markdown: means and deviations over the seeds, and the differences from the row that a
    recipe is compared with, "~" before those within noise."""
    head = [
        "recipe",
        "held-out loss on [MASK], nats",
        "accuracy on [MASK], %",
        *(task.title for task in TASKS.values()),
    ]
    lines = [head, ["---"] * len(head)]
    rows = rows_of(start, group)
    for name, reference in rows:
        mine, other = (measures(results, one, start, seeds, steps) for one in (name, reference))
        pairs = enumerate(itertools.zip_longest(mine, other))
        cells = [shown(values, compared, 1 if place else 3) for place, (values, compared) in pairs]
        beside = f" (beside {reference})" if reference else ""
        lines.append([f"{name}: {recipes()[name].title}{beside}", *cells])
    guess, of_tasks = results[Cell.of_guess(start)], results[Cell(rows[0].recipe, start, seeds[0], steps)]["guess"]
    cells = [f"{guess['loss'][0]:.3f}", f"{guess['accuracy'][0]:.1f}", *(f"{of_tasks[name]:.1f}" for name in TASKS)]
    lines.append([recipes()[GUESS].title, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def measures(results: Results, name: str | None, start: str, seeds: Sequence[int], steps: int) -> list[list[float]]:
    """The values of each column, a list over the seeds; empty without a recipe."""
    if name is None:
        return []
    found = [results[Cell(name, start, seed, steps)] for seed in seeds]
    tasks = [[one["metrics"][task] for one in found] for task in TASKS]
    return [[one["loss"][0] for one in found], [one["accuracy"][0] for one in found], *tasks]


def shown(values: Sequence[float], reference: Sequence[float] | None, digits: int) -> str:
    """The mean and deviation, and the mean difference from the reference seed by seed."""
    if reference is None:
        return mean(values, digits)
    differences, count = np.subtract(values, reference), len(values)
    shift = differences.mean()
    noise = count < 2 or abs(shift) <= student_t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    return f"{mean(values, digits)} ({'~' if noise else ''}{shift:+.{digits}f})"


def draw(results: Results, start: str, seeds: Sequence[int], steps: int, groups: Sequence[str], output: Path) -> None:
    """The held-out loss on [MASK] by the length of the masked span, a line for each recipe, a panel for each group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 4), constrained_layout=True, squeeze=False)
    names = [str(first) if first == last else f"{first}-{last}" for first, last in LENGTHS]
    names[-1] = f"{LENGTHS[-1][0]}+"
    for axis, group in zip(axes[0], groups, strict=True):
        for name, _ in rows_of(start, group):
            if not name.startswith("control_"):
                losses = [results[Cell(name, start, seed, steps)]["loss"][1:] for seed in seeds]
                axis.plot(names, np.mean(losses, 0), "o-", ms=3, lw=1, label=name)
        axis.plot(names, results[Cell.of_guess(start)]["loss"][1:], color="grey", ls="-.", label=GUESS)
        axis.set_title(GROUPS[group], fontsize=8)
        axis.set_xlabel("pieces in the masked span")
        axis.legend(fontsize=6)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("held-out loss on [MASK], nats a piece")
    with written_aside(output) as aside:
        figure.savefig(aside, dpi=110, format=output.suffix.removeprefix("."))


def compare(arguments: argparse.Namespace) -> None:
    """Trains the cells that are not finished, and writes the tables and the pictures."""
    groups, starts = (names_of("groups", arguments.groups, GROUPS), names_of("starts", arguments.starts, STARTS))
    seeds, cores = seeds_of(arguments.seeds), cores_of(arguments.cores)
    if not (arguments.data / "litbank").is_dir():
        raise UserError(f"{arguments.data}: no labelled data there; name its directory with --data")
    make_directory(arguments.work, "--work")
    litbank(arguments.data / "litbank" / "conll", arguments.work / "litbank")
    steps = {start: arguments.steps or STARTS[start].steps for start in starts}
    wanted = [
        Cell(row.recipe, start, seed, steps[start])
        for start, seed, group in itertools.product(starts, seeds, groups)
        for row in rows_of(start, group)
    ]
    wanted += [Cell.of_guess(start) for start in starts]  # last: their seconds say nothing about the time of the others
    build(wanted, arguments)
    running: dict[Cell, Side] = {}

    def cancel() -> None:
        for side in list(running.values()):
            side.close()

    def told(cell: Cell, record: Json) -> str:
        tasks = "".join(f", {name} {value:.1f}" for name, value in record["metrics"].items())
        what = f"{cell.recipe}, {cell.start}, seed {cell.seed}: {record['loss'][0]:.3f} nats{tasks}"
        return f"{what}; {record['cpu_seconds']:.0f} CPU s"

    def one(cell: Cell, core: int) -> Json:
        return train(cell, arguments, core, running)

    with Stage("Ablation") as stage:
        results = run_cells(wanted, arguments.work / "cells.jsonl", cores, one, cancel, stage, told)
    parts = []
    for start in starts:
        parts.append(f"## From {STARTS[start].title}: {steps[start]:,} steps, {len(seeds)} seeds\n")
        for group in groups:
            parts.append(f"### {GROUPS[group]}\n\n{table(results, start, group, seeds, steps[start])}")
        draw(results, start, seeds, steps[start], groups, arguments.work / f"ablation-{start}.svg")
    text = "\n".join([*parts, machine(), ""])
    write(arguments.work / "tables.md", text)
    print(text, f"wrote {arguments.work}/tables.md and ablation-*.svg", sep="\n")


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--groups", default=",".join(GROUPS), help="default: all, %(default)s")
    parser.add_argument("--starts", default=",".join(STARTS), help="default: all, %(default)s")
    parser.add_argument("--seeds", default="1,2,3", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="of pre-training; default: those of the start")
    parser.add_argument("--cores", type=int, help="cells that run side by side; default: all that may be used")
    parser.add_argument("--data", type=Path, default=SHARED, help="text and labelled data; default ../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ablation", help="default runs/ablation")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: compare(arguments))


if __name__ == "__main__":
    cli.run(main)
