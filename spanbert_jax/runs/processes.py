"""Lets the processes of a run meet at the coordinator's address before JAX starts.

Invariant: while a process is missing, every process that knows which one says so. A process that waits in vain ends
with one message. (JAX's own start waits silently, and aborts the process where it waits in vain.)

Processes exchange lines over TCP, at the address that JAX's coordinator uses afterwards. A process sends "PROCESS COUNT
NAME" to process 0. Process 0 answers with the numbers of missing processes, at least once a second, and with "go" when
no process is missing.
"""

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable

import jax

from spanbert_jax.errors import UserError

REPORT_SECONDS = 10.0  # seconds between two messages of a process that waits
_TICK = 1.0  # most seconds between two looks at the time, and of an attempt to connect
_GO = "go"


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
    address: str | None, count: int | None, process: int | None, seconds: float, say: Callable[[str], None]
) -> None:
    """Waits until all `count` processes have come to `address`, then starts `jax.distributed` as process `process`.

    address: "host:port" of process 0. Where address, count and process are all None, the cluster names them (TPU VM,
    GKE, SLURM, Open MPI). say: prints a line about the wait. Raises UserError after `seconds` in vain, where only some
    of the three are given, where the cluster is unknown, and where the processes contradict each other.
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
        waiting = _Waiting(address, count, process, seconds, say)
        if process == 0:
            _receive(int(port), count, waiting)
        else:
            _report(host.strip("[]"), int(port), count, process, waiting)
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


def _receive(port: int, count: int, waiting: _Waiting) -> None:
    """In process 0: waits until the other processes have come, then tells them to go."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        try:
            server = stack.enter_context(_listen(port))
        except OSError as error:
            raise UserError(
                f"--distributed: process 0 cannot listen on port {port} ({error.strerror}); another program or "
                "another run uses it; choose another port"
            ) from error
        selector.register(server, selectors.EVENT_READ)
        present: dict[int, tuple[str, socket.socket]] = {}
        waiting.missing = set(range(1, count))
        while waiting.missing:
            waiting.check()
            for key, _ in selector.select(_TICK):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is server:
                    selector.register(stack.enter_context(server.accept()[0]), selectors.EVENT_READ)
                elif not _arrive(connection, count, present):
                    selector.unregister(connection)
                    connection.close()
            waiting.missing = set(range(1, count)) - set(present)
            line = " ".join(map(str, sorted(waiting.missing))) or _GO
            for _, held in present.values():
                with contextlib.suppress(OSError):  # the process has gone, which the selector reports
                    held.sendall(f"{line}\n".encode("ascii"))


def _listen(port: int) -> socket.socket:
    """A server on every interface, for IPv4 and IPv6 where the machine has both, like JAX's own."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)


def _arrive(connection: socket.socket, count: int, present: dict[int, tuple[str, socket.socket]]) -> bool:
    """Adds the process on a readable connection to `present`. Returns False where the process has gone, or the line is
    not from a process of a run.

    Raises UserError where the process has a number that is present already, or another count of processes.
    """
    for number, (_, held) in list(present.items()):
        if held is connection:  # a process sends one line, so this is the end of the connection
            del present[number]
            return False
    try:
        number_word, count_word, name = connection.recv(256).decode("ascii").split()
        number, its_count = int(number_word), int(count_word)
    except (OSError, UnicodeDecodeError, ValueError):
        return False
    if its_count != count or not 0 < number < count:
        raise UserError(f"--distributed: {name} is process {number} of {its_count}, and this is process 0 of {count}")
    if number in present and present[number][0] != name:
        raise UserError(
            f"--distributed: {present[number][0]} and {name} both are process {number} of {count}; "
            "give each process a number of its own"
        )
    present[number] = name, connection
    return True


def _report(host: str, port: int, count: int, process: int, waiting: _Waiting) -> None:
    """In any other process: connects to process 0, and waits until process 0 says that all have come."""
    name = f"{socket.gethostname()}/{os.getpid()}".encode("ascii", "replace").decode("ascii").replace(" ", "_")
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=_TICK) as connection:
            connection.sendall(f"{process} {count} {name}\n".encode("ascii"))
            connection.settimeout(3 * _TICK)
            for line in connection.makefile(encoding="ascii"):
                if line.strip() == _GO:
                    return
                waiting.missing = {int(word) for word in line.split()}
                waiting.check()
        waiting.missing = None
        waiting.check()
        time.sleep(_TICK / 4)


def ranges(numbers: set[int]) -> str:
    """The numbers in words: "process 3", "processes 1-4 and 6"."""
    ordered = sorted(numbers)
    starts = [n for n in ordered if n - 1 not in numbers]
    ends = [n for n in ordered if n + 1 not in numbers]
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    named = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"process{'es' if len(ordered) > 1 else ''} {named}"
