"""What each part of the pre-training recipe is worth, at equal training pieces and at equal CPU seconds.

    python -m benchmarks.learning                          all cells; started again, it goes on
    python -m benchmarks.learning --recipes bert,modern --seeds 1

A recipe is a set of fields on top of configs/tiny.py, which gives the corpus, the vocabulary, the widths and the
batches. A row of the table changes one thing in the row that it names. A cell is one recipe with one seed, trained by
`python -m spanbert_jax.main` on one core; as many cells as there are cores run side by side. Every finished cell is a
line of cells.jsonl in --work. The last step's evaluation over all held-out blocks gives nats and accuracies on the
pieces that [MASK] replaced.

Equal pieces: every recipe trains for --steps steps on the same batches. Equal CPU seconds: every recipe trains again,
for as many steps as fit into the CPU seconds that the first recipe took for --steps steps. CPU seconds are user and
system time of the whole process. Both guesses without a model stand in the table's last rows.

Invariant: a line of cells.jsonl is used again only for the settings that it was made with.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cells import mean, names_of, run_cells, seeds_of
from benchmarks.measure import ROOT, cores_of
from benchmarks.report import machine, write
from benchmarks.worker import Json
from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory, written_aside
from spanbert_jax.training.progress import Stage, metric_records

BIASES = ("attention_bias", "mlp_bias", "norm_bias", "head_bias")
BERT: Json = {
    "model.family": "bert",
    "model.pre_norm": False,
    "model.gated_mlp": False,
    "model.mlp": 384,
    **{f"model.{name}": True for name in BIASES},
    "model.init": "normal",
    "model.init_std": 0.02,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 2e-3,
    "optimizer.beta2": 0.999,
    "optimizer.muon_rms": 0.2,
    "masking.rate": 0.15,
    "train.sbo_weight": 1.0,
}


ADAMW: Json = {"model.init_std": 0.05, "optimizer.learning_rate": 4e-3, "optimizer.beta2": 0.98}
# Adam updates the tables by steps of the learning rate. BERT's position table loses its structure in large steps.
MUON: Json = {
    "optimizer.name": "muon",
    "optimizer.learning_rate": 1e-2,
    "optimizer.muon_rms": 0.2,
    "model.init_std": 0.02,
}
SLOW_MUON: Json = {"optimizer.name": "muon", "optimizer.learning_rate": 2e-3, "optimizer.muon_rms": 1.0}
GATED: Json = {"model.gated_mlp": True, "model.mlp": 256, **{f"model.{name}": False for name in BIASES}}


class Recipe(NamedTuple):
    """A row of the table: `changes` on top of the recipe `of`."""

    title: str
    of: str | None
    changes: Json


RECIPES = {
    "bert": Recipe("BERT, AdamW: initial deviation 0.02, learning rate 2e-3, beta2 0.999", None, BERT),
    "bert_adamw": Recipe("BERT, AdamW: 0.05, 4e-3, 0.98", "bert", ADAMW),
    "bert_muon": Recipe("BERT, Muon", "bert_adamw", SLOW_MUON),
    "bert_local": Recipe("BERT, Muon, heads that begin by looking nearby", "bert_muon", {"model.init": "local"}),
    "rotary_adamw": Recipe("rotary positions, AdamW", "bert_adamw", {"model.family": "modern"}),
    "rotary": Recipe("rotary positions, Muon", "rotary_adamw", MUON),
    "prenorm": Recipe("and pre-LayerNorm", "rotary", {"model.pre_norm": True}),
    "modern": Recipe("and a gated MLP of as many parameters, no biases", "prenorm", GATED),
    "modern_adamw": Recipe("modern, AdamW", "modern", {"optimizer.name": "adamw", **ADAMW}),
    "truncated": Recipe("modern, truncated initial values", "modern", {"model.init": "truncated"}),
    "mlm": Recipe("modern, MLM without SBO", "modern", {"train.sbo_weight": 0.0}),
    "rate30": Recipe("modern, 30% masked, falling to 15%", "modern", {"masking.rate": 0.3}),
}


def fields_of(name: str, steps: int) -> Json:
    """The configuration's fields of a recipe that trains for `steps` steps."""
    recipe = RECIPES[name]
    fields = {**(fields_of(recipe.of, steps) if recipe.of else {}), **recipe.changes}
    fields["masking.rate_steps"] = steps if fields["masking.rate"] != 0.15 else 0
    return fields | {"train.steps": steps, "optimizer.warmup_steps": steps // 10, "train.eval_every": steps}


class Cell(NamedTuple):
    """A training."""

    recipe: str
    seed: int
    steps: int

    def settings(self) -> Json:
        """All that the cell's result depends on, configs/tiny.py apart."""
        return {**self._asdict(), "fields": fields_of(self.recipe, self.steps)}


def train(cell: Cell, work: Path, core: int, running: set[int]) -> Json:
    """Trains the cell in a process on one core; returns its metrics and CPU seconds. running: the processes to stop
    when this one is stopped.

    Raises UserError where the run fails.
    """
    place = work / f"{cell.recipe}-{cell.steps}-{cell.seed}"
    shutil.rmtree(place, ignore_errors=True)
    fields = {**cell.settings()["fields"], "train.seed": cell.seed, "data.dir": work / "data"}
    fields |= {"train.checkpoint_every": cell.steps, "train.log_every": max(1, cell.steps // 100)}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "spanbert_jax.main", "--config", "configs/tiny.py", "--workdir", str(place)]
    log = work / f"{place.name}.log"
    with log.open("w") as out:
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen([*command, *flags], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
        running.add(process.pid)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {core})
        _, status, used = os.wait4(process.pid, 0)
        running.discard(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{cell.recipe}, seed {cell.seed}: the run ended with {process.returncode}; see {log}")
    held_out = metric_records(place / "metrics.jsonl")[-1][1]
    metrics = {name.removeprefix("held_out/"): value for name, value in held_out.items() if name != "step"}
    shutil.rmtree(place)
    return {"metrics": metrics, "cpu_seconds": used.ru_utime + used.ru_stime}


def train_all(cells: Sequence[Cell], work: Path, cores: Sequence[int], stage: Stage) -> dict[Cell, Json]:
    """Trains the cells that cells.jsonl lacks, as many at once as there are cores; returns the lines of all."""
    running = set[int]()

    def cancel() -> None:
        for process in list(running):
            os.kill(process, signal.SIGKILL)

    def told(cell: Cell, record: Json) -> str:
        loss, right = record["metrics"]["mlm_loss_mask"], record["metrics"]["mlm_accuracy_mask"]
        what = f"{cell.recipe}, seed {cell.seed}, {cell.steps} steps: {loss:.3f} nats, {right:.1%} on [MASK]"
        return f"{what}; {record['cpu_seconds']:.0f} CPU s"

    def one(cell: Cell, core: int) -> Json:
        return train(cell, work, core, running)

    return run_cells(cells, work / "cells.jsonl", cores, one, cancel, stage, told)


def affordable(recipe: str, records: dict[Cell, Json], seeds: Sequence[int], steps: int, first: str) -> int:
    """The steps of `recipe` that fit into the CPU seconds of `first`'s; the same number where they differ by under
    3%."""
    spent = {
        name: float(np.mean([records[Cell(name, seed, steps)]["cpu_seconds"] for seed in seeds]))
        for name in (recipe, first)
    }
    ratio = spent[first] / spent[recipe]
    return steps if abs(ratio - 1) < 0.03 else round(steps * ratio)


def _values(records: Sequence[Json], name: str, scale: float) -> list[float]:
    return [scale * one["metrics"][name] for one in records if name in one["metrics"]]


MEASURES = (("mlm_loss_mask", 1.0, 3), ("mlm_accuracy_mask", 100.0, 1), ("sbo_accuracy_mask", 100.0, 1))


def table(equal: dict[str, list[Json]], afforded: dict[str, list[Json]]) -> str:
    """The table in Markdown. equal, afforded: the records of each recipe, a seed each, at equal pieces and at equal CPU
    seconds."""
    head = ["recipe", "nats", "[MASK], %", "SBO, %", "CPU s", "worth, nats", "steps", "nats", "[MASK], %", "SBO, %"]
    lines = [head, ["---"] * len(head)]
    for name, records in equal.items():
        cells = [mean(_values(records, *measure[:2]), measure[2]) or "-" for measure in MEASURES]
        of = RECIPES[name].of
        worth = "-"
        if of in equal:
            after, before = (np.mean(_values(rows, "mlm_loss_mask", 1.0)) for rows in (records, equal[of]))
            worth = f"{before - after:+.3f} ({of})"
        seconds = f"{np.mean([one['cpu_seconds'] for one in records]):.0f}"
        again = afforded.get(name, [])
        steps = str(again[0]["settings"]["steps"]) if again else "-"
        cells_again = [mean(_values(again, *measure[:2]), measure[2]) or "-" for measure in MEASURES]
        lines.append([f"{name}: {RECIPES[name].title}", *cells, seconds, worth, steps, *cells_again])
    metrics = next(iter(equal.values()))[0]["metrics"]
    for title, guess in (("always the commonest piece", "commonest"), ("the visible neighbours", "neighbours")):
        loss = f"{metrics[f'mlm_{guess}_loss_mask']:.3f}" if f"mlm_{guess}_loss_mask" in metrics else "-"
        names = [f"{head}_{guess}_mask" for head in ("mlm", "sbo")]
        rights = [f"{100 * metrics[name]:.1f}" if name in metrics else "-" for name in names]
        lines.append([f"without a model: {title}", loss, *rights, *["-"] * (len(head) - 4)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{machine()}\n"


def draw(equal: dict[str, list[Json]], afforded: dict[str, list[Json]], output: Path) -> None:
    """Nats on [MASK], a point for each seed, at equal pieces and at equal CPU seconds; the guess from the neighbours is
    a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(equal)
    figure, axis = plt.subplots(figsize=(8, 0.32 * len(names) + 1.2), constrained_layout=True)
    for records, label, offset, colour in ((equal, "equal pieces", -0.12, "C0"), (afforded, "equal CPU s", 0.12, "C1")):
        points = [(v, i + offset) for i, n in enumerate(names) for v in _values(records.get(n, []), *MEASURES[0][:2])]
        if points:
            axis.plot(*zip(*points, strict=True), "o", ms=5, color=colour, label=label)
    guess = equal[names[0]][0]["metrics"].get("mlm_neighbours_loss_mask")
    if guess:
        axis.axvline(guess, color="grey", ls="-.", label="guess from the neighbours")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("held-out loss on [MASK], nats a piece")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with written_aside(output) as aside:
        figure.savefig(aside, dpi=110, format=output.suffix.removeprefix("."))


def compare(arguments: argparse.Namespace) -> None:
    """Trains the cells that are not finished, and writes the table and the picture."""
    recipes, steps = names_of("recipes", arguments.recipes, RECIPES), arguments.steps
    seeds, cores = seeds_of(arguments.seeds), cores_of(arguments.cores)
    make_directory(arguments.work, "--work")
    work = arguments.work.resolve()
    with Stage("Learning, equal pieces") as stage:
        # The first cell builds the blocks that the others read.
        first = Cell(recipes[0], seeds[0], steps)
        train_all([first], work, cores[:1], stage)
        records = train_all([Cell(name, seed, steps) for seed in seeds for name in recipes], work, cores, stage)
    equal = {name: [records[Cell(name, seed, steps)] for seed in seeds] for name in recipes}
    counts = {name: affordable(name, records, seeds, steps, recipes[0]) for name in recipes}
    with Stage("Learning, equal CPU seconds") as stage:
        cells = [Cell(name, seed, count) for seed in seeds for name, count in counts.items()]
        records = train_all(cells, work, cores, stage)
    afforded = {name: [records[Cell(name, seed, count)] for seed in seeds] for name, count in counts.items()}
    write(work / "table.md", table(equal, afforded))
    draw(equal, afforded, work / "learning.svg")
    print((work / "table.md").read_text(encoding="utf-8"), f"\nwrote {work}/table.md and learning.svg", sep="")


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="default: all, %(default)s")
    parser.add_argument("--seeds", default="1,2", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=400, help="of each recipe, at equal pieces; default %(default)s")
    parser.add_argument("--cores", type=int, help="cells that run side by side; default: all that may be used")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "learning", help="default runs/learning")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: compare(arguments))


if __name__ == "__main__":
    cli.run(main)
