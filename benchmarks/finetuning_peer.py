"""Fine-tunes real weights on seven tasks, with this project and with transformers and torch, and compares both.

    python -m benchmarks.finetuning_peer                                  all cells; started again, it goes on
    python -m benchmarks.finetuning_peer --tasks sst2,semeval --seeds 1   some of them

A cell is one task, trained by one side with one seed, in a process of its own. Every finished cell is a line of
cells.jsonl in --work, and table.md there is written anew after each cell. The data and the weights are those of
../shared/data; the torch side needs requirements-torch.txt.

Both sides take the same parameters (a fresh head included), the same batches in the same order, the same schedule,
clipping, weight decay and dropout rates, and are scored by the same metrics at the end of training. Dropout masks
differ, so one task is also trained without dropout, where both sides must end alike. Examples and epochs are so few
that a cell takes 3 to 6 minutes of one core; they stand in the table.

CPU seconds are user and system time of the training alone: no imports, rows or evaluation. Compilation, which the torch
side does not have, is stated apart, and is cold in every cell. A cell has one core by default, since OpenMP's threads,
of which PyTorch has one a core, wait in loops that count as CPU seconds. On a busy machine all CPU seconds are higher:
compare sides that ran under the same load.

Continued pre-training on spans of raw text, whose result --init takes, costs 6 to 12 CPU seconds a step, and so 15 to
30 minutes on two cores. It keeps no pooler: tasks that have one begin with a fresh one.

    python -m spanbert_jax.main --config configs/base.py --workdir runs/continued \\
        --config.init_from=../shared/data/checkpoints/minilm_l6 \\
        --config.corpus.files='../shared/data/text/enwiki2015/wiki_0*' \\
        --config.data.block_length=128 --config.data.lengths=4 \\
        --config.model.dropout=0 --config.model.attention_dropout=0 \\
        --config.optimizer.learning_rate=2e-4 --config.optimizer.warmup_steps=50 \\
        --config.optimizer.weight_decay=0.01 --config.train.batch_size=32 --config.train.steps=300 \\
        --config.train.eval_every=150 --config.train.checkpoint_every=50
    python -m benchmarks.finetuning_peer --init runs/continued --sides ours

Invariant: a line of cells.jsonl is used again only for the settings that it was made with.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cells import mean, names_of, read_records, seeds_of
from benchmarks.measure import ROOT, Side, SideFailed, cores_of, need
from benchmarks.report import machine, write
from benchmarks.worker import Json
from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory
from spanbert_jax.training.progress import Stage

SHARED = ROOT.parent / "shared" / "data"
SIDES = {"ours": "this project", "theirs": "transformers + torch"}


class Task(NamedTuple):
    """A row of the table."""

    title: str  # with the metric
    config: str  # a module of configs/ and its argument
    train: str  # paths in the data directory
    dev: str
    train_examples: int | None  # evenly spread over the file; None: all
    dev_examples: int | None
    epochs: float
    fields: Mapping[str, Any] = MappingProxyType({})  # config fields that differ from COMMON


# Of all tasks. The optimizer is the one that torch has too.
COMMON: Json = {
    "data.block_length": 128,
    "data.lengths": 4,
    "corpus.workers": 1,
    "optimizer.learning_rate": 2e-4,
    "optimizer.bias_correction": True,
    "train.batch_size": 32,
}

_WNUT = ("ner", "wnut17/wnut17train.conll", "wnut17/emerging.dev.conll", None, None, 2.0)
_BC5CDR = ("ner", "bc5cdr/train.txt", "bc5cdr/test.txt", None, 1_500, 1.0)
_SEMEVAL = ("semeval2010_task8/TRAIN_FILE.TXT", "semeval2010_task8/TEST_FILE_FULL.TXT")
TASKS = {
    "sst2": Task("SST-2, accuracy", "glue:sst2", "sst2/train.tsv", "sst2/test.tsv", 4_000, None, 2.0),
    "rte": Task("RTE, accuracy", "glue:rte", "rte/train.tsv", "rte/dev.tsv", None, None, 2.0),
    "wnut17": Task("WNUT-17, token head, entity F1", *_WNUT),
    "wnut17_span": Task("WNUT-17, span head, entity F1", *_WNUT, {"tagging.head": "span"}),
    "bc5cdr": Task("BC5CDR, token head, entity F1", *_BC5CDR),
    "bc5cdr_still": Task(
        "BC5CDR, token head, without dropout, entity F1",
        *_BC5CDR,
        {"model.dropout": 0.0, "model.attention_dropout": 0.0},
    ),
    "semeval": Task("SemEval-2010 Task 8, macro-F1", "relation:semeval", *_SEMEVAL, None, None, 1.0),
    "squad": Task(
        "SQuAD 1.1, F1",
        "squad",
        "squad/train-v1.1-subset.json",
        "squad/dev-v1.1.json",
        1_500,
        600,
        1.0,
        {"train.batch_size": 16, "question_answering.stride": 64, "question_answering.max_question": 32},
    ),
}


class Cell(NamedTuple):
    """A training: what is trained, by whom, from which weights."""

    task: str
    side: str
    seed: int
    init: str

    def settings(self) -> Json:
        """All that the cell's result depends on, the files' contents apart."""
        task = TASKS[self.task]
        fields = {**COMMON, **task.fields, "finetuning.epochs": task.epochs}
        examples = {"train_examples": task.train_examples, "dev_examples": task.dev_examples}
        return {**self._asdict(), "config": task.config, "fields": fields, **examples}


def read_cells(path: Path) -> list[Json]:
    """The lines of a cells.jsonl whose settings are those of now; raises UserError, naming the line, where one cannot
    be read."""

    def is_current(settings: Json) -> bool:
        named: Json = {name: settings.get(name) for name in Cell._fields}
        cell = Cell(**named)
        return cell.task in TASKS and cell.settings() == settings

    return [record for record in read_records(path) if is_current(record["settings"])]


def measure(cell: Cell, data: Path, cores: tuple[int, ...], stage: Stage, place: str) -> Json:
    """Trains the cell in a process of its own; returns its line of cells.jsonl. place: for the progress display."""
    task = TASKS[cell.task]
    spec = {**cell.settings(), "train": str(data / task.train), "dev": str(data / task.dev)}
    # Every compilation is cold, whatever ran before.
    env = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with Side("finetuning_side", spec, cores, env) as side:
        side.ready()
        return {"settings": cell.settings(), **side.ask({}, lambda: stage.update(None, place))}


def table(records: Sequence[Json]) -> str:
    """The table in Markdown: a column of metrics for each pair of weights and side, and the CPU seconds of both sides
    from the weights of the first record."""

    def pick(task: str, side: str, init: str) -> list[Json]:
        wanted = {"task": task, "side": side, "init": init}
        return [one for one in records if wanted.items() <= one["settings"].items()]

    weights = list(dict.fromkeys(one["settings"]["init"] for one in records))
    columns = [(side, init) for init in weights for side in SIDES if any(pick(name, side, init) for name in TASKS)]
    head = ["task", "training; evaluation", "a guess without a model"]
    head += [f"{SIDES[side]}, from {Path(init).name}" for side, init in columns]
    head += ["CPU s a step: ours, theirs, ratio", "CPU s of training, compilation included: ours, theirs, ratio"]
    lines = [head, ["---"] * len(head)]
    for name, task in TASKS.items():
        cells = [pick(name, *column) for column in columns]
        if not any(cells):
            continue
        first = next(found[0] for found in cells if found)
        metrics = [mean([one["metrics"][one["best"]] for one in found], 1) for found in cells]
        pair = [[(one["steps"], one["cpu_seconds"]) for one in pick(name, side, weights[0])] for side in SIDES]
        each = [[seconds["steps"] / steps for steps, seconds in found] for found in pair]
        whole = [[seconds["compile"] + seconds["steps"] for _, seconds in found] for found in pair]
        amounts = f"{task.train_examples or 'all'} x {task.epochs:g} = {first['steps']} steps; "
        amounts += f"{task.dev_examples or 'all'}"
        guess = f"{first['guess'][first['best']]:.1f}"
        lines.append([task.title, amounts, guess, *metrics, _compared(each, 2), _compared(whole, 0)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{machine()}\n"


def _compared(sides: Sequence[Sequence[float]], digits: int) -> str:
    """The means of both sides and their ratio, as far as there are values."""
    means = [float(np.mean(values)) for values in sides if values]
    shown = [f"{value:.{digits}f}" for value in means]
    return ", ".join([*shown, f"{means[0] / means[1]:.2f}"] if len(means) == 2 else shown)


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for, one seed after the other, so that an early table has every task. Raises UserError
    for a task, a side or a seed that is unknown."""
    seeds, tasks = seeds_of(arguments.seeds), names_of("tasks", arguments.tasks, TASKS)
    wanted = itertools.product(seeds, tasks, names_of("sides", arguments.sides, SIDES))
    return [Cell(task, side, seed, str(arguments.init)) for seed, task, side in wanted]


