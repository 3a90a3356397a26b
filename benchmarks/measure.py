"""Shared parts of the benchmarks: a side in a process of its own, alternating rounds, medians, results.

Invariant: the sides of a comparison run in turn, never at once, each in its own process, with the same cores and as
many threads. A side that waits for its turn sleeps. So the thread pools of XLA, PyTorch and TensorFlow never compete,
and a machine that gets slower or faster does so for all sides.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from benchmarks.worker import Json
from spanbert_jax.errors import UserError
from spanbert_jax.training.progress import Stage

ROOT = Path(__file__).resolve().parents[1]
Show = Callable[[], None]  # called about once a second while a side is at work


@dataclasses.dataclass(frozen=True)
class Result:
    """One comparison, or one measurement alone: a line of the table.

    Attributes:
      what: the name of the measurement.
      ours, theirs: medians over the rounds, in `unit`; `theirs` is None where nothing is compared.
      counted: a sentence that says what is measured and under which conditions.
      values: by side, the value of every round.
      details: more numbers for the JSON file.
    """

    what: str
    ours: float
    unit: str
    theirs: float | None = None
    counted: str = ""
    values: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    details: Json = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Ours over theirs."""
        return None if self.theirs is None else self.ours / self.theirs


class Options(NamedTuple):
    """The options of every subject, from the command line."""

    rounds: int
    cores: tuple[int, ...]  # numbers of the cores that each side may use
    work: Path  # blocks and the like, kept from call to call
    text: Path  # the raw text
    vocab: Path  # a vocab.txt, a SentencePiece .model or a tokenizer.json
    spans: str = ""  # rules for spans, with which the subject `corpus` compares the build


class SideFailed(Exception):
    """A side's process ended or failed; the message is the last line of its output, or its exception."""


class Side:
    """A process that runs `start(spec)` of a module of this package, and then answers requests."""

    def __init__(self, module: str, spec: Json, cores: tuple[int, ...], env: Mapping[str, str] | None = None):
        """Starts the process. The function `start(spec)` of benchmarks/<module>.py returns (facts, run), and `ask`
        calls `run(request)` in the process. Spec, facts, requests and answers are JSON objects."""
        self.facts: Json = {}
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by `close`
        environment = {**os.environ, **thread_limits(len(cores)), **(env or {})}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", module, json.dumps(dict(spec)), json.dumps(list(cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ready(self, show: Show = lambda: None) -> "Side":
        """Waits until the side has compiled and warmed up, and sets `facts`. Raises SideFailed, or UserError where the
        side raised one."""
        self.facts = self._answer(show)
        return self

    def ask(self, request: Json, show: Show = lambda: None) -> Json:
        """The answer of the side's `run` to the request; raises SideFailed, or UserError where the side raised one."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(request)) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # the process has ended, which `_answer` reports
        return self._answer(show)

    def _answer(self, show: Show) -> Json:
        while True:
            try:
                line = self._answers.get(timeout=1)
                break
            except queue.Empty:
                show()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = [text.strip() for text in self._errors.read().splitlines() if text.strip()][-1:]
            raise SideFailed(f"the process ended with status {status}" + (f": {last[0][:300]}" if last else ""))
        answer: Json = json.loads(line)
        if "mistake" in answer:
            raise UserError(answer["mistake"])
        if "failure" in answer:
            raise SideFailed(answer["failure"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # a request that the process no longer reads
                if file:
                    file.close()

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables that tell OpenMP, MKL and so PyTorch how many threads to use."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def alternate(sides: Mapping[str, Side], rounds: int, request: Json, title: str) -> dict[str, list[Json]]:
    """The answers of each side, which are asked in turn, `rounds` times; every second round reverses the order."""
    answers: dict[str, list[Json]] = {name: [] for name in sides}
    with Stage(title) as stage:
        for number in range(rounds):
            for place, name in enumerate(list(sides) if number % 2 == 0 else reversed(list(sides))):
                share = (number * len(sides) + place) / (rounds * len(sides))
                show = lambda s=share, d=f"round {number + 1} of {rounds}, {name}": stage.update(s, d)  # noqa: E731
                show()
                answers[name].append(sides[name].ask(request, show))
    return answers


def started(sides: Mapping[str, Side], title: str) -> None:
    """Waits until all sides are ready; raises SideFailed, naming the side."""
    with Stage(title) as stage:
        for name, side in sides.items():
            try:
                side.ready(lambda name=name: stage.update(None, name))  # type: ignore[misc]
            except SideFailed as error:
                raise SideFailed(f"{name}: {error}") from error


def median(values: list[float]) -> float:
    """The median."""
    return float(np.median(values))


def cores_of(count: int | None) -> tuple[int, ...]:
    """The numbers of `count` cores that this process may use, None: all of them. Raises UserError where there are
    fewer."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = count or len(usable)
    if count > len(usable):
        raise UserError(f"--cores {count}: this process may use {len(usable)}; ask for that many or fewer")
    return tuple(usable[:count])


def need(module: str) -> None:
    """Raises UserError where a peer's library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is missing, and this comparison needs it; pip install -r requirements-torch.txt")


def need_text(path: Path, flag: str) -> list[Path]:
    """The files in a directory, or the one file; raises UserError, naming the flag, where there is no file."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise UserError(
            f"{path}: no text there, and this benchmark reads some; name a file or a directory of files with {flag}"
        )
    return files
