"""Scripts on four devices, in a process that has them: the number of CPU devices is fixed when JAX starts.

Invariant: a script sees a namespace of its own. The process is started for the first script and serves all that follow,
because each start costs seconds of imports.
"""

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 900  # that a script may take

_SERVE = """
import contextlib, io, json, sys, traceback
replies = sys.stdout
for line in sys.stdin:
    script, *sys.argv[1:] = json.loads(line)
    printed, error = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(script, "script", "exec"), {"__name__": "script"})
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), file=replies, flush=True)
"""


@functools.cache
def _process() -> tuple[subprocess.Popen, IO[bytes]]:
    """The process, and the file that takes its standard error."""
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    atexit.register(process.kill)
    return process, errors


def on_four_devices(script: str, *arguments: str) -> str:
    """The standard output of `script`, run with sys.argv[1:] = arguments. Fails where the script raises."""
    process, errors = _process()
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([script, *arguments]) + "\n")
    process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], _SECONDS)
    reply = process.stdout.readline() if ready else ""
    if not reply:
        process.kill()
        _process.cache_clear()
        errors.seek(0)
        raise AssertionError(f"no answer in {_SECONDS} s, or the process died: {errors.read()[-3000:].decode()}")
    printed, error = json.loads(reply)
    assert not error, error
    return printed.strip()
