"""A program, one process of several, that makes several small runs one after another and loads the libraries once.

    python -m tests.support.many_runs PLAN PROCESS

PLAN is JSON: {"coordinator", "count", "devices" (of each process), "runs": [[workdir, {field: value}], ...]}.
A third element of a run is a list of the arguments of `damage`, which is called before the run.
"""

import json
import sys
from pathlib import Path

import jax

from configs.tiny import get_config
from spanbert_jax.config import from_dict
from spanbert_jax.main import dispatch
from spanbert_jax.runs import processes
from tests.support.damage import damage
from tests.support.runs import SMALL


def main(plan: dict, process: int) -> None:
    jax.config.update("jax_num_cpu_devices", plan["devices"])
    if plan["count"] > 1:
        processes.start(plan["coordinator"], plan["count"], process, 120, print)
    for workdir, fields, *broken in plan["runs"]:
        for checkpoint, files, cut in broken[0] if broken else ():
            damage(Path(checkpoint), files, cut)
        config = get_config()
        config.update_from_flattened_dict(SMALL | fields)
        assert dispatch(from_dict(config.to_dict()), workdir, "")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
