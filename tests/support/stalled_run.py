"""A program, one process, whose input hangs at a step of its run.

    python -m tests.support.stalled_run WORKDIR STEP

The run saves each step. STEP -1: no step hangs, and the program prints from where the run went on.
"""

import sys
import time

from etils import epath

from spanbert_jax import cli
from spanbert_jax.training import loop
from tests.support.recipes import config_of, recipe_of


def main(workdir: str, hanging: int) -> int:
    asked = list[int]()

    def hang(step: int) -> None:
        if step == hanging:
            time.sleep(3600)

    config = config_of(checkpoint_every=1, stall_seconds=2.0)
    assert loop.run(config, recipe_of(config, asked, hang), epath.Path(workdir)).finished
    print(f"went on from step {asked[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.status(lambda: main(sys.argv[1], int(sys.argv[2]))))
