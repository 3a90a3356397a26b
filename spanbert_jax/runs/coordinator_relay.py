"""Passes JAX's connection to its coordinator on, so that the death of process 0 does not abort the other processes.

Invariant: the end of the coordinator's connection reaches JAX a few seconds late, and nothing else is changed. JAX's
client aborts its process as soon as it sees that end, with a page of C++ frames and a core dump. In these seconds the
lifeline (training/lifeline.py) sees it too, and ends the process with one line and a status to restart on.

The connection carries heartbeats, barriers and addresses, and no arrays.
"""

import contextlib
import socket
import threading
import time

CLOSED_SECONDS = 5.0  # that JAX does not hear of the end


def relay(host: str, port: int) -> str:
    """Starts to pass connections on to host:port; returns the address, on this host, to connect to instead."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(server, (host, port)), name="relay", daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _accept(server: socket.socket, address: tuple[str, int]) -> None:
    while True:
        client, _ = server.accept()
        threading.Thread(target=_carry, args=(client, address), name="relay", daemon=True).start()


def _carry(client: socket.socket, address: tuple[str, int]) -> None:
    """Carries one connection. A coordinator that does not listen yet ends it, and JAX's client tries again."""
    with contextlib.suppress(OSError), client, socket.create_connection(address) as coordinator:
        for end in (client, coordinator):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(
            target=_pass_on, args=(coordinator, client, CLOSED_SECONDS), name="relay back", daemon=True
        )
        back.start()
        _pass_on(client, coordinator, 0.0)
        back.join()


def _pass_on(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Passes bytes on until the source ends, and the end itself so many seconds later."""
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
    time.sleep(seconds)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
