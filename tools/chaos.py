"""Kills a run again and again, restarts it by the same command, and compares it with an undisturbed run.

    python tools/chaos.py --kills 20 --signal mixed -- --config configs/tiny.py --config.train.steps=200
    python tools/chaos.py --moments "vocabulary,blocks,step 120,save,evaluation" -- --config configs/tiny.py

The flags after -- are those of spanbert_jax.main without --workdir, of pre-training or fine-tuning. The undisturbed
run is made in WORK/reference, or named by --reference. The run that is killed is in WORK/killed.

A moment is vocabulary, blocks, rows (while one of these is made), compiling, step N (once metrics.jsonl has it), save N
or evaluation N (the first one at step N or later). Without N the step is drawn, and so are moments that are not given.
With several trials of fine-tuning, steps count through all of them. Each kill comes a random part of a second after its
moment. Exit status 1: something differs, or a start of the run did not end as it must.

Invariant: the run under test is the real program. The tool knows its output, its files and its exit status alone.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import spanbert_jax.tensorflow_settings  # noqa: F401  # TensorBoard, which reads events at the end, imports TensorFlow
from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory

ROOT = Path(__file__).resolve().parents[1]
_POLL = 0.005  # seconds; a save of a tiny model takes some 0.05
_STOP_WITHIN = 300.0  # seconds from SIGTERM to the end of the process, on a slow machine and with a large state
_LEFT_WITHIN = 10.0  # seconds from the end of a killed run to the end of the processes that it had started
_TAIL = 2**14  # bytes of metrics.jsonl that are read: its newest lines, some ten of them


class Kind(NamedTuple):
    """A kind of moment."""

    sign: str  # in the run's output; "": the moment has a step, and files show it
    spread: float  # seconds from the moment to the kill, at most


# In the order of a run.
KINDS = {
    "vocabulary": Kind("Sampling text for the vocabulary", 1.0),
    "blocks": Kind("Building blocks", 1.0),
    "rows": Kind("Building rows", 0.2),
    "compiling": Kind("; compiling", 1.0),
    "step": Kind("", 0.05),
    "save": Kind("", 0.05),
    "evaluation": Kind("", 0.05),
}
_ONCE = ("vocabulary", "blocks", "rows")  # when these are made, no later start makes them again
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}


class Moment(NamedTuple):
    """When a run is killed. step: of kinds in _ONCE 0; of "compiling" only its place among the moments."""

    kind: str
    step: int

    @property
    def words(self) -> str:
        """As it is given to --moments."""
        return f"{self.kind} {self.step}" if not KINDS[self.kind].sign else self.kind


@dataclasses.dataclass
class Kill:
    """One row of the table. A step is None where the run did not come to train."""

    moment: Moment
    signal: str
    reached: int | None = None  # the newest step in metrics.jsonl, or of a save that began
    resumed: int | None = None  # the step that a later start went on from
    status: int | None = None  # None: the run finished before it was killed

    @property
    def lost(self) -> int:
        """The steps that were computed again."""
        return 0 if self.reached is None or self.resumed is None else self.reached - self.resumed


class Process(Protocol):
    """A run's process; subprocess.Popen is one."""

    pid: int

    def poll(self) -> int | None: ...

    def send_signal(self, sig: int, /) -> None: ...


Start = Callable[[list[str], Path], Process]  # (command, the file for its output) -> the process


def start(command: list[str], output: Path) -> Process:
    """Starts the command as the leader of a group of processes."""
    with output.open("wb") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Facts(NamedTuple):
    """What the undisturbed run tells of the run that is killed."""

    steps: int  # of each trial
    trials: int
    evaluated: frozenset[int]  # steps of evaluations, counted through the trials
    kinds: tuple[str, ...]  # of moments that this configuration's run has
    save_every: int  # steps

    @property
    def last(self) -> int:
        """The last step, counted through the trials."""
        return self.steps * self.trials