def compare(arguments: argparse.Namespace) -> None:
    """Trains the cells that are not finished, and writes the table."""
    cells, cores = cells_of(arguments), cores_of(arguments.cores)
    if any(cell.side == "theirs" for cell in cells):
        need("torch")
        need("transformers")
    for option in ("data", "init"):
        if not getattr(arguments, option).is_dir():
            raise UserError(f"{getattr(arguments, option)}: no such directory; name another one with --{option}")
    make_directory(arguments.work, "--work")
    kept, table_file = arguments.work / "cells.jsonl", arguments.work / "table.md"
    with Stage("Fine-tuning") as stage:
        for number, cell in enumerate(cells, start=1):
            name = f"{cell.task}, {SIDES[cell.side]}, seed {cell.seed}"
            if not any(one["settings"] == cell.settings() for one in read_cells(kept)):
                try:
                    record = measure(cell, arguments.data, cores, stage, f"{number} of {len(cells)}: {name}")
                except SideFailed as error:
                    raise UserError(f"{name}: the measured process failed: {error}") from error
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                found, seconds = record["metrics"][record["best"]], record["cpu_seconds"]
                stage.say(f"{name}: {record['best']} {found:.1f}, {seconds['process']:.0f} CPU s in all")
            write(table_file, table(read_cells(kept)))
    print(table_file.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS), help="default: all, %(default)s")
    parser.add_argument("--sides", default=",".join(SIDES), help="default: both, %(default)s")
    parser.add_argument("--seeds", default="1,2,3", help="default: %(default)s")
    parser.add_argument(
        "--init",
        type=Path,
        default=SHARED / "checkpoints" / "minilm_l6",
        help="the weights, as of config.init_from; default MiniLM in ../shared/data",
    )
    parser.add_argument("--data", type=Path, default=SHARED, help="the labelled data; default ../shared/data")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "runs" / "finetuning_peer",
        help="keeps the cells; default runs/finetuning_peer",
    )
    parser.add_argument("--cores", type=int, default=1, help="that each side may use; default 1")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: compare(arguments))


if __name__ == "__main__":
    cli.run(main)
