"""A program, one process of several, that makes several small runs one after another and loads the libraries once.

    python -m tests.support.many_runs PLAN PROCESS

PLAN is JSON: {"coordinator", "count", "devices" (of each process), "runs": [[workdir, {field: value}], ...]}.
A third element of a run is done before it, in process 0: {"go_on": [source, step]} makes its workdir, which goes on
from a step of the finished run in `source`; {"damage": [arguments of `damage`, ...]} damages checkpoints.
"""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from configs.tiny import get_config
from spanbert_jax.config import from_dict
from spanbert_jax.main import dispatch
from spanbert_jax.runs import processes
from spanbert_jax.training import lifeline
from spanbert_jax.training.together import together
from tests.support import damage as damaging
from tests.support.runs import SMALL, half_way


def _prepare(workdir: Path, go_on: tuple[str, int] | None = None, damage: Sequence[tuple[str, str, bool]] = ()) -> None:
    if go_on:
        half_way(Path(go_on[0]), workdir, go_on[1])
    for checkpoint, files, cut in damage:
        damaging.damage(Path(checkpoint), files, cut)


def main(plan: dict, process: int) -> int:
    jax.config.update("jax_num_cpu_devices", plan["devices"])
    if plan["count"] > 1:
        processes.start(plan["coordinator"], plan["count"], process, 120, print, {})
    for workdir, fields, *before in plan["runs"]:
        for first in before:
            together("prepare the run", functools.partial(_prepare, Path(workdir), **first), jax.process_index() == 0)
        config = get_config()
        config.update_from_flattened_dict(SMALL | fields)
        assert dispatch(from_dict(config.to_dict()), workdir, "")
    return 0


if __name__ == "__main__":
    sys.exit(lifeline.ended(lambda: main(json.loads(sys.argv[1]), int(sys.argv[2]))))
