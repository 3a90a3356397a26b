"""The client of serving.py, in a process of its own: sends embedding requests over loopback, and judges the answers.

Invariant: with an open loop, request i is due at begin + i / rate, whether or not earlier ones were answered, and its
latency counts from that moment. So a server that stalls cannot hide it by holding the client back. Every request that
is sent gets exactly one verdict.
"""

import asyncio
import base64
import collections
import itertools
import json
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.worker import Handler, Json

RIGHT, REFUSED, SWAPPED, LOST, FAILED = "right", "refused", "swapped", "lost", "failed"
_IDLE = 2.0  # seconds after which a connection is not used again: uvicorn closes idle ones after 5
_PATIENCE = 600.0  # seconds without an answer after which a request is lost


class Reply(NamedTuple):
    """A response. Status 0: the connection broke, or no answer came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Outcome(NamedTuple):
    """The verdict on one request."""

    verdict: str
    seconds: float  # from the moment at which the request was due
    pieces: int  # that the server computed


def hashed(text: str) -> np.ndarray:
    """The vector that the server of serving_fake.py has for a text: the four bytes of its CRC-32, float32 [4]."""
    return np.frombuffer(zlib.crc32(text.encode()).to_bytes(4, "little"), np.uint8).astype(np.float32)


def judged(reply: Reply, texts: Sequence[str], is_hashed: bool) -> tuple[str, int]:
    """(the verdict, the pieces). is_hashed: whether each vector must be the hash of its own text; otherwise an answer
    is right when it has one vector for each text."""
    if reply.status == 0:
        return LOST, 0
    if reply.status == 429 and reply.headers.get("retry-after", "").isdigit():
        return REFUSED, 0
    if reply.status != 200:
        return FAILED, 0
    answer = json.loads(reply.body)
    vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
    pieces = answer["usage"]["prompt_tokens"]
    if len(vectors) != len(texts):
        return LOST, pieces
    if is_hashed and not all(map(np.array_equal, vectors, map(hashed, texts))):
        return SWAPPED, pieces
    return RIGHT, pieces


class Client:
    """Connections to one server, which are kept open and used again."""

    def __init__(self, port: int, model: str):
        self._port, self._model = port, model
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def embed(self, texts: Sequence[str]) -> Reply:
        """The reply to POST /v1/embeddings in base64."""
        content = {"model": self._model, "input": list(texts), "encoding_format": "base64"}
        body = json.dumps(content).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        try:
            reader, writer = await self._connection()
        except OSError:
            return Reply(0, {}, b"")
        try:
            writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            reply = await asyncio.wait_for(_read(reader), _PATIENCE)
        except (OSError, EOFError, TimeoutError):
            writer.close()
            return Reply(0, {}, b"")
        self._idle.append((time.monotonic(), reader, writer))
        return reply

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < _IDLE and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        """Closes the connections."""
        for _, _, writer in self._idle:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Reply:
    """A response with a Content-Length, as the service sends them; raises EOFError where the connection ends."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(first.split()[1]), headers, body)


Texts = Callable[[int], Sequence[str]]  # of request i


async def open_loop(client: Client, texts: Texts, is_hashed: bool, rate: float, seconds: float) -> list[Outcome]:
    """Sends `rate` requests a second for so long, evenly, and waits for all answers."""
    begin = time.monotonic()

    async def send(number: int) -> Outcome:
        reply, due = await client.embed(texts(number)), begin + number / rate
        return _outcome(reply, texts(number), is_hashed, due)

    tasks = []
    for number in range(max(1, int(rate * seconds))):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(send(number)))
    return await asyncio.gather(*tasks)


async def closed_loop(client: Client, texts: Texts, is_hashed: bool, clients: int, requests: int) -> list[Outcome]:
    """Sends so many requests, each as soon as one of `clients` earlier ones has been answered: the most that a server
    does, and no measure of latency under load."""
    numbers = iter(range(requests))
    outcomes: list[Outcome] = []

    async def work() -> None:
        for number in numbers:
            due = time.monotonic()
            outcomes.append(_outcome(await client.embed(texts(number)), texts(number), is_hashed, due))

    await asyncio.gather(*(work() for _ in range(clients)))
    return outcomes


def _outcome(reply: Reply, texts: Sequence[str], is_hashed: bool, due: float) -> Outcome:
    seconds = time.monotonic() - due
    verdict, pieces = judged(reply, texts, is_hashed)
    return Outcome(verdict, seconds, pieces)


def summary(outcomes: Sequence[Outcome], seconds: float) -> Json:
    """The counts of verdicts, the latencies of right answers (sorted) and of refusals at most, and the speeds."""
    right = sorted(one.seconds for one in outcomes if one.verdict == RIGHT)
    return {
        "verdicts": dict(collections.Counter(one.verdict for one in outcomes)),
        "latencies": right,
        "slowest_refusal": max((one.seconds for one in outcomes if one.verdict == REFUSED), default=0.0),
        "pieces": sum(one.pieces for one in outcomes),
        "seconds": seconds,
    }


def percentile(latencies: Sequence[float], share: float) -> float:
    """The least latency that at least `share` of the requests did not exceed; NaN of none. It is a latency that
    occurred, which numpy.percentile calls "inverted_cdf". latencies: sorted."""
    if not latencies:
        return float("nan")
    return latencies[max(0, -int(-share * len(latencies) // 1) - 1)]


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: port; model; texts, a JSON file with the list of texts, or "" for texts whose answers are hashes."""
    given = json.loads(Path(spec["texts"]).read_text()) if spec["texts"] else []
    fresh = itertools.count()

    def run(request: Json) -> Json:
        """request: inputs, texts in a request; clients and requests, or rate and seconds."""
        inputs, base = request["inputs"], next(fresh)

        def texts(number: int) -> Sequence[str]:
            places = range(number * inputs, (number + 1) * inputs)
            return [given[place % len(given)] if given else f"{base} {place}" for place in places]

        async def work() -> list[Outcome]:
            client = Client(spec["port"], spec["model"])
            try:
                if "rate" in request:
                    return await open_loop(client, texts, not given, request["rate"], request["seconds"])
                return await closed_loop(client, texts, not given, request["clients"], request["requests"])
            finally:
                client.close()

        begun = time.monotonic()
        outcomes = asyncio.run(work())
        return summary(outcomes, time.monotonic() - begun)

    return {}, run
