"""Lines of text between two processes of a run, over TCP.

Invariant: `Channel.receive` tells that the other process has ended, at once, because that process's kernel closes the
connection. It tells within LOST_SECONDS that the other host no longer answers. The kernels exchange the probes that
find this out, so a process that computes for long, or that is suspended, is not taken for lost.
"""

import contextlib
import socket
from typing import NamedTuple

LOST_SECONDS = 30  # after which a host that does not answer counts as lost
_LONGEST = 2**18  # bytes of a line
# Linux has all four; tcp(7). A host is probed after 10 silent seconds, every 5 seconds.
_PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 1000 * LOST_SECONDS}


class Channel:
    """Lines of text over a connected socket."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self.unfinished = b""  # the bytes of a line whose end has not come
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBES.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def send(self, line: str) -> None:
        """Sends a line. Where the other process has gone, nothing happens: `receive` tells."""
        with contextlib.suppress(OSError):
            self._connection.sendall(f"{line}\n".encode())

    def receive(self) -> list[str] | None:
        """Waits for more bytes, and returns the lines whose ends have come. Returns None where the connection has
        ended, where nothing comes within the socket's timeout, and for a line longer than any of a run's processes.
        """
        try:
            data = self._connection.recv(2**16)
        except OSError:
            return None
        *lines, self.unfinished = (self.unfinished + data).split(b"\n")
        if not data or len(self.unfinished) > _LONGEST:
            return None
        return [line.decode(errors="replace") for line in lines]


class Peer(NamedTuple):
    """Another process of the run."""

    name: str  # its host and its pid
    channel: Channel
