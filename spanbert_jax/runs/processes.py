"""Lets the processes of a run meet at the coordinator's address before JAX starts.

Invariant: no run starts unless all its processes are there and were started alike. While a process is missing, every
process that knows which one says so. A process that waits in vain ends with one message. (JAX's own start waits
silently, aborts the process where it waits in vain, and lets processes with different flags wait for each other.)

Processes exchange lines of JSON over TCP, at the address that JAX's coordinator uses afterwards. A process tells
process 0 its number, its name and how it was started. Process 0 answers with the numbers of missing processes, at least
once a second, and with its own name, or with the reason why the run cannot start. A process for which no process is
missing any more goes on. The connections stay open as the lifeline of the run (training/lifeline.py).
"""

import contextlib
import importlib.metadata
import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from spanbert_jax import json_files
from spanbert_jax.config import Config, flatten
from spanbert_jax.errors import UserError
from spanbert_jax.files import is_remote
from spanbert_jax.runs.coordinator_relay import relay
from spanbert_jax.training import lifeline
from spanbert_jax.training.channel import Channel, Peer
from spanbert_jax.version import VERSION

REPORT_SECONDS = 10.0  # seconds between two messages of a process that waits
BEGUN_SECONDS = 10.0  # that a late process waits for the end of a run that has begun without it
_TICK = 1.0  # most seconds between two looks at the time, and of an attempt to connect
REFUSED_SECONDS = 10.0  # in which process 0 tells those who still come why the run cannot start
_NAMED = 3  # the most differing fields that a message names
_PER_HOST = ("corpus.workers", "data.cache_dir")  # fields that each host may set for itself


