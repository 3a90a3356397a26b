"""Small runs on English prose that every Python has: called in this process, or as command lines in their own.

Invariant: `call` does in this process, from the configuration on, what the command line does in its own. A process of
its own is for tests of signals, of several processes and of flags. `start` forks one (tests/support/forked.py); a new
one costs five seconds of imports.
"""

import contextlib
import importlib
import io
import json
import os
import pydoc_data.topics
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from configs.tiny import get_config
from spanbert_jax import cli
from spanbert_jax.config import from_dict
from spanbert_jax.config_check import check
from spanbert_jax.main import dispatch
from tests.support import forked

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "tokenizer.vocab_size": 600,
    "corpus.held_out": 0.1,
    "corpus.workers": 1,
    "data.block_length": 64,
    "data.lengths": 2,
    "model.layers": 2,
    "model.embed": 32,
    "model.mlp": 64,
    "model.max_length": 64,
    "optimizer.warmup_steps": 4,
    "train.batch_size": 8,
    "train.steps": 12,
    "train.log_every": 4,
    "train.eval_every": 6,
    "train.checkpoint_every": 4,
}


def write_corpus(path: Path, topics: int | None = None) -> None:
    """The Python documentation's topics, one document each, blank lines between them."""
    texts = list(pydoc_data.topics.topics.values())[:topics]
    documents = ("\n".join(line for line in text.splitlines() if line.strip()) for text in texts)
    path.write_text("\n\n".join(documents), encoding="utf-8")


class Called(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


def here(work: Callable[[], int | None], expect: int = 0, stdin: bytes = b"") -> Called:
    """Does the work of a command line in this process, with `stdin` as standard input, and checks the exit status."""
    out, err = io.StringIO(), io.StringIO()
    old, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.status(work)
    finally:
        sys.stdin = old
    called = Called(status, out.getvalue(), err.getvalue())
    assert status == expect, called
    return called


def call_config(config: ConfigDict, workdir: Path, arguments: list[str], expect: int = 0, **values: object) -> Called:
    """A run of `config` in this process, with `values` in the place of its fields; checks the exit status.

    arguments: those of the command line that the run stands for.
    """
    config.update_from_flattened_dict({name: str(x) if isinstance(x, Path) else x for name, x in values.items()})

    def work() -> int:
        built = from_dict(config.to_dict())
        check(built)
        return 0 if dispatch(built, str(workdir), shlex.join(arguments)) else cli.STOPPED_EARLY

    return here(work, expect)


def call(workdir: Path, expect: int = 0, **fields: object) -> Called:
    """The run of `command`, with the same arguments, in this process; checks the exit status."""
    return call_config(get_config(), workdir, command(workdir, **fields)[3:], expect, **overrides(fields))


def tool(name: str, *arguments: object, expect: int = 0, stdin: bytes = b"") -> Called:
    """tools/NAME.py with these arguments, in this process; checks the exit status."""
    main = importlib.import_module(f"tools.{name}").main
    return here(lambda: main([str(argument) for argument in arguments]), expect, stdin)


def overrides(fields: dict[str, object]) -> dict[str, object]:
    """SMALL with `fields` in the place of its own; a dot of a field's name is __ in the keyword."""
    return SMALL | {name.replace("__", "."): value for name, value in fields.items()}


def command(workdir: Path, **fields: object) -> list[str]:
    """The command line of a small run; fields: as for `overrides`."""
    flags = [f"--config.{name}={value}" for name, value in overrides(fields).items()]
    return [sys.executable, "-m", "spanbert_jax.main", "--config", "configs/tiny.py", "--workdir", str(workdir), *flags]


def environment() -> dict[str, str]:
    """The environment of a process on the CPU, which compiles as pytest's own process does (tests/conftest.py)."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def run(workdir: Path, expect: int = 0, **fields: object) -> subprocess.CompletedProcess[str]:
    """Runs `command` to the end in a process of its own, and checks the exit status."""
    done = subprocess.run(command(workdir, **fields), cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def start(command: list[str], **variables: str) -> forked.Forked:
    """Starts a process of `command`, which is [the interpreter, "-m", a module, the module's arguments]."""
    return forked.start(*command[2:], **variables)


def start_two(command: list[str]) -> list[forked.Forked]:
    """Starts the two processes of one run, which find each other as under SLURM."""
    return [start([*command, "--distributed"], **slurm(process)) for process in (0, 1)]


def slurm(process: int) -> dict[str, str]:
    """The variables by which a process of `start_two` finds the other one."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return job | {"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def run_together(planned: list[list[Any]], count: int, devices: int) -> list[str]:
    """Runs of `many_runs`, in `count` processes of `devices` CPU devices each; returns what each process printed.

    planned: the plan's "runs".
    """
    plan = {"coordinator": f"localhost:{free_port()}", "count": count, "devices": devices, "runs": planned}
    started = [forked.start("tests.support.many_runs", json.dumps(plan), str(number)) for number in range(count)]
    try:
        printed = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(printed)
    return printed


def half_way(source: Path, target: Path, step: int) -> Path:
    """A copy of a finished run as a kill after checkpoint `step` would have left it; returns `target`."""
    shutil.copytree(source, target)
    for checkpoint in (target / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return target


def metrics(workdir: Path, name: str) -> dict[int, float]:
    """step -> value of a metric in metrics.jsonl."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def wait_for(path: Path, process: forked.Forked, text: str = "") -> None:
    """Waits until the file is there, with the text in it."""
    wait_until(lambda: path.exists() and (not text or text in path.read_text()), process)


def wait_until(there: Callable[[], bool], process: forked.Forked) -> None:
    """Waits until `there()`, which the process must bring about."""
    for _ in range(12_000):
        if there():
            return
        assert process.poll() is None, f"the run ended before its time: {process.communicate()[0]}"
        time.sleep(0.05)
    raise AssertionError("nothing after ten minutes")


def params(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """The parameters in checkpoints/STEP, by name."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(workdir.resolve() / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state["params"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
