"""Processes by their ids."""

import os
import time
from collections.abc import Iterable
from pathlib import Path


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")  # no one may reap it here


def children(process: int) -> list[int]:
    """The processes that the main thread of a process has started."""
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def wait_for_the_end_of(processes: Iterable[int], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    for process in processes:
        while is_running(process):
            assert time.monotonic() < until, f"process {process} is still there"
            time.sleep(0.02)