def facts_of(reference: Path) -> Facts:
    """Reads a finished run. Raises UserError where the directory holds none."""
    from etils import epath

    from spanbert_jax.runs.comparison import places
    from spanbert_jax.training.progress import metric_records
    from spanbert_jax.training.workdir import read_config

    if not (reference / "config.json").exists():
        raise UserError(f"{reference}: no run there; name the directory of a finished run")
    config = read_config(epath.Path(reference / "config.json"))
    trials = places(reference)
    lines = [[record for _, record in metric_records(epath.Path(place / "metrics.jsonl"))] for place in trials]
    steps = max((int(record["step"]) for record in lines[0]), default=0)
    evaluated = {
        number * steps + int(record["step"])
        for number, records in enumerate(lines)
        for record in records
        if any(name.startswith("held_out/") for name in record)
    }
    given = bool(config.tokenizer.vocab_file or config.init_from)
    there = {"blocks": (reference / "data" / "blocks").is_dir(), "rows": (reference / "rows").is_dir()}
    there["vocabulary"] = there["blocks"] and not given
    kinds = tuple(kind for kind in KINDS if there.get(kind, True))
    return Facts(steps, len(trials), frozenset(evaluated), kinds, config.train.checkpoint_every)


class Seen:
    """What can be seen of a start of the run, from outside."""

    def __init__(self, workdir: Path, output: Path, facts: Facts):
        self._workdir, self._output, self._facts = workdir, output, facts
        self._saved = self._saves()  # by earlier starts

    def began(self) -> int | None:
        """The step from which this start trains; None where it does not train yet. Once this step is known,
        metrics.jsonl holds no line of a later step that an earlier start wrote."""
        found = re.findall(
            r"^Step ([\d,]+) of ([\d,]*\d)", self._printed(), flags=re.MULTILINE
        )  # a line for each trial
        if not found or (found[-1][0] == found[-1][1] and len(found) < self._facts.trials):  # a finished trial's line
            return None
        return sum(int(step.replace(",", "")) for step, _ in found)

    def reached(self) -> int:
        """The newest step in metrics.jsonl, or of a save that began."""
        return max(self._newest(), *self._saves(), 0)

    def _newest(self) -> int:
        return max(self._lines(), default=0)

    def has(self, moment: Moment) -> bool:
        """Whether the moment has come."""
        sign = KINDS[moment.kind].sign
        if sign:
            return sign in self._printed()
        began = self.began()
        if began is None:
            return False
        wanted = max(moment.step, began + 1)
        if moment.kind == "step":
            return self._newest() >= wanted
        if moment.kind == "save":
            return any(step >= wanted for step in self._saves() - self._saved)
        # An evaluation's step has a line of training, written just before the evaluation, and then one of its own.
        return any(step >= wanted and step in self._facts.evaluated for step in self._lines())

    def _printed(self) -> str:
        return self._output.read_text(errors="replace")

    def _places(self) -> Iterator[tuple[int, Path]]:
        """(the steps of the trials before, directory) of each trial."""
        from spanbert_jax.runs.comparison import places

        return ((number * self._facts.steps, place) for number, place in enumerate(places(self._workdir)))

    def _lines(self) -> Iterator[int]:
        """The steps of the newest lines of metrics.jsonl."""
        for before, place in self._places():
            yield from (before + step for step in _newest_steps(place / "metrics.jsonl"))

    def _saves(self) -> set[int]:
        """The steps of checkpoints that are whole or being written."""
        return {
            before + int(match[1])
            for before, place in self._places()
            for path in (place / "checkpoints").glob("*")
            if (match := re.match(r"(\d+)(\.orbax-checkpoint-tmp.*)?$", path.name))
        }


