"""The command line: flags, `jax.distributed`, dispatch on `config.task`. No logic.

    python -m spanbert_jax.main --config configs/tiny.py [--workdir DIR] [--config.FIELD=VALUE ...]

Invariant: a user's mistake ends in one line on stderr and exit status 1. A mistake that the configuration alone shows
is told before the heavy libraries are imported.
"""

import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from spanbert_jax import cli
from spanbert_jax.config import Config, from_dict, renamed
from spanbert_jax.config_check import check
from spanbert_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file in configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run; default: runs/<the config's name>.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "This is one process of several. TPU VMs, GKE, SLURM and Open MPI tell which one; elsewhere these flags do:",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "--distributed: HOST:PORT of process 0, with a free port.")
PROCESSES = flags.DEFINE_integer("processes", None, "--distributed: the number of processes.")
PROCESS = flags.DEFINE_integer("process", None, "--distributed: the number of this process, from 0.")
WAIT = flags.DEFINE_float("wait", 300, "--distributed: seconds to wait for the other processes.")

_MODULE = "config_config"  # as ml_collections names the module that it makes of the file in --config
_TRACEBACK = "Error whilst parsing config file:"  # ml_collections puts a traceback of get_config after these words


def run_app(main: Callable[[Config, str], int]) -> NoReturn:
    """Parses the flags, calls `main(config, workdir)` and exits with the status that `main` returns."""

    def checked(argv: list[str]) -> int:
        if len(argv) > 1:
            raise UserError(f"argument {argv[1]!r} is not a flag; fields are set as --config.FIELD=VALUE")
        return main(_config(), WORKDIR.value or f"runs/{Path(config_file()).stem}")

    app.run(lambda argv: _status(lambda: checked(argv)), flags_parser=_parse)


def _status(work: Callable[[], int]) -> int:
    """The exit status of the work; for a process of several, once the others know that this one ends."""
    if not DISTRIBUTED.value:
        return cli.status(work)
    from spanbert_jax.training import lifeline

    return lifeline.ended(lambda: cli.status(work))


def _config() -> Config:
    try:
        if CONFIG.value is None:
            raise UserError("no configuration; give one with --config configs/tiny.py")
        if not isinstance(CONFIG.value, ConfigDict):
            found = type(CONFIG.value).__name__
            raise UserError(f"--config {config_file()}: get_config returns {found}; let it return a ConfigDict")
        fields = CONFIG.value.to_dict()
    except OSError as error:  # raised at the first use, not when the flag is parsed
        raise UserError(f"--config {config_file()}: cannot be read ({str(error).splitlines()[-1].strip()})") from error
    config = from_dict(fields)
    check(config)
    return config


def config_file() -> str:
    """The path that --config named."""
    return config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]


def _parse(argv: list[str]) -> list[str]:
    """Parses flags by absl. A mistake ends the program with one line and exit status 1."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:
        mistake = "" if isinstance(error, flags.Error) else _mistake_in_config(error)
        if mistake:
            print(f"error: --config {mistake}", file=sys.stderr)
            sys.exit(1)
        if not isinstance(error, flags.Error | AttributeError | KeyError | OSError | TypeError | ValueError):
            raise
        message, _, trace = str(error.args[0] if error.args else error).partition(_TRACEBACK)
        if trace:  # its last line is the mistake
            message += trace.strip().splitlines()[-1].removeprefix("ValueError: ")
        message = message.replace("\\n", " ").replace("\\", "")
        fields = [match[1] for match in map(re.compile(r"--?config\.([\w.]+)").match, argv) if match]
        gone = [f"unknown field config.{field}; {renamed(field)}" for field in fields if renamed(field)]
        print(f"error: {'; '.join(gone) or ' '.join(message.split())}", file=sys.stderr)
        sys.exit(1)


def _mistake_in_config(error: Exception) -> str:
    """The file, the line and the message of an error that comes from the configuration's own code, or ""."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    if isinstance(error, AttributeError) and getattr(error.obj, "__name__", "") == _MODULE:
        return f"{vars(error.obj)['__file__']}: it has no function get_config; configs/tiny.py has one"
    frames = traceback.walk_tb(error.__traceback__)
    places = [f"{f.f_code.co_filename}, line {line}" for f, line in frames if f.f_globals["__name__"] == _MODULE]
    return f"{places[-1]}: {type(error).__name__}: {error}" if places else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(config: Config, workdir: str) -> int:
    """Runs the task; returns the exit status."""
    # Compiled programs are kept, so that the next start compiles nothing. Each host has its own directory, because
    # programs for a CPU run on that kind of CPU alone.
    compiled = Path.home() / ".cache" / "spanbert_jax" / f"compiled-{platform.node()}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
    if DISTRIBUTED.value:
        from spanbert_jax.runs import processes

        started = processes.description(config, workdir)
        processes.start(COORDINATOR.value, PROCESSES.value, PROCESS.value, WAIT.value, _say, started)
    elif (COORDINATOR.value, PROCESSES.value, PROCESS.value) != (None, None, None):
        raise UserError("--coordinator, --processes and --process need --distributed; add that flag, or leave them out")
    return 0 if dispatch(config, workdir, shlex.join(sys.argv[1:])) else cli.STOPPED_EARLY


def dispatch(config: Config, workdir: str, arguments: str) -> bool:
    """Runs the configuration's task; returns False where the run was asked to stop before its end.

    arguments: those of the command line, quoted, from which a report makes the commands that it prints.
    """
    if config.task == "pretraining":
        from spanbert_jax.runs import pretraining

        return pretraining.run(config, workdir, arguments)
    from spanbert_jax.runs import finetuning
    from spanbert_jax.tasks.registry import finetuning_task

    return finetuning.run(finetuning_task(config.task, config), config, workdir)


if __name__ == "__main__":
    cli.run(lambda: run_app(main))
