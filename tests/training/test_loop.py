"""The loop's fixed order, where a test can see it: what a request to stop does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from spanbert_jax.training import loop
from spanbert_jax.training.checkpoint import find_checkpoint
from tests.support.recipes import recipe_of
from tests.support.runs import ROOT, environment
from tests.support.synthetic import small_config


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_request_to_stop_ends_after_the_step_under_way_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    config = small_config(train={"steps": 6, "checkpoint_every": 100})
    workdir, asked = epath.Path(tmp_path), list[int]()
    before = signal.getsignal(number)

    def stop(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), number)

    result = loop.run(config, recipe_of(config, asked, stop), workdir)
    assert (result.step, result.finished) == (3, False) and asked == [0, 1, 2]
    assert find_checkpoint(workdir).name == "3" and signal.getsignal(number) is before
    assert loop.run(config, recipe_of(config, asked), workdir).finished
    assert asked == [0, 1, 2, 3, 4, 5]


_FULL = """
import resource, sys
import spanbert_jax.tensorflow_settings
from etils import epath
from spanbert_jax import cli
from spanbert_jax.training import loop
from tests.support.recipes import recipe_of
from tests.support.runs import ROOT, environment
from tests.support.synthetic import small_config

def fill(step):
    if step == 2:  # checkpoint 2 is on its way
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

config = small_config(train={"steps": 4, "checkpoint_every": 1, "log_every": 1})
sys.exit(cli.status(lambda: loop.run(config, recipe_of(config, [], fill), epath.Path(sys.argv[1])) and 0))
"""


def test_a_full_disk_is_one_line_with_the_path_and_the_same_run_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    """A limit on the size of files stands for the disk: the system refuses a write in the same way."""
    command = [sys.executable, "-c", _FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/checkpoints: cannot be written (File too large; ")
    assert f"GB are free in {tmp_path}); make room and start again" in done.stderr
    config = small_config(train={"steps": 4, "checkpoint_every": 1, "log_every": 1})
    assert loop.run(config, recipe_of(config, []), epath.Path(tmp_path)).finished
    assert find_checkpoint(epath.Path(tmp_path)).name == "4"
