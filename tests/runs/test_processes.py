"""Processes of one run find each other, say for whom they wait, and give up with one message."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.tiny import get_config
from spanbert_jax.config import from_dict
from spanbert_jax.errors import UserError
from spanbert_jax.runs import processes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from spanbert_jax.errors import UserError
from spanbert_jax.runs import processes
from spanbert_jax.training import lifeline
processes.REPORT_SECONDS, processes.REFUSED_SECONDS = 0.5, 1
say = lambda line: print(line, flush=True)
def main():
    try:
        processes.start(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), say, {})
    except UserError as error:
        print("error:", error)
        return 1
    import jax
    say(f"started {jax.process_index()} of {jax.process_count()}")
    return 0
sys.exit(lifeline.ended(main))
"""


def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return f"localhost:{taken.getsockname()[1]}"


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that waits: start(address, count, process, seconds). It writes to tmp_path / str(process)."""
    begun: list[subprocess.Popen[str]] = []

    def begin(address: str, count: int, process: int, seconds: float = 60) -> subprocess.Popen[str]:
        arguments = map(str, (address, count, process, seconds))
        with (tmp_path / str(process)).open("w") as output:
            process_begun = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *arguments],
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        begun.append(process_begun)
        return process_begun

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def wait_for(path: Path, text: str) -> None:
    for _ in range(1200):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"no {text!r} in {path.read_text()!r}")


def test_everyone_says_for_whom_it_waits_and_all_start_when_the_last_has_come(start: Start, tmp_path: Path) -> None:
    address = free_address()
    running = [start(address, 4, 1)]
    wait_for(tmp_path / "1", f"process 1 of 4 waits for process 0 at {address}, which does not answer; waited")
    running.append(start(address, 4, 0))
    wait_for(tmp_path / "0", f"process 0 of 4 waits for processes 2-3; 2 have come to {address}; waited")
    wait_for(tmp_path / "1", "process 1 of 4 waits for processes 2-3; 2 have come")
    running.append(start(address, 4, 3))
    wait_for(tmp_path / "3", "process 3 of 4 waits for process 2; 3 have come")
    assert "giving up in" in (tmp_path / "3").read_text()
    running.append(start(address, 4, 2))
    assert [process.wait(60) for process in running] == [0] * 4
    for number in range(4):
        assert (tmp_path / str(number)).read_text().endswith(f"started {number} of 4\n")


def test_a_wait_in_vain_ends_with_one_message_that_names_who_is_missing(start: Start, tmp_path: Path) -> None:
    address = free_address()
    running = [start(address, 3, 0, 6), start(address, 3, 1, 6)]
    assert [process.wait(60) for process in running] == [1, 1]
    last = (tmp_path / "0").read_text().splitlines()[-1]
    assert last.startswith(f"error: --distributed: process 0 of 3 waits for process 2; 2 have come to {address}. 6 sec")
    assert "--wait=SECONDS" in last
    for number in range(2):
        assert "Traceback" not in (tmp_path / str(number)).read_text()


def test_two_processes_of_one_number_are_told_apart(start: Start, tmp_path: Path) -> None:
    address = free_address()
    first = start(address, 3, 0)
    talkers = [socket.socket() for _ in range(2)]
    try:
        wait_for(tmp_path / "0", "waits for processes 1-2")
        for talker, name in zip(talkers, ("left/1", "right/2"), strict=True):
            talker.connect(("localhost", int(address.split(":")[1])))
            hello = {"process": 1, "count": 3, "name": name, "started": {}}
            talker.sendall(json.dumps(hello).encode() + b"\n")
        assert first.wait(60) == 1
    finally:
        for talker in talkers:
            talker.close()
    assert "left/1 and right/2 both are process 1 of 3" in (tmp_path / "0").read_text()


def test_a_process_of_another_run_and_a_port_in_use_are_told(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}"):
            processes.start(f"localhost:{port}", 2, 0, 5, print, {})
    address = free_address()
    running = start(address, 3, 0)
    wait_for(tmp_path / "0", "waits for")
    start(address, 2, 1, 1).wait(60)
    assert running.wait(60) == 1
    assert "is process 1 of 2, and this is process 0 of 3" in (tmp_path / "0").read_text()


def refused(started: dict[int, dict[str, str]], count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each process is told where a run of these processes, which are threads here, cannot start."""
    monkeypatch.setattr(processes, "REFUSED_SECONDS", 5)
    address = free_address()

    def start(number: int) -> str:
        try:
            processes.start(address, count, number, 60, print, started[number])
        except UserError as error:
            return str(error)
        raise AssertionError(f"process {number} started")

    with concurrent.futures.ThreadPoolExecutor() as threads:
        return list(threads.map(start, started))


