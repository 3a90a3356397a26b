"""Whether a long run stays flat: memory, open files, threads and the time of a step, with saves and evaluations.

    python -m benchmarks.flat                     2,000 steps of a tiny model; writes runs/flat/table.md and flat.svg

The run is a process of its own, `python -m spanbert_jax.main`, on the topics of Python's documentation, which every
Python has. It saves every 50 steps and evaluates every 100. With each new line of its metrics.jsonl, Linux's /proc
gives the run's resident memory without mapped files, its open files and threads, and its CPU time since the last line,
which other load on the machine changes less than the time on the clock.

glibc is told to use no huge pages, and to give memory back when it is freed. Otherwise resident memory follows the gaps
in glibc's heaps, which grow and are given back by tens of MB, and not the memory that the program holds.

Growth and noise: the first quarter of the run warms up allocators and thread pools, and is left out. The rest is cut
into parts of 100 steps, so that each part has as many saves and evaluations. Of memory, files and threads the least
value of a part counts: what a save or an evaluation holds only while it is under way is no growth. Of CPU time the
mean counts. Theil and Sen's slope, the median of the slopes between all pairs of parts, has a 95% interval that
supposes no distribution. A quantity is flat if the whole interval is below the quantity's bound. It grows if the whole
interval is above 0. Otherwise the measurement is too noisy. Exit status 1: some quantity is not flat.

Invariant: the numbers are of the real program, and nothing is measured inside it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
_MALLOC = {"hugetlb": 0, "arena_max": 2, "mmap_threshold": 65536, "trim_threshold": 65536}
PART = 100  # steps: an evaluation and two saves
WARM_UP = 0.25  # of the steps


class Quantity(NamedTuple):
    """A quantity that must stay flat."""

    title: str
    unit: str
    bound: float  # of its growth in 1,000 steps, in `unit`; of the CPU time, a share of its value after the warm-up
    reason: str
    of: Callable[[np.ndarray], float] = np.min  # the samples of a part -> its value


# A batch has 30 kB and the training state 1 MB: a run that kept each batch would grow by 30 MB in 1,000 steps, and one
# that kept the state of each save by 20 MB.
QUANTITIES = {
    "memory": Quantity("resident memory", "MB", 4.0, "a fifth of the states that 1,000 steps save"),
    "files": Quantity("open files", "", 1.0, "one, where 20 saves and 10 evaluations open some"),
    "threads": Quantity("threads", "", 3.0, "of a library's pool; 20 saves and 10 evaluations start more"),
    "time": Quantity("CPU time of a step", "ms", 0.1, "10%; other load on the machine makes some of it", np.mean),
}


class Trend(NamedTuple):
    """The growth of a quantity in 1,000 steps after the warm-up: Theil and Sen's slope and its 95% interval."""

    first: float  # the value of the first part
    last: float  # of the last part
    slope: float
    low: float
    high: float

    def verdict(self, bound: float) -> str:
        """bound: of the growth in 1,000 steps."""
        if self.high <= bound:
            return "flat"
        return "grows" if self.low > 0 else "too noisy to tell"


def trend(steps: Sequence[float], values: Sequence[float], of: Callable[[np.ndarray], float]) -> Trend:
    """The trend of samples. of: as in Quantity."""
    from scipy.stats import theilslopes

    at, samples = np.asarray(steps, float), np.asarray(values, float)
    part = np.ceil(at / PART).astype(int)
    kept = np.unique(part[at > WARM_UP * at[-1]])
    of_parts = [of(samples[part == number]) for number in kept]
    slope, _, low, high = theilslopes(of_parts, kept * PART / 1000, alpha=0.95)
    return Trend(float(of_parts[0]), float(of_parts[-1]), float(slope), float(low), float(high))


class Sample(NamedTuple):
    """The run at a step: memory in MB, the mean CPU time of the steps since the last sample in ms."""

    step: int
    memory: float
    files: int
    threads: int
    time: float


def samples(workdir: Path, process: "subprocess.Popen[bytes]") -> Iterator[Sample]:
    """A sample with each new line of training metrics, until the process has ended."""
    place = Path("/proc") / str(process.pid)
    step, spent, tick = 0, 0, os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        records = [record for _, record in metric_records(epath.Path(workdir / "metrics.jsonl"))]
        newest = max((int(record["step"]) for record in records), default=0)
        if newest > step:
            status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
            memory, threads = int(status["RssAnon"].split()[0]) / 1024, int(status["Threads"])
            before, spent = spent, sum(map(int, (place / "stat").read_text().rpartition(")")[2].split()[11:13]))
            if step > 1:  # the first step compiles
                cpu = 1000 * (spent - before) / tick / (newest - step)
                yield Sample(newest, memory, len(os.listdir(place / "fd")), threads, cpu)
            step = newest
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
    environment = {
        **os.environ,
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _MALLOC.items()),
    }
    found: list[Sample] = []
    with (
        Stage("Training") as stage,
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            for sample in samples(folder / "run", process):
                found.append(sample)
                stage.update(sample.step / steps, f"step {sample.step:,}, {sample.memory:,.0f} MB")
        finally:
            process.kill()
    if process.returncode or len(found) < steps // 20:
        words = (folder / "log").read_text().splitlines()[-1:]
        raise UserError(f"the run ended with status {process.returncode} and {len(found)} samples: {words}")
    return found


def trends_of(found: list[Sample]) -> dict[str, Trend]:
    """The trend of each quantity."""
    steps = [sample.step for sample in found]
    return {name: trend(steps, [getattr(one, name) for one in found], each.of) for name, each in QUANTITIES.items()}


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
