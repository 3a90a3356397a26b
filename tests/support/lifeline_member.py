"""A program, one process of several, that holds the lifeline of a run and does one thing meanwhile, without JAX.

    python -m tests.support.lifeline_member PROCESS COUNT CONNECTIONS WHAT [ARGUMENT]

CONNECTIONS: file descriptors of sockets, comma-separated: in process 0 those to processes 1, 2 and so on, elsewhere the
one to process 0.
"""

import ctypes
import itertools
import socket
import sys
import time
from pathlib import Path

from spanbert_jax import cli, signals
from spanbert_jax.errors import UserError
from spanbert_jax.training import lifeline, lifeline_hub
from spanbert_jax.training.channel import Channel, Peer


def step(pace: str) -> int:
    """Steps, as the training loop does."""
    with lifeline.stepping() as stop_at:
        for number in itertools.count(5):
            if stop_at(number):
                print(f"stopped before {number}", flush=True)
                return cli.STOPPED_EARLY
            print(f"began {number}", flush=True)
            time.sleep(float(pace))
    raise AssertionError


def compute() -> int:
    """A main thread in Python."""
    try:
        print("computing", flush=True)
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)
    return 0


def hang() -> int:
    """A main thread in C that no signal brings back, as one that waits for another process in XLA."""
    print("hanging", flush=True)
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    return int(library.pthread_mutex_lock(mutex))  # waits for itself


def fail() -> int:
    """A collective that breaks off before the lifeline knows of a loss."""
    print("failing", flush=True)
    raise RuntimeError("connection closed by peer")


def agree(*texts: str) -> int:
    """Exchanges texts; "-" stands for an empty one."""
    print([lifeline.first_text("" if text == "-" else text) for text in texts], flush=True)
    return 0


def mistake() -> int:
    raise UserError("a mistake")


def finish(until: str) -> int:
    print("finishing", flush=True)
    while not Path(until).exists():
        time.sleep(0.02)
    return 0


def main(process: int, count: int, connections: str, what: str, *arguments: str) -> int:
    signals.GRACE_SECONDS, lifeline_hub.END_SECONDS = 1, 2
    channels = [Channel(socket.socket(fileno=int(number))) for number in connections.split(",")]
    peers = {number: Peer(f"host/{number}", channel) for number, channel in enumerate(channels, process == 0)}
    lifeline.begin(process, count, f"host/{process}", peers)
    doing = {
        "step": step,
        "compute": compute,
        "hang": hang,
        "fail": fail,
        "mistake": mistake,
        "finish": finish,
        "agree": agree,
    }[what]
    return doing(*arguments)


if __name__ == "__main__":
    given = sys.argv[1:]
    cli.run(lambda: lifeline.ended(lambda: cli.status(lambda: main(int(given[0]), int(given[1]), *given[2:]))))
