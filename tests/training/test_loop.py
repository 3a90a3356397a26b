"""The loop's fixed order, where a test can see it: what a request to stop does."""

import os
import signal
from pathlib import Path

import pytest
from etils import epath

from spanbert_jax.training import loop
from spanbert_jax.training.checkpoint import find_checkpoint
from tests.support.recipes import recipe_of
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
