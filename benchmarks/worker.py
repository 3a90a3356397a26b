"""The process of one side: python -m benchmarks.worker MODULE SPEC CORES.

Invariant: the process is pinned to CORES before it imports any library. Each line on stdin is a request, a JSON object.
The first line on stdout holds the facts, and each further one the answer to a request, or an error. Nothing else is
there.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]  # a JSON object: a spec, facts, a request or an answer
Handler = Callable[[Json], Json]  # takes a request and returns the answer


def main() -> None:
    module, spec, cores = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr

    def answer(value: Json) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    from spanbert_jax.errors import UserError

    try:
        facts, run = importlib.import_module(f"benchmarks.{module}").start(spec)
        answer(facts)
        for line in sys.stdin:
            answer(run(json.loads(line)))
    except UserError as error:
        answer({"mistake": str(error)})
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer({"failure": f"{type(error).__name__}: {lines[0][:300] if lines else ''}"})
        raise


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
