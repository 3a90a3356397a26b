"""A process that is lost ends its run with one line, and a signal to any process stops all at one step."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanbert_jax import signals
from spanbert_jax.training import channel

ROOT = Path(__file__).resolve().parents[2]


class Members:
    """Real processes of one run, each of which does what its words say (tests/support/lifeline_member.py)."""

    def __init__(self, folder: Path, does: tuple[str, ...]):
        pairs = [socket.socketpair() for _ in does[1:]]
        self.files = [folder / str(number) for number in range(len(does))]
        self.processes = []
        for number, (words, file) in enumerate(zip(does, self.files, strict=True)):
            ours = [pairs[number - 1][1]] if number else [pair[0] for pair in pairs]
            connections = ",".join(str(end.fileno()) for end in ours)
            command = [sys.executable, "-m", "tests.support.lifeline_member", str(number), str(len(does)), connections]
            with file.open("w") as output:
                process = subprocess.Popen(
                    [*command, *words.split()],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[end.fileno() for end in ours],
                )
            self.processes.append(process)
        for end in (end for pair in pairs for end in pair):
            end.close()

    def wait_for(self, number: int, text: str) -> None:
        for _ in range(1200):
            if text in self.printed(number):
                return
            time.sleep(0.05)
        raise AssertionError(f"no {text!r} in {self.printed(number)!r}")

    def printed(self, number: int) -> str:
        return self.files[number].read_text()

    def statuses(self) -> list[int]:
        return [process.wait(60) for process in self.processes]


Start = Callable[..., Members]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(*does): the members of a run, process 0 first."""
    begun: list[Members] = []

    def begin(*does: str) -> Members:
        begun.append(Members(tmp_path, does))
        return begun[-1]

    yield begin
    for process in (process for members in begun for process in members.processes):
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_or_to_all_stops_every_process_before_the_same_step(number: int, start: Start) -> None:
    members = start("step 0.02", "step 0.03", "step 0.025")
    for member in range(3):
        members.wait_for(member, "began 9\n")
    for process in members.processes if number == signal.SIGINT else members.processes[2:]:
        process.send_signal(number)
    assert members.statuses() == [75] * 3
    (step,) = {re.search(r"stopped before (\d+)\n$", members.printed(member)).group(1) for member in range(3)}  # type: ignore[union-attr]
    for member in range(3):
        assert f"began {int(step) - 1}\n" in members.printed(member)
        assert f"began {step}\n" not in members.printed(member)


def test_a_run_that_does_not_step_yet_ends_at_once_whatever_its_processes_wait_for(start: Start) -> None:
    members = start("compute", "hang", "hang")
    for member, text in enumerate(("computing", "hanging", "hanging")):
        members.wait_for(member, text)
    members.processes[1].send_signal(signal.SIGINT)
    assert members.statuses() == [75] * 3
    assert members.printed(0) == "computing\ncleaned up\nstopped; the same command goes on\n"
    assert members.printed(1) == members.printed(2) == "hanging\nstopped at once; the same command goes on\n"


def test_processes_exchange_texts_and_a_signal_ends_the_wait_for_one(start: Start) -> None:
    members = start("agree - ä -", "agree b c -", "agree d - -")
    assert members.statuses() == [0] * 3
    assert {members.printed(member) for member in range(3)} == {"[(1, 'b'), (0, 'ä'), (0, '')]\n"}


def test_a_second_signal_ends_every_process_without_delay(start: Start) -> None:
    members = start("hang", "hang")
    for member in (0, 1):
        members.wait_for(member, "hanging")
    members.processes[0].send_signal(signal.SIGINT)
    time.sleep(2 * signals.SAME_SECONDS)
    members.processes[0].send_signal(signal.SIGINT)
    assert members.statuses() == [75] * 2
    assert members.printed(1) == (
        "hanging\nprocess 0 of 2 (host/0) was asked twice to stop; every process ends; the same command goes on\n"
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_is_named_by_all_others_at_once(lost: int, start: Start) -> None:
    members = start("hang", "hang", "step 0.1")
    for member, text in enumerate(("hanging", "hanging", "began 7")):
        members.wait_for(member, text)
    members.processes[lost].kill()
    began = time.monotonic()
    assert [status for status in members.statuses() if status >= 0] == [75, 75] and time.monotonic() - began < 10
    line = f"process {lost} of 3 (host/{lost}) was lost; every process ends; the same command goes on\n"
    for member in {0, 1, 2} - {lost}:
        assert members.printed(member).endswith(line) and members.printed(member).count("lost") == 1


def test_an_error_that_a_lost_process_caused_gives_way_to_its_name(start: Start) -> None:
    members = start("fail", "hang")
    for member, text in enumerate(("failing", "hanging")):
        members.wait_for(member, text)
    members.processes[1].kill()
    assert members.processes[0].wait(60) == 75
    assert members.printed(0) == (
        "failing\nprocess 1 of 2 (host/1) was lost; every process ends; the same command goes on\n"
    )


def test_an_error_of_one_process_alone_ends_the_others_that_wait_for_it(start: Start) -> None:
    members = start("hang", "mistake", "hang")
    assert members.statuses() == [1] * 3
    assert members.printed(1) == "error: a mistake\n"
    line = "error: process 1 of 3 (host/1) ended with an error; that process prints the reason\n"
    assert members.printed(0) == members.printed(2) == f"hanging\n{line}"


def test_a_run_that_is_done_ends_with_0_and_ignores_a_late_signal(start: Start, tmp_path: Path) -> None:
    members = start(f"finish {tmp_path}/b", f"finish {tmp_path}/a", f"finish {tmp_path}/b")
    for member in range(3):
        members.wait_for(member, "finishing")
    (tmp_path / "a").touch()
    assert members.processes[1].wait(60) == 0
    members.processes[2].send_signal(signal.SIGTERM)
    time.sleep(0.2)
    (tmp_path / "b").touch()
    assert members.statuses() == [0] * 3
    assert "".join(map(members.printed, range(3))) == 3 * "finishing\n"


def test_a_host_that_does_not_answer_is_lost_after_30_seconds() -> None:
    with socket.create_server(("localhost", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        channel.Channel(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        idle, between, count, unanswered = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert idle + between * count == channel.LOST_SECONDS == 30 == unanswered / 1000


def test_lines_come_whole_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = channel.Channel(ours)
        theirs.sendall(b"on\nunt")
        assert reader.receive() == ["on"]
        theirs.sendall(b"il 5")
        assert reader.receive() == []
        theirs.sendall(b"\nstop\n")
        assert reader.receive() == ["until 5", "stop"]
        theirs.close()
        assert reader.receive() is None