def test_a_flag_that_differs_ends_every_process_with_the_field_both_values_and_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = from_dict(get_config().to_dict())
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=48))
    mine, theirs = (processes.description(given, "runs/a") for given in (config, other))
    told = refused({0: mine, 1: mine, 2: theirs}, 3, monkeypatch)
    field = rf"config\.train\.batch_size is 48 in process 2 of 3 \(\S+/\d+\) and {config.train.batch_size} in process 0"
    assert len(set(told)) == 1 and re.match(rf"--distributed: {field} \(\S+/\d+\); start all", told[0]), told


def test_processes_agree_in_workdir_and_versions_and_may_differ_in_what_is_a_hosts_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = from_dict(get_config().to_dict())
    own = {"corpus": dataclasses.replace(config.corpus, workers=7)}
    own["data"] = dataclasses.replace(config.data, cache_dir="/scratch/7")
    mine = processes.description(config, "runs/a")
    assert processes.description(dataclasses.replace(config, **own), str(Path("runs/a").resolve())) == mine
    theirs = mine | {"--workdir": "/runs/b", "the version of jax": "0.1", "config.train.steps": "9" * 500}
    del theirs["config.model.layers"]
    for line in refused({0: mine, 1: theirs}, 2, monkeypatch):
        assert "--workdir is /runs/b in process 1 of 2" in line and "the version of jax is 0.1 in" in line
        assert "config.model.layers is missing in process 1 of 2" in line and "fields that differ besides: 1;" in line
        assert len(line) < 1000


def test_a_stranger_on_the_port_is_no_process_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "REFUSED_SECONDS", 0)
    address = free_address()
    strangers = (b"GET / HTTP/1.1\r\n\r\n", b"[" * 9000 + b"\n", b'{"process": 1}\n', b"\xff\n", b"[1]\n")

    def visit() -> None:
        for bytes_ in (*strangers, b'{"process": 1, "count": 9, "name": "n", "started": {}}\n'):
            with socket.socket() as talker:
                while talker.connect_ex(("localhost", int(address.split(":")[1]))):
                    time.sleep(0.05)
                talker.sendall(bytes_)
                with contextlib.suppress(ConnectionError):  # the rest of the line is not read
                    talker.shutdown(socket.SHUT_WR)
                    talker.recv(1)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        visiting = threads.submit(visit)
        with pytest.raises(UserError, match="n is process 1 of 9, and this is process 0 of 2"):
            processes.start(address, 2, 0, 60, print, {})
        visiting.result()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 2, None), "--process missing; give --coordinator, --processes, --process together"),
        ((None, 2, None), "--coordinator and --process missing"),
        (("host", 2, 0), "--coordinator=host: give the address of process 0 as HOST:PORT"),
        (("host:70000", 2, 0), "as HOST:PORT"),
        (("host:1", 2, 2), "--process=2 does not fit --processes=2"),
    ],
)
def test_flags_that_make_no_sense_are_refused(given: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        processes.start(*given, 5, print, {})


def test_a_machine_that_is_no_cluster_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "OMPI", "KUBERNETES", "JAX_COORD"))]:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"no TPU VM, Kubernetes job, SLURM or Open MPI task.*--coordinator=HOST:PORT"):
        processes.start(None, None, None, 5, print, {})


@pytest.mark.parametrize(
    ("numbers", "text"),
    [({3}, "process 3"), ({1, 2, 3, 6}, "processes 1-3 and 6"), ({1, 3, 5}, "processes 1, 3 and 5")],
)
def test_missing_processes_are_named_in_ranges(numbers: set[int], text: str) -> None:
    assert processes.ranges(numbers) == text