def description(config: Config, workdir: str) -> dict[str, str]:
    """All in which the processes of a run must agree: name -> value, in words."""
    versions = {f"the version of {name}": importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    versions["the version of spanbert_jax"] = VERSION
    fields = {f"config.{name}": repr(value) for name, value in flatten(config).items() if name not in _PER_HOST}
    return versions | {"--workdir": workdir if is_remote(workdir) else os.path.abspath(workdir)} | fields


class _Waiting:
    """Says from time to time for which processes this one waits, and ends the wait when the time is up."""

    def __init__(self, address: str, count: int, process: int, seconds: float, say: Callable[[str], None]):
        self._place = f"process {process} of {count}"
        self._address, self._count, self._seconds, self._say = address, count, seconds, say
        self._began = self._said = time.monotonic()
        self.missing: set[int] | None = None  # None: process 0 cannot be reached

    def _status(self) -> str:
        if self.missing is None:
            return f"{self._place} waits for process 0 at {self._address}, which does not answer"
        names = ranges(self.missing)
        return f"{self._place} waits for {names}; {self._count - len(self.missing)} have come to {self._address}"

    def check(self) -> None:
        """Reports the wait where 10 seconds have passed since the last report; raises UserError when the time is up."""
        now = time.monotonic()
        left = self._began + self._seconds - now
        if left <= 0:
            raise UserError(
                f"--distributed: {self._status()}. {self._seconds:g} seconds have passed; see whether those processes "
                "were started, all with the same coordinator, and whether a firewall keeps them from it; "
                "--wait=SECONDS waits longer"
            )
        if now - self._said >= REPORT_SECONDS:
            self._said = now
            self._say(f"{self._status()}; waited {now - self._began:.0f} s, giving up in {left:.0f} s")


def start(
    address: str | None,
    count: int | None,
    process: int | None,
    seconds: float,
    say: Callable[[str], None],
    started: Mapping[str, str],
) -> None:
    """Waits until all `count` processes have come to `address`, then starts `jax.distributed` as process `process`.

    address: "host:port" of process 0. Where address, count and process are all None, the cluster names them (TPU VM,
    GKE, SLURM, Open MPI). say: prints a line about the wait. started: the `description` of this process. Raises
    UserError after `seconds` in vain, where only some of the three are given, where the cluster is unknown, where the
    processes contradict each other or were started differently, and where the run has begun without this process.
    """
    given = {"--coordinator": address, "--processes": count, "--process": process}
    absent = [name for name, value in given.items() if value is None]
    if 0 < len(absent) < 3:
        raise UserError(f"{' and '.join(absent)} missing; give {', '.join(given)} together, or none of them")
    if address is None or count is None or process is None:
        address, count, process = _detect(seconds)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={address}: give the address of process 0 as HOST:PORT, such as 10.0.0.1:8476")
    if not 0 <= process < count:
        raise UserError(f"--process={process} does not fit --processes={count}; processes are numbered from 0")
    if count > 1:
        name = f"{socket.gethostname()}/{os.getpid()}"
        waiting = _Waiting(address, count, process, seconds, say)
        if process == 0:
            peers = _receive(int(port), _Meeting(count, name, started), waiting)
        else:
            hello = {"process": process, "count": count, "name": name, "started": dict(started)}
            peers = {0: _report(host.strip("[]"), int(port), hello, waiting)}
        lifeline.begin(process, count, name, peers)
        address = address if process == 0 else relay(host.strip("[]"), int(port))
    import jax  # not above: flags that make no sense are told before

    # Its handler of SIGTERM would take the place of the lifeline's, which also stops a run that does not step yet.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(address, count, process)


def _detect(seconds: float) -> tuple[str, int, int]:
    """(address, count, process) as `jax.distributed.initialize()` finds them, which does not return them."""
    from jax._src.clusters import ClusterEnv  # not public; initialize() would wait silently

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        address, count, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
            address, None, None, None, None, int(seconds)
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise UserError(f"--distributed: the cluster does not say who the other processes are ({error})") from error
    if address is None or count is None or process is None:
        raise UserError(
            "--distributed: this is no TPU VM, Kubernetes job, SLURM or Open MPI task; name the processes with "
            "--coordinator=HOST:PORT --processes=N --process=I, or leave --distributed out on a single machine"
        )
    return address, count, process


class _Meeting:
    """In process 0: who has come, and why the run cannot start."""

    def __init__(self, count: int, name: str, started: Mapping[str, str]):
        self._count, self._started = count, started
        self.name = name
        self.present: dict[int, Peer] = {}
        self.refused: list[Channel] = []  # of processes that are of no number of this run
        self.problem = ""
        self.missing = set(range(1, count))  # not here; after a problem, those that were never here

    def hear(self, channel: Channel) -> bool:
        """Reads from a readable connection. Returns False where the process has gone, or is not of any run."""
        lines = channel.receive()
        if lines is None and not self.problem:
            self.present = {number: peer for number, peer in self.present.items() if peer.channel is not channel}
        for line in lines or ():
            try:
                hello = json_files.parse(line)
                self._arrive(channel, **hello)
            except json_files.OTHER_SHAPE:
                return False
        self.missing = set(range(1, self._count)) - self.present.keys()
        return lines is not None

    def _arrive(self, channel: Channel, process: int, count: int, name: str, started: dict[str, str]) -> None:
        why = ""
        if count != self._count or not 0 < process < count:
            why = f"{name} is process {process} of {count}, and this is process 0 of {self._count}"
            self.refused.append(channel)
        elif process in self.present and self.present[process].name != name:
            why = (
                f"{self.present[process].name} and {name} both are process {process} of {count}; "
                "give each process a number of its own"
            )
            self.refused.append(channel)
        else:
            self.present[process] = Peer(name, channel)
            if started != self._started:
                why = self._difference(f"process {process} of {count} ({name})", started)
        if why and not self.problem:
            self.problem = f"--distributed: {why}"

    def _difference(self, other: str, theirs: Mapping[str, str]) -> str:
        def short(value: str | None) -> str:
            return "missing" if value is None else value if len(value) <= 80 else f"{value[:77]}..."

        ours = self._started
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        each = [
            f"{name} is {short(theirs.get(name))} in {other} and {short(ours.get(name))} in process 0 ({self.name})"
            for name in names[:_NAMED]
        ]
        more = f"; fields that differ besides: {len(names) - _NAMED}" if len(names) > _NAMED else ""
        return f"{'; '.join(each)}{more}; start all processes with the same flags, versions and workdir"

    def answer(self) -> None:
        """Tells the others for whom this process waits, that all may go, or why they cannot."""
        if self.problem:
            line: dict[str, Any] = {"problem": self.problem}
        else:
            line = {"missing": sorted(self.missing), "name": self.name}
        for channel in [*self.refused, *(peer.channel for peer in self.present.values())]:
            channel.send(json.dumps(line))


def _receive(port: int, meeting: _Meeting, waiting: _Waiting) -> dict[int, Peer]:
    """In process 0: waits until the other processes have come, and tells them to go. Returns them by their numbers."""
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as selector:
        try:
            server = opened.enter_context(_listen(port))
        except OSError as error:
            raise UserError(
                f"--distributed: process 0 cannot listen on port {port} ({error.strerror}); another program or "
                "another run uses it; choose another port"
            ) from error
        selector.register(server, selectors.EVENT_READ)
        until = float("inf")
        while meeting.missing and time.monotonic() < until:
            waiting.missing = meeting.missing
            waiting.check()
            for key, _ in selector.select(_TICK):
                channel = key.data
                if channel is None:
                    channel = Channel(opened.enter_context(server.accept()[0]))
                    selector.register(channel, selectors.EVENT_READ, channel)
                elif not meeting.hear(channel):
                    selector.unregister(channel)
                    channel.close()
            meeting.answer()
            if meeting.problem:
                until = min(until, time.monotonic() + REFUSED_SECONDS)
        if meeting.problem:
            raise UserError(meeting.problem)
        opened.pop_all()
        server.close()
        return meeting.present


def _listen(port: int) -> socket.socket:
    """A server on every interface, for IPv4 and IPv6 where the machine has both, like JAX's own."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)


def _report(host: str, port: int, hello: Mapping[str, Any], waiting: _Waiting) -> Peer:
    """In any other process: connects to process 0, and waits until process 0 says that all have come. Returns it."""
    begun: float | None = None  # since when another program than a process 0 that waits has answered
    while True:
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection((host, port), timeout=_TICK))
            channel = Channel(connection)
            connection.settimeout(3 * _TICK)
            channel.send(json.dumps(hello))
            try:
                found = _go(channel, waiting)
            except _Foreign:
                begun = begun or time.monotonic()
            else:
                begun = None
                if found:
                    connection.settimeout(None)
                    opened.pop_all()
                    return found
        waiting.missing = None
        if begun and time.monotonic() - begun > BEGUN_SECONDS:
            raise UserError(
                f"--distributed: {host}:{port} answers, but not as a process 0 that waits; most likely the run has "
                f"begun without process {hello['process']} of {hello['count']}: stop the others and start all again"
            )
        waiting.check()
        time.sleep(_TICK / 4)


class _Foreign(Exception):
    """Another program than a process 0 that waits has answered: in a run that has begun, JAX's coordinator."""


def _go(channel: Channel, waiting: _Waiting) -> Peer | None:
    """Waits for the word of process 0 that no process is missing. Returns process 0; None where it has gone.

    Raises UserError where the run cannot start.
    """
    while (lines := channel.receive()) is not None:
        if channel.unfinished[:1] not in (b"", b"{"):
            raise _Foreign
        for line in lines:
            try:
                word = json_files.parse(line)
                if "problem" in word:
                    raise UserError(word["problem"])
                waiting.missing = set(word["missing"])
                name = word["name"]
            except json_files.OTHER_SHAPE as error:
                raise _Foreign from error
            if not waiting.missing:
                return Peer(name, channel)
            waiting.check()
    return None


def ranges(numbers: set[int]) -> str:
    """The numbers in words: "process 3", "processes 1-4 and 6"."""
    ordered = sorted(numbers)
    starts = [n for n in ordered if n - 1 not in numbers]
    ends = [n for n in ordered if n + 1 not in numbers]
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    named = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"process{'es' if len(ordered) > 1 else ''} {named}"
