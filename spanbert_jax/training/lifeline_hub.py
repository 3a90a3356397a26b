"""The side of process 0 in the line between the processes of a run (training/lifeline.py): hears all, and decides.

Invariant: every process is told the same. A process that is lost, or that ends too early, ends all; a request to stop
from any process stops all at one step, the first that no process has begun, or at once where no step is done yet.
"""

import json
import selectors
import threading
import time
from collections.abc import Mapping

from spanbert_jax.signals import STOPPED_EARLY as STOPPED
from spanbert_jax.training.channel import Peer

END_SECONDS = 30  # in which a process may end by itself, after another one has ended too early
_AGAIN = 0.5  # seconds until processes that are not all in the loop, nor all outside, are asked again


class Hub(threading.Thread):
    """In process 0: hears every process, and tells them all to stop or to end."""

    def __init__(self, peers: Mapping[int, Peer]):
        super().__init__(daemon=True, name="lifeline hub")
        self.others_done = threading.Event()  # each has ended by itself, or is lost
        self.others_gone = threading.Event()
        self._peers = peers
        self._connected = set(peers)
        self._byes: dict[int, int] = {}  # the statuses of processes that have ended by themselves
        self._where: dict[int, tuple[int, int] | None] | None = None  # answers so far; None: nobody is asked
        self._ask_again: float | None = None
        self._decided = False  # the processes know where to stop
        self._texts: dict[int, str] = {}  # of the processes that have come to an exchange, as JSON

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                selector.register(peer.channel, selectors.EVENT_READ, number)
            while self._connected:
                wait = None if self._ask_again is None else max(self._ask_again - time.monotonic(), 0)
                for key, _ in selector.select(wait):
                    lines = self._peers[key.data].channel.receive()
                    for line in lines or ():
                        self._hear(key.data, *line.split(" ", 1))
                    if lines is None:
                        selector.unregister(key.fileobj)
                        self._lose(key.data)
                if self._ask_again is not None and time.monotonic() >= self._ask_again:
                    self._ask()

    def _tell(self, line: str) -> None:
        for number in self._connected:
            self._peers[number].channel.send(line)

    def _place(self, number: int) -> str:
        return f"process {number} of {len(self._peers)} ({self._peers[number].name})"

    def _hear(self, number: int, word: str, details: str = "") -> None:
        match word:
            case "stop" if not self._decided and self._where is None and self._ask_again is None:
                self._ask()
            case "missed":
                self._decided, self._ask_again = False, time.monotonic() + _AGAIN
            case "quit":
                why = f"{self._place(number)} was asked twice to stop; every process ends; the same command goes on"
                self._tell(f"end {STOPPED} 0 {why}")
            case "at" if self._where is not None:
                step, _, done = details.partition(" ")
                self._where[number] = (int(step), int(done)) if step else None
                self._decide()
            case "text":
                self._texts[number] = details
                if len(self._texts) == len(self._peers):
                    self._exchange()
            case "bye":
                self._leave(number, int(details))

    def _exchange(self) -> None:
        """Tells the processes, all of which wait for it, the first text that is not empty."""
        first = next((n for n, text in sorted(self._texts.items()) if json.loads(text)), 0)
        self._tell(f"text {first} {self._texts[first]}")
        self._texts = {}

    def _ask(self) -> None:
        self._where, self._ask_again = {}, None
        self._tell("where")

    def _decide(self) -> None:
        """Tells the processes where to stop, once every process has said where it is."""
        if self._where is None or self._connected - self._byes.keys() - self._where.keys():
            return
        places = list(self._where.values())
        begun = [place for place in places if place]
        self._where, self._decided = None, True
        if self._byes:  # the run is done, and ends by itself
            self._tell("on")
        elif all(done == 0 for _, done in begun):
            self._tell("stop")
        elif len(begun) == len(places):
            self._tell(f"until {1 + max(step for step, _ in begun)}")
        else:  # some processes enter the loop, or leave it, a little before the others
            self._tell("on")
            self._decided, self._ask_again = False, time.monotonic() + _AGAIN

    def _leave(self, number: int, status: int) -> None:
        self._byes[number] = status
        self._look_round()
        if status == STOPPED:
            why = f"{self._place(number)} was stopped; every process ends; the same command goes on"
            self._tell(f"end {STOPPED} {END_SECONDS} {why}")
        elif status:
            why = f"{self._place(number)} ended with an error; that process prints the reason"
            self._tell(f"end {status} {END_SECONDS} error: {why}")
        self._decide()

    def _look_round(self) -> None:
        """Sets the events."""
        if self._connected <= {0}:
            self.others_gone.set()
        if self._connected <= {0, *self._byes}:
            self.others_done.set()

    def _lose(self, number: int) -> None:
        self._connected.discard(number)
        self._look_round()
        if number not in self._byes:
            why = f"{self._place(number)} was lost; every process ends; the same command goes on"
            self._tell(f"end {STOPPED} 0 {why}")
        self._decide()
