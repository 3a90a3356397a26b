"""How the processes of a run find each other: they meet at the coordinator's address before JAX starts.

Invariant: while one of them is missing, every process that can say so says which; a process that waits in vain ends
with one message. JAX's own start waits without a word, and where it waits in vain it aborts the process.

They meet by lines over TCP, at the address that JAX's coordinator takes over afterwards. A process sends "PROCESS COUNT
NAME"; process 0 answers with the numbers that are missing, at least once a second, and with "go" when none is.
"""

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable

import jax

from spanbert_jax.errors import UserError

_EVERY = 10.0  # seconds between two messages of a process that waits
_TICK = 1.0  # seconds between two looks at the time, and between two attempts to connect
_GO = "go"


class _Waiting:
    """Says for whom a process waits, from time to time, and ends the wait."""

    def __init__(self, address: str, count: int, process: int, seconds: float, say: Callable[[str], None]):
        self._place = f"process {process} of {count}"
        self._address, self._count, self._seconds, self._say = address, count, seconds, say
        self._began = self._said = time.monotonic()
        self.missing: set[int] | None = None  # None: process 0 cannot be reached

    def _status(self) -> str:
        if self.missing is None:
            return f"{self._place} waits for process 0 at {self._address}, which does not answer"
        names = _ranges(self.missing)
        return f"{self._place} waits for {names}; {self._count - len(self.missing)} have come to {self._address}"

    def check(self) -> None:
        """Raises UserError when the time is up."""
        now = time.monotonic()
        left = self._began + self._seconds - now
        if left <= 0:
            raise UserError(
                f"--distributed: {self._status()}. {self._seconds:g} seconds have passed; see whether those processes "
                "were started, all with the same coordinator, and whether a firewall keeps them from it; "
                "--wait=SECONDS waits longer"
            )
        if now - self._said >= _EVERY:
            self._said = now
            self._say(f"{self._status()}; waited {now - self._began:.0f} s, giving up in {left:.0f} s")


def start(
    address: str | None, count: int | None, process: int | None, seconds: float, say: Callable[[str], None]
) -> None:
    """Starts `jax.distributed` in process `process` of `count` when all of them have come to `address`, the "host:port"
    of process 0. All three None: the cluster says what they are (TPU VM, GKE, SLURM, Open MPI).

    say: what to do with a line about the wait. Raises UserError after `seconds` in vain, where the three are not given
    together or the cluster is unknown, and where the processes contradict each other.
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
    """(address, count, process) as `jax.distributed.initialize()` would find them; it tells nobody."""
    from jax._src.clusters import ClusterEnv  # not public, but needed before initialize() waits without a word

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
    """Process 0: waits until the others have come, and sends them on."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        try:
            server = stack.enter_context(_listen(port))
        except OSError as error:
            raise UserError(
                f"--distributed: process 0 cannot listen on port {port} ({error.strerror}); another program has it, "
                "or another run's process 0: choose another port"
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
                with contextlib.suppress(OSError):  # gone; the selector will tell
                    held.sendall(f"{line}\n".encode("ascii"))


def _listen(port: int) -> socket.socket:
    """A server on every interface, of both families where the machine has both, as JAX's own."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)


def _arrive(connection: socket.socket, count: int, present: dict[int, tuple[str, socket.socket]]) -> bool:
    """Notes who came on a readable connection; False where it went away, or is nobody of a run.

    Raises UserError where the other says that it is one that is there already, or that their number is another.
    """
    for number, (_, held) in list(present.items()):
        if held is connection:  # they speak once, so this is its end
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
    """Another process: goes to process 0 and waits until it says that all have come."""
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


def _ranges(numbers: set[int]) -> str:
    """ "process 3", "processes 1-4 and 6": those numbers."""
    ordered = sorted(numbers)
    starts = [n for n in ordered if n - 1 not in numbers]
    ends = [n for n in ordered if n + 1 not in numbers]
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    named = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"process{'es' if len(ordered) > 1 else ''} {named}"
