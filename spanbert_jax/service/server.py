"""Runs the application: a socket, the warm-up, signals, and the end.

Invariant: after SIGTERM, SIGINT or SIGHUP no new request is taken, those in flight are answered within the time to
drain, and the process ends with status 0. A program that is being compiled then has GRACE_SECONDS. After a second
signal no request is waited for.
"""

import math
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn

from spanbert_jax import signals
from spanbert_jax.errors import UserError
from spanbert_jax.service.app import application
from spanbert_jax.service.problems import where
from spanbert_jax.service.service import Service


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError where the address cannot be had."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: expected a number from 0 to {2**16 - 1}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); give another --port") from error


class _Server(uvicorn.Server):
    """A server that refuses new requests as soon as it is told to end."""

    def __init__(self, service: Service, config: uvicorn.Config):
        super().__init__(config)
        self._service = service
        self._asked = math.inf  # when the first signal came

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to shut down. uvicorn's own method would raise the signal again at the end."""
        now = time.monotonic()
        self._service.engine.drain(0)
        self.force_exit = now - self._asked > signals.SAME_SECONDS
        self._asked = min(self._asked, now)
        self.should_exit = True


def run(service: Service, listening: socket.socket, everything: bool, drain_seconds: float) -> int:
    """Serves until a signal comes; returns the exit status, 1 where a program cannot be compiled.

    everything: whether every program is compiled before requests are taken; otherwise the smallest ones are.
    """
    config = uvicorn.Config(
        application(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    server, failures = _Server(service, config), []

    def failed(error: Exception) -> None:
        failures.append(error)
        told = str(error) if isinstance(error, UserError) else f"a program cannot be compiled\n{where(error)}"
        print(f"error: {told}", file=sys.stderr, flush=True)
        server.should_exit = True

    def warm_up() -> None:
        begun = time.monotonic()
        try:
            service.warm_up(everything, failed)
        except Exception as error:
            failed(error)
        else:
            if service.engine.is_ready:
                print(f"Ready after {time.monotonic() - begun:.1f} s", flush=True)

    thread = threading.Thread(target=warm_up, name="warm up", daemon=True)
    thread.start()
    try:
        with signals.patience():
            if signals.handled() and signal.SIGHUP in signals.not_ignored():
                signal.signal(signal.SIGHUP, server.handle_exit)  # uvicorn sees to the other two
            server.run(sockets=[listening])
    finally:
        given_up = threading.Timer(signals.GRACE_SECONDS, signals.leave, [1 if failures else 0])
        given_up.daemon = True
        given_up.start()
        service.close()
        thread.join()
        given_up.cancel()
    return 1 if failures else 0