def _newest_steps(path: Path) -> Iterator[int]:
    """The steps of the whole lines at the end of a metrics.jsonl."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
        for line in file.read().splitlines(keepends=True):
            with contextlib.suppress(ValueError):  # the first and the last line may be cut off
                record = json.loads(line) if line.endswith(b"\n") else None
                if isinstance(record, dict):
                    yield int(record["step"])


def moments_of(given: str, count: int, facts: Facts, draw: random.Random) -> list[Moment]:
    """The moments of --moments, filled up to `count` with drawn ones, in the order in which a run can have them.

    Raises UserError for words that name no moment.
    """
    moments = []
    for words in filter(None, (part.strip() for part in given.split(","))):
        kind, _, step = words.partition(" ")
        if kind not in KINDS or (step and (KINDS[kind].sign or not step.isdecimal())):
            raise UserError(f"--moments {words!r}: expected one of {', '.join(KINDS)}; the last three may have a step")
        moments.append(Moment(kind, int(step)) if step else _at_some_step(kind, facts, draw))
    while len(moments) < count:
        kinds = draw.sample(facts.kinds, min(len(facts.kinds), count - len(moments)))
        moments += [_at_some_step(kind, facts, draw) for kind in kinds]
    return sorted(moments, key=lambda moment: (moment.step, list(KINDS).index(moment.kind)))


def _at_some_step(kind: str, facts: Facts, draw: random.Random) -> Moment:
    return Moment(kind, 0 if kind in _ONCE else draw.randint(1, max(facts.last * 9 // 10, 1)))


class Chaos:
    """A run that is killed and started again; `failures` has a line for each start that did not end as it must."""

    def __init__(self, command: list[str], workdir: Path, facts: Facts, draw: random.Random, begin: Start):
        """command: of the run, with this workdir. The output of start n is the file WORKDIR.n.log."""
        self._command, self._workdir, self._facts, self._draw, self._begin = command, workdir, facts, draw, begin
        self.kills: list[Kill] = []
        self.failures: list[str] = []
        self.starts = 0
        self.finished = False

    def kill(self, moment: Moment, signal_name: str) -> bool:
        """Starts the run and kills it at the moment. Returns False where there is nothing left to kill."""
        kill = Kill(moment, signal_name)
        status, came = self._start(kill)
        kill.status = status or None
        self.kills.append(kill)
        if came and status not in (0, -signal.SIGKILL if signal_name == "KILL" else cli.STOPPED_EARLY):
            self.failures.append(f"SIG{signal_name} at {moment.words} ended start {self.starts} with status {status}")
        return came and status != 0

    def finish(self) -> None:
        """Starts the run and lets it come to its end."""
        self._start(None)

    def _start(self, kill: Kill | None) -> tuple[int, bool]:
        """(the exit status, whether the signal was sent) of a start. kill: None for none."""
        self.starts += 1
        output = self._workdir.with_name(f"{self._workdir.name}.{self.starts}.log")
        process = self._begin(self._command, output)
        seen, came = Seen(self._workdir, output, self._facts), False
        try:
            while process.poll() is None and not came:
                came = kill is not None and seen.has(kill.moment)
                time.sleep(self._draw.uniform(0, KINDS[kill.moment.kind].spread) if kill and came else _POLL)
            if kill and came:
                process.send_signal(SIGNALS[kill.signal])
            status = self._end(process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        self.finished = status == 0
        if status and not came:
            self.failures.append(f"start {self.starts} ended with status {status}; {output} has its words")
        began = seen.began()
        for earlier in self.kills if began is not None else ():
            if earlier.reached is not None and earlier.resumed is None:
                earlier.resumed = began
        if kill and began is not None:
            kill.reached = max(began, seen.reached())
        return status, came

    def _end(self, process: Process) -> int:
        """Waits for the end of the process and of those that it started. Returns the exit status."""
        until = time.monotonic() + _STOP_WITHIN
        while (status := process.poll()) is None:
            if time.monotonic() > until:
                raise UserError(f"start {self.starts} went on for {_STOP_WITHIN:g} s after the signal")
            time.sleep(_POLL)
        until = time.monotonic() + _LEFT_WITHIN
        while left := _left(process.pid):
            if time.monotonic() > until:
                self.failures.append(f"start {self.starts} left {len(left)} processes behind: {left}")
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        return status


def _left(group: int) -> list[int]:
    """The processes of a group that have not ended, on Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of, *_ = path.read_text().rpartition(")")[2].split()
            if int(of) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def table(kills: list[Kill]) -> str:
    """The kills in Markdown."""
    rows: list[list[object]] = [
        ["kill", "moment", "signal", "step reached", "went on from", "steps lost", "exit status"],
        ["---"] * 7,
    ]
    for number, kill in enumerate(kills, start=1):
        status = "finished before" if kill.status is None else kill.status
        steps = ["-" if step is None else step for step in (kill.reached, kill.resumed)]
        rows.append([number, kill.moment.words, f"SIG{kill.signal}", *steps, kill.lost, status])
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def chaos(arguments: argparse.Namespace, begin: Start = start) -> int:
    """Runs, kills, compares and prints; returns the exit status."""
    if any(flag.startswith(("--workdir", "-workdir")) for flag in arguments.rest):
        raise UserError("--workdir: the two runs have their directories in --work; leave the flag out")
    make_directory(arguments.work, "--work")
    work = arguments.work.resolve()
    killed, reference = work / "killed", (arguments.reference or work / "reference").resolve()
    if killed.exists():
        raise UserError(f"{killed} exists; move it away, or choose another --work")
    command = [sys.executable, "-m", "spanbert_jax.main", *arguments.rest, "--workdir"]
    if not arguments.reference:
        _run_undisturbed([*command, str(reference)], reference, begin)
    facts, draw = facts_of(reference), random.Random(arguments.seed)
    moments = moments_of(arguments.moments, arguments.kills, facts, draw)
    run = Chaos([*command, str(killed)], killed, facts, draw, begin)
    for number, moment in enumerate(moments, start=1):
        name = draw.choice(list(SIGNALS)) if arguments.signal == "mixed" else arguments.signal
        print(f"kill {number} of {len(moments)}: SIG{name} at {moment.words}", flush=True)
        if not run.kill(moment, name):
            break
    else:
        run.finish()
    return _report(run, reference, killed, facts)


