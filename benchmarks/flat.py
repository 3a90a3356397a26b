"""Whether a long run stays flat: memory, open files, threads and the time of a step, with saves and evaluations.

    python -m benchmarks.flat                     2,000 steps of a tiny model; writes runs/flat/table.md and flat.svg

The run is a process of its own, `python -m spanbert_jax.main`, on the topics of Python's documentation, which every
Python has. It saves every 50 steps and evaluates every 100. With each new line of its metrics.jsonl, Linux's /proc
gives the run's resident memory, open files and threads. The time of a step is the line's own.

Growth and noise: the first quarter of the run warms up allocators and thread pools, and is left out. The rest is cut
into 15 parts, of which the medians count: an evaluation or a save that is under way in some samples does not move
them, and neighbouring medians no longer depend on each other as samples do. Theil and Sen's slope of the medians, the
median of the slopes between all pairs of them, has a 95% interval that supposes no distribution. A quantity is flat if
the whole interval is below the quantity's bound. It grows if the whole interval is above 0. Otherwise the measurement
is too noisy. Exit status 1: some quantity is not flat.

Invariant: the numbers are of the real program, and nothing is measured inside it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from benchmarks.measure import ROOT
from benchmarks.report import machine, number, write
from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory, written_aside
from spanbert_jax.training.progress import Stage, metric_records

FIELDS: dict[str, object] = {
    "tokenizer.vocab_size": 1000,
    "corpus.held_out": 0.1,
    "corpus.workers": 1,
    "data.block_length": 64,
    "data.lengths": 2,
    "model.layers": 2,
    "model.embed": 32,
    "model.heads": 2,
    "model.mlp": 64,
    "model.max_length": 64,
    "train.batch_size": 8,
    "train.log_every": 10,
    "train.eval_every": 100,
    "train.eval_blocks": 64,
    "train.checkpoint_every": 50,
}
PARTS = 15
WARM_UP = 0.25  # of the steps


class Quantity(NamedTuple):
    """A quantity that must stay flat."""

    title: str
    unit: str
    bound: float  # of its growth in 1,000 steps, in `unit`; of the step time, a share of its median
    reason: str


# A batch has 30 kB and the training state 1 MB: a run that kept each batch would grow by 30 MB in 1,000 steps, and one
# that kept the state of each save by 20 MB.
QUANTITIES = {
    "memory": Quantity("resident memory", "MB", 4.0, "a fifth of the states that 1,000 steps save"),
    "files": Quantity("open files", "", 1.0, "one in 1,000 steps, where 20 saves and 10 evaluations open some"),
    "threads": Quantity("threads", "", 1.0, "one in 1,000 steps"),
    "time": Quantity("time of a step", "ms", 0.05, "5% of the median"),
}


class Trend(NamedTuple):
    """The growth of a quantity in 1,000 steps after the warm-up: Theil and Sen's slope and its 95% interval."""

    first: float  # the median of the first part
    last: float  # of the last part
    slope: float
    low: float
    high: float

    def verdict(self, bound: float) -> str:
        """bound: of the growth in 1,000 steps."""
        if self.high <= bound:
            return "flat"
        return "grows" if self.low > 0 else "too noisy to tell"


def trend(steps: Sequence[float], values: Sequence[float]) -> Trend:
    """The trend of samples, of which there is at least one in each part."""
    from scipy.stats import theilslopes

    x, y = np.asarray(steps, float), np.asarray(values, float)
    kept = x > WARM_UP * x[-1]
    at, medians = (
        np.array([np.median(part) for part in np.array_split(array[kept], PARTS)]) for array in (x / 1000, y)
    )
    slope, _, low, high = theilslopes(medians, at, alpha=0.95)
    return Trend(float(medians[0]), float(medians[-1]), float(slope), float(low), float(high))


class Sample(NamedTuple):
    """The run at a step: memory in MB, the mean time of a step since the last sample in ms."""

    step: int
    memory: float
    files: int
    threads: int
    time: float


def samples(workdir: Path, process: "subprocess.Popen[bytes]") -> Iterator[Sample]:
    """A sample with each new line of training metrics, until the process has ended."""
    seen, place = 0, Path("/proc") / str(process.pid)
    while process.poll() is None:
        records = metric_records(epath.Path(workdir / "metrics.jsonl"))
        for _, record in records[seen:]:
            if "train/seconds_per_step" in record:
                status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
                memory, threads = int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"])
                files = len(os.listdir(place / "fd"))
                yield Sample(int(record["step"]), memory, files, threads, 1000 * record["train/seconds_per_step"])
        seen = len(records)
        time.sleep(0.02)


