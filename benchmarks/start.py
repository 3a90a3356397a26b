"""Real runs of main: the time from a process's start to its first step, its wait for input, and its memory.

Invariant: each run is the command line that a user types, in a process of its own, on the given cores. Its metrics are
read from its metrics.jsonl. Seconds to the first step end when that step's metrics are in the file.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.batches import VOCAB
from benchmarks.corpus import kind_of
from benchmarks.measure import ROOT, Options, Result, median, need_text, thread_limits
from benchmarks.worker import Json
from spanbert_jax.batch import slots
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.model import pretraining_heads
from spanbert_jax.training.progress import Stage

# Windows of a tiny run's metrics, of which the last one counts. In the first ones, rows of new lengths are compiled.
_WINDOWS = 4
_BASE_ROWS, _BASE_STEPS, _BASE_WINDOW = 16, 6, 3  # the first step compiles, and is in no window
_BASE = {
    "corpus.held_out": 0.25,
    "data.lengths": 1,
    "optimizer.warmup_steps": 1,
    "train.batch_size": _BASE_ROWS,
    "train.steps": _BASE_STEPS,
    "train.log_every": _BASE_WINDOW,
    "train.eval_every": _BASE_STEPS,
    "train.eval_blocks": _BASE_ROWS,
    "train.checkpoint_every": _BASE_STEPS,
}


class Run:
    """A run of spanbert_jax.main."""

    def __init__(self, config: str, workdir: Path, fields: Json, options: Options):
        """Starts the run, with a compilation cache in options.work. fields: config field -> value, set by flags."""
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.parent.mkdir(parents=True, exist_ok=True)
        self._metrics = workdir / "metrics.jsonl"
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        command = [sys.executable, "-m", "spanbert_jax.main", "--config", f"configs/{config}.py"]
        env = {**os.environ, **thread_limits(len(options.cores))}
        env |= {
            "JAX_COMPILATION_CACHE_DIR": str(options.work / "jax_cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by `close`
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, "--workdir", str(workdir), *flags],
            cwd=ROOT,
            env=env,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, options.cores)

    def until(self, name: str, windows: int, show: Callable[[], None]) -> float:
        """Seconds from the process's start until `windows` windows of its metrics have the metric `name`.

        Raises UserError where the process ends before.
        """
        shown = time.monotonic()
        while len(self.metrics(name)) < windows:
            if (status := self._process.poll()) is not None:
                self._check(status)
                raise UserError(f"a run of spanbert_jax.main ended before it had logged {name} {windows} times")
            time.sleep(0.01)
            if time.monotonic() > shown + 1:
                shown = time.monotonic()
                show()
        return time.monotonic() - self._began

    def finish(self, show: Callable[[], None]) -> int:
        """Waits for the process to end; returns its peak memory in bytes. Raises UserError where the run failed."""
        while True:
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.2)
            show()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._check(self._process.returncode)
        return usage.ru_maxrss * 1024

    def metrics(self, name: str) -> list[float]:
        """The metric's value in every window that has the metric."""
        text = self._metrics.read_text() if self._metrics.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line[name] for line in lines if name in line]

    def close(self) -> None:
        """Ends the process."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _check(self, status: int) -> None:
        if status:
            self._output.seek(0)
            lines = [line for line in self._output.read().splitlines() if line.strip()] or ["the run printed nothing"]
            raise UserError(f"a run of spanbert_jax.main ended with status {status}: {lines[-1]}")


def first_steps(options: Options) -> tuple[list[float], float]:
    """(seconds to the first step, of every warm start; the share of its time that a tiny run waits for input)."""
    fields = {"data.dir": options.work / "docstrings"}
    seconds: list[float] = []
    with Stage("Starts of configs/tiny.py") as stage:
        for number in range(options.rounds + 1):  # the first builds what is missing, and fills the cache
            name = f"start {number} of {options.rounds}" if number else "data and compilation cache"
            show = lambda n=number, d=name: stage.update(n / (options.rounds + 2), d)  # noqa: E731
            show()
            run = Run("tiny", options.work / "runs" / "tiny", fields, options)
            try:
                seconds.append(run.until("train/learning_rate", 1, show))
                if number == options.rounds:
                    run.until("train/input_wait", _WINDOWS, show)
            finally:
                run.close()
    return seconds[1:], run.metrics("train/input_wait")[-1]


def base_run(options: Options) -> tuple[int, float]:
    """(the peak memory of a base run's process in bytes; the share of its time that the run waits for input)."""
    file = need_text(options.text, "--text")[0]
    need_text(options.vocab, "--vocab")
    fields = {
        **_BASE,
        "tokenizer.kind": kind_of(options.vocab),
        "tokenizer.vocab_file": options.vocab,
        "corpus.files": file,
        "data.dir": options.work / "one-file",
    }
    with Stage(f"{_BASE_STEPS} steps of configs/base.py") as stage:
        run = Run("base", options.work / "runs" / "base", fields, options)
        try:
            peak = run.finish(lambda: stage.update(None, f"{_BASE_ROWS} rows a step"))
        finally:
            run.close()
    shutil.rmtree(options.work / "runs" / "base" / "checkpoints", ignore_errors=True)
    return peak, run.metrics("train/input_wait")[-1]


def computed_bytes(config: Config, rows: int, vocab_size: int) -> dict[str, int]:
    """Bytes of a step's float32 arrays: parameters, Adam's two moments, and activations for plain backpropagation.

    Each layer keeps its input, queries, keys and values, mixed values, and the inputs of both LayerNorms and of the
    feed-forward half (8 x embed for each position), the product before GELU (mlp), and the attention probabilities.
    Each head keeps its logits.
    """
    model, length = config.model, config.data.block_length
    layer = rows * length * (8 * model.embed + model.mlp) + rows * model.heads * length**2
    logits = len(pretraining_heads.trained_heads(config)) * slots(config) * vocab_size
    activations = model.layers * layer + rows * (length * model.embed + logits)
    whole = pretraining_heads.pretraining_model(config, vocab_size, "cpu")
    params = jax.eval_shape(lambda: pretraining_heads.init_params(whole, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"parameters": 4 * count, "optimizer": 8 * count, "activations": 4 * activations}


def run(options: Options, base: bool = True) -> list[Result]:
    """The subject `start`. base: whether to run configs/base.py too, for a minute or two on two cores."""
    seconds, waited = first_steps(options)
    results = [
        Result(
            "start to the first step, tiny, warm cache",
            median(seconds),
            "s",
            counted="from the start of the process until the metrics of step 1 are in metrics.jsonl; data and compiled "
            "programs are there",
            values={"ours": seconds},
        ),
        _wait_result("tiny", waited, "train/input_wait of 50 steps"),
    ]
    if not base:
        return results
    peak, waited = base_run(options)
    parts = computed_bytes(Config(), _BASE_ROWS, VOCAB)
    listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())
    counted = (
        f"{peak / 1e9:.2f} GB, the most of the run's process, with its imports, input pipeline and a checkpoint, "
        f"over {listed}: float32, {_BASE_ROWS} rows of 512; gradients are not counted; the activations are "
        "those that plain backpropagation keeps"
    )
    of = f"train/input_wait of the last {_BASE_WINDOW} of {_BASE_STEPS} steps of {_BASE_ROWS} rows"
    results.append(_wait_result("base", waited, of))
    results.append(
        Result(
            "peak host memory of a base run, over what is computed",
            peak / 1e9,
            "GB",
            sum(parts.values()) / 1e9,
            counted,
            details=parts,
        )
    )
    return results


def _wait_result(name: str, share: float, counted: str) -> Result:
    return Result(f"waiting for input, {name} run", 100 * share, "%", counted=counted)
