"""One run at a time in a workdir.

Invariant: a run holds the lock of its workdir from before it touches any other file there until it ends. A second run
is refused, with the process and the host of the first one. The lock of a process that died is taken over. On the same
machine this happens at once, because the kernel frees the file. From another machine, in a bucket, and where a file
system has no locks, it happens when the dead process's heartbeat has not changed for STALE_SECONDS. Heartbeats are
counted and not dated, because clocks jump, and differ between machines.

The file is not deleted: two processes could then lock two files of the same name, one of them deleted.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from spanbert_jax import json_files
from spanbert_jax.errors import UserError
from spanbert_jax.files import bucket_errors, is_remote
from spanbert_jax.training.together import together

FILE = "run.lock"
BEAT_SECONDS = 10.0
STALE_SECONDS = 90.0  # gcsfuse may show what a file held up to 60 seconds ago
SETTLE_SECONDS = 2.0  # after which the record of the last of several processes that wrote at once is there
_BYTES = 512  # of the record, filled up with blanks


@contextlib.contextmanager
def running_alone(workdir: epath.Path) -> Iterator[None]:
    """Lets one run at a time into the block; process 0 of the run holds the lock.

    Raises UserError, in every process of the run, where another run holds it. A process whose lock another one took
    over, because it was not heard of for so long, ends with status 1.
    """
    lock, first = _Lock(workdir), jax.process_index() == 0
    together("lock the workdir", lock.take, first)
    try:
        yield
    finally:
        if first:
            lock.release()


class _Lock:
    """The lock of a workdir. Its file holds a record of the process that has the lock, or had it last."""

    def __init__(self, workdir: epath.Path):
        self._workdir, self._file = workdir, workdir / FILE
        started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._record: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
        self._record |= {"started": started, "id": uuid.uuid4().hex, "beat": 0, "ended": False}
        self._descriptor: int | None = None  # of the file, while it is locked
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="workdir lock", daemon=True)

    def take(self) -> None:
        """Raises UserError where another process has the lock."""
        try:
            with bucket_errors(self._workdir, "--workdir"):
                self._take()
        except BaseException:
            self._unlock_file()
            raise
        self._beating.start()

    def _take(self) -> None:
        freed_by_kernel = not is_remote(self._file) and self._lock_file()
        found = self._read()
        dead = freed_by_kernel and found is not None and found.get("machine") == self._record["machine"]
        if found and not found.get("ended") and not dead:
            self._wait_for(found)
        self._write()
        if not freed_by_kernel:
            time.sleep(SETTLE_SECONDS)
            found = self._read()
            if found and found["id"] != self._record["id"]:
                raise self._refusal(found)

    def release(self) -> None:
        """Lets the next run in at once."""
        self._over.set()
        self._beating.join()
        self._unlock_file()

    def _unlock_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _lock_file(self) -> bool:
        """Locks the file. Returns False where the file system has no locks; raises UserError where it is locked or may
        not be opened."""
        try:
            self._descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise UserError(
                f"{self._file}: cannot be opened ({error.strerror}); let its owner give the right to write, or choose "
                "another --workdir"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.5)  # in which a process that has just locked the file writes its record
            raise self._refusal(self._read() or {}) from None
        except OSError:
            return False
        return True

    def _wait_for(self, found: Mapping[str, Any]) -> None:
        """Waits until the process of a record must be dead; raises UserError where its heart beats."""
        who = f"{_describe(found)} has not said that it ended"
        print(f"{self._file}: {who}; waiting {STALE_SECONDS:.0f} s for a heartbeat", file=sys.stderr, flush=True)
        until = time.monotonic() + STALE_SECONDS
        while time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 5)
            now = self._read()
            if now and now.get("ended"):
                return
            if now and now != found:
                raise self._refusal(now)

    def _refusal(self, holder: Mapping[str, Any]) -> UserError:
        return UserError(
            f"{self._workdir}: another run is at work there, {_describe(holder)}; wait for its end, stop it, or choose "
            "another --workdir"
        )

    def _beat(self) -> None:
        """Writes heartbeats, and at last that this run has ended."""
        while not self._record["ended"]:
            self._record["ended"] = self._over.wait(BEAT_SECONDS)
            with contextlib.suppress(Exception):  # of a network; the next beat may come through
                there = self._read()
                if there and there["id"] != self._record["id"]:
                    line = f"{_describe(there)} took this run's lock, as no heartbeat came for {STALE_SECONDS:.0f} s"
                    print(f"error: {self._workdir}: {line}; this process ends", file=sys.stderr, flush=True)
                    os._exit(1)  # without a save: the other run writes there
                self._record["beat"] += 1
                self._write()

    def _read(self) -> dict[str, Any] | None:
        """The record in the file; None where there is none."""
        if not self._file.exists():
            return None
        with contextlib.suppress(ValueError):
            record = json_files.read(self._file)
            if isinstance(record, dict) and "id" in record:
                return record
        return None

    def _write(self) -> None:
        """Writes the record: in place, because the lock is that of this very file, and at once, so that no reader finds
        half of it."""
        record = json.dumps(self._record).ljust(_BYTES)
        if is_remote(self._file):
            self._file.write_text(record)
        else:
            with open(self._file, "r+b") as file:
                file.write(record.encode())
                file.truncate()  # where the file was longer, it was damaged


def _machine() -> str:
    """What tells a running kernel from every other one: the file lock of a process on the same one can be trusted."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def _describe(record: Mapping[str, Any]) -> str:
    pid, host, started = (str(record.get(name, "?"))[:100] for name in ("pid", "host", "started"))
    return f"process {pid} on {host}, since {started}"