def measured(steps: int, folder: Path) -> list[Sample]:
    """The samples of a run of so many steps in a new folder. Raises UserError where the run fails."""
    from pydoc_data.topics import topics

    text = "\n\n".join("\n".join(filter(str.strip, topic.splitlines())) for topic in topics.values())
    (folder / "topics.txt").write_text(text, encoding="utf-8")
    fields = FIELDS | {"corpus.files": folder / "topics.txt", "train.steps": steps}
    command = [
        sys.executable,
        "-m",
        "spanbert_jax.main",
        "--config",
        "configs/tiny.py",
        "--workdir",
        str(folder / "run"),
    ]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    found: list[Sample] = []
    with (
        Stage("Training") as stage,
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process,
    ):
        try:
            for sample in samples(folder / "run", process):
                found.append(sample)
                stage.update(sample.step / steps, f"step {sample.step:,}, {sample.memory:,.0f} MB")
        finally:
            process.kill()
    if process.returncode or len(found) < 3 * PARTS:
        words = (folder / "log").read_text().splitlines()[-1:]
        raise UserError(f"the run ended with status {process.returncode} and {len(found)} samples: {words}")
    return found


def trends_of(found: list[Sample]) -> dict[str, Trend]:
    """The trend of each quantity."""
    steps = [sample.step for sample in found]
    return {name: trend(steps, [getattr(sample, name) for sample in found]) for name in QUANTITIES}


def bound_of(name: str, found: Trend) -> float:
    """The quantity's bound in its unit."""
    return QUANTITIES[name].bound * (found.first if name == "time" else 1.0)


def table(trends: dict[str, Trend]) -> str:
    """The trends in Markdown."""
    head = ["quantity", "after the warm-up", "at the end", "growth in 1,000 steps (95%)", "bound", "verdict"]
    lines = [head, ["---"] * len(head)]
    for name, found in trends.items():
        quantity, bound = QUANTITIES[name], bound_of(name, found)
        first, last, limit = (f"{number(value)} {quantity.unit}".strip() for value in (found.first, found.last, bound))
        growth = f"{found.slope:+.3g} ({found.low:+.3g} to {found.high:+.3g})"
        lines.append([quantity.title, first, last, growth, f"{limit}: {quantity.reason}", found.verdict(bound)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{machine()}\n"


def draw(found: list[Sample], trends: dict[str, Trend], output: Path) -> None:
    """A panel for each quantity: its samples, and the slope after the warm-up."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 4.6), constrained_layout=True, sharex=True)
    steps = [sample.step for sample in found]
    for axis, (name, one) in zip(axes.flat, trends.items(), strict=True):
        quantity, ends = QUANTITIES[name], np.array([WARM_UP * steps[-1], steps[-1]])
        values = np.array([getattr(sample, name) for sample in found])
        level = np.median(values[np.array(steps) > ends[0]])
        axis.plot(steps, values, ".", ms=3, color="tab:blue", alpha=0.6)
        axis.plot(ends, level + one.slope * (ends - ends.mean()) / 1000, color="tab:orange", lw=2)
        axis.axvspan(0, ends[0], color="grey", alpha=0.12)
        axis.set_ylabel(f"{quantity.title}{f', {quantity.unit}' if quantity.unit else ''}")
        axis.set_ylim(0, 1.25 * np.percentile(values, 98))
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    with written_aside(output) as aside:
        figure.savefig(aside, dpi=110, format=output.suffix.removeprefix("."))


def flat(steps: int, work: Path) -> int:
    """Runs, judges, and writes the table and the picture; returns the exit status."""
    if not Path("/proc/self/fd").is_dir():
        raise UserError("this benchmark reads /proc, which only Linux has")
    make_directory(work, "--work")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        found = measured(steps, Path(folder).resolve())
    trends = trends_of(found)
    write(work / "table.md", table(trends))
    draw(found, trends, work / "flat.svg")
    print((work / "table.md").read_text(encoding="utf-8"), f"\nwrote {work}/table.md and flat.svg", sep="")
    return int(any(one.verdict(bound_of(name, one)) != "flat" for name, one in trends.items()))


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="default %(default)s")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "flat", help="default runs/flat")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: flat(arguments.steps, arguments.work))


if __name__ == "__main__":
    cli.run(main)
