"""A relayed connection carries all bytes both ways, and its end at the coordinator comes late."""

import socket
import threading
import time

import pytest

from spanbert_jax.runs import coordinator_relay


def test_bytes_pass_both_ways_and_only_the_coordinators_end_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_relay, "CLOSED_SECONDS", 1.0)
    sent = bytes(range(256)) * 4000
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, _, port = coordinator_relay.relay(*server.getsockname()).rpartition(":")
        with socket.create_connection((host, int(port))) as client:
            coordinator, _ = server.accept()
            writing = threading.Thread(target=client.sendall, args=(sent,))
            writing.start()
            assert _read(coordinator, len(sent)) == sent
            writing.join()
            coordinator.sendall(sent[::-1][:1000])
            assert _read(client, 1000) == sent[::-1][:1000]
            coordinator.close()
            ended = time.monotonic()
            assert client.recv(1) == b"" and time.monotonic() - ended > 0.9
        with socket.create_connection((host, int(port))) as client:
            coordinator, _ = server.accept()
            client.close()
            assert coordinator.recv(1) == b""
            coordinator.close()


def test_a_coordinator_that_does_not_listen_yet_is_a_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    host, _, port = coordinator_relay.relay(*address).rpartition(":")
    with socket.create_connection((host, int(port))) as client:
        assert client.recv(1) == b""


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += connection.recv(2**16)
    return data