def _run_undisturbed(command: list[str], reference: Path, begin: Start) -> None:
    print(f"the undisturbed run, in {reference}", flush=True)
    output = reference.with_name(f"{reference.name}.log")
    process = begin(command, output)
    try:
        while (status := process.poll()) is None:
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    if status:
        raise UserError(f"the undisturbed run ended with status {status}; {output} has its words")


def _report(run: Chaos, reference: Path, killed: Path, facts: Facts) -> int:
    from spanbert_jax.runs.comparison import compare

    print(f"\n{table(run.kills)}\n")
    lost = [kill.lost for kill in run.kills]
    count = sum(kill.status is not None for kill in run.kills)
    print(f"{count} kills, {run.starts - 1} restarts, {sum(lost)} steps lost in all and at most {max(lost)} by a kill;")
    print(f"{facts.last} steps, a save every {facts.save_every}")
    checks = compare(reference, killed) if run.finished else []
    for check in checks:
        print(f"{'equal' if check.same else 'DIFFERENT'}: {check.what}: {check.words}")
    for failure in run.failures:
        print(f"FAILED: {failure}")
    if not count:
        print("FAILED: the run was finished before the first moment; choose an earlier one, or more steps")
    return 0 if count and not run.failures and all(check.same for check in checks) else 1


def main(argv: list[str] | None = None, begin: Start = start) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--kills", type=int, default=0, help="how many; default: as many as --moments, or 3")
    parser.add_argument("--moments", default="", help="a list with commas; default: all are drawn")
    parser.add_argument("--signal", choices=[*SIGNALS, "mixed"], default="KILL", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default %(default)s")
    parser.add_argument("--reference", type=Path, help="the workdir of a finished run with the same flags")
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="default %(default)s")
    parser.add_argument("rest", nargs="*", help="flags of spanbert_jax.main, after --")
    arguments = parser.parse_args(argv)
    arguments.kills = arguments.kills or (0 if arguments.moments else 3)
    return cli.status(lambda: chaos(arguments, begin))


if __name__ == "__main__":
    cli.run(main)
