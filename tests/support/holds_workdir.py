"""A process that holds the lock of a workdir until it is killed.

python -m tests.support.holds_workdir WORKDIR
"""

import sys
import time
from pathlib import Path

from etils import epath

from spanbert_jax.training.workdir_lock import running_alone

if __name__ == "__main__":
    with running_alone(epath.Path(sys.argv[1])):
        (Path(sys.argv[1]) / "held").touch()
        time.sleep(600)
