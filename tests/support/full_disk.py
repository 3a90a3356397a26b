"""A program, one process, whose disk is full once checkpoint 2 of its run is on its way.

    python -m tests.support.full_disk WORKDIR

A limit on the size of files stands for the disk: the system refuses a write in the same way. The program drops its
standard output.
"""

import os
import resource
import sys

from etils import epath

from spanbert_jax import cli
from spanbert_jax.training import loop
from tests.support.recipes import config_of, recipe_of


def fill(step: int) -> None:
    if step == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


if __name__ == "__main__":
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    config = config_of(checkpoint_every=1, log_every=1)
    sys.exit(cli.status(lambda: loop.run(config, recipe_of(config, [], fill), epath.Path(sys.argv[1])) and 0))
