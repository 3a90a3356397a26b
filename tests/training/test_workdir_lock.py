"""One run at a time in a workdir: on this machine, from another one, without file locks, and in a bucket."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from spanbert_jax.errors import UserError
from spanbert_jax.training import workdir_lock
from spanbert_jax.training.workdir_lock import FILE, running_alone
from tests.support import fake_bucket, forked
from tests.support.runs import wait_for

HERE = rf"another run is at work there, process {os.getpid()} on {socket.gethostname()}, since 2\d\d\d-"
THERE = {"pid": 7, "host": "elsewhere", "machine": "another", "started": "2026-01-02", "id": "x", "beat": 0}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdir_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(workdir_lock, "SETTLE_SECONDS", 0.0)


@pytest.fixture(params=["a disk", "without file locks", "a bucket"])
def workdir(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    if request.param == "a bucket":
        monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
        fake_bucket.install(tmp_path)
        (tmp_path / "bucket").mkdir()
        return epath.Path("gs://bucket/run")
    if request.param == "without file locks":
        monkeypatch.setattr(fcntl, "flock", has_no_locks)
    return epath.Path(tmp_path)


def has_no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def write(workdir: epath.Path, **fields: Any) -> None:
    aside = workdir / "aside"  # so that no reader finds half of the record
    aside.write_text(json.dumps(THERE | fields))
    aside.replace(workdir / FILE)


def beat(workdir: epath.Path, over: threading.Event) -> None:
    """The heartbeat of a process elsewhere."""
    number = 0
    while not over.wait(0.05):
        number += 1
        write(workdir, beat=number)


def test_a_second_run_is_refused_with_the_process_and_the_host_of_the_first(workdir: epath.Path) -> None:
    with running_alone(workdir):
        with pytest.raises(UserError, match=HERE), running_alone(workdir):
            pass
        with pytest.raises(UserError, match=HERE), running_alone(workdir):  # the refused one took nothing away
            pass


def test_a_lock_file_that_may_not_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with (
        pytest.raises(UserError, match=rf"/{FILE}: cannot be opened \(Is a directory\); .* choose another --workdir"),
        running_alone(epath.Path(tmp_path)),
    ):
        pass


def test_the_next_run_begins_at_once_after_one_that_ended_in_order(
    workdir: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 1000.0)
    for _ in range(2):
        with pytest.raises(ValueError, match="a fault"), running_alone(workdir):
            raise ValueError("a fault")


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 1000.0)
    process = forked.start("tests.support.holds_workdir", str(tmp_path))
    wait_for(tmp_path / "held", process)
    with pytest.raises(UserError, match=rf"process {process.pid} on "), running_alone(epath.Path(tmp_path)):
        pass
    process.kill()
    process.communicate()
    with running_alone(epath.Path(tmp_path)):
        pass


def test_a_run_elsewhere_is_refused_for_as_long_as_its_heart_beats(
    workdir: epath.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file lock of another machine may not be seen here, as under gcsfuse."""
    write(workdir)
    over = threading.Event()
    beating = threading.Thread(target=beat, args=(workdir, over))
    beating.start()
    try:
        with pytest.raises(UserError, match="process 7 on elsewhere, since 2026-01-02"), running_alone(workdir):
            pass
    finally:
        over.set()
        beating.join()
    began = time.monotonic()
    with running_alone(workdir):
        assert time.monotonic() - began >= 1.0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(
        "process 7 on elsewhere, since 2026-01-02 has not said that it ended" in x for x in said
    )


def test_a_run_elsewhere_that_ends_meanwhile_lets_the_next_one_in(workdir: epath.Path) -> None:
    write(workdir)
    ending = threading.Timer(0.2, write, [workdir], {"ended": True})
    ending.start()
    with running_alone(workdir):
        ending.join()


def test_a_run_whose_lock_was_taken_over_ends_before_it_writes_again(
    workdir: epath.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a stand-in for os._exit, which only the next heartbeat survives."""
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()
        raise OSError("the process would have ended")

    monkeypatch.setattr(os, "_exit", leave)
    with running_alone(workdir):
        write(workdir)
        assert ended.wait(30) and codes[0] == 1
    assert "process 7 on elsewhere, since 2026-01-02 took this run's lock" in capsys.readouterr().err
    assert json.loads((workdir / FILE).read_text())["id"] == "x"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}', "[" * 10_000])
def test_a_damaged_lock_file_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with running_alone(epath.Path(tmp_path)):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
