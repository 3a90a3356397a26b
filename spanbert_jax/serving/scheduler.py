"""Which rows wait for the device, which of them come next, and which requests are refused.

Invariant: a request is admitted whole or not at all, and the pieces and inputs in flight never exceed the limits. A
batch has a shape that its model has compiled, and rows of live requests alone: those of expired and cancelled ones are
dropped before they cost anything. Nothing here waits, computes or reads a clock; the caller holds a lock and gives the
time.
"""

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np

from spanbert_jax.batches.shapes import Shape

Row = Mapping[str, Any]  # a row as `tasks.rows` has it; the list "input_ids" has its pieces
Output = dict[str, np.ndarray]  # of one row

_MEASURED = 64  # batches, the last ones, from which the speed is measured
_UNKNOWN = 1.0  # seconds after which to come again while no batch has been measured


class Refused(Exception):
    """The engine does not answer a request, though the request may be right. The message says why."""


class TooLarge(Refused):
    """The request is larger than the limits, and will be refused however little else there is."""


class Overloaded(Refused):
    """Too much is waiting already."""

    def __init__(self, message: str, seconds: float):
        """seconds: after which there is room, as far as measured."""
        super().__init__(message)
        self.seconds = seconds


class NotServing(Refused):
    """The programs are not compiled yet, or the engine is shutting down."""


class Expired(Refused):
    """The request's deadline passed before its last row was computed."""


class Model(Protocol):
    """A computation that the engine serves. All methods but `prepare` may be called while others run in other threads.

    Attributes:
      name: in metrics.
      is_first: whether the engine is ready only when the model is, and compiles its programs before those of others.
      table: every shape of batch that there will be.
      ready: the shapes of the table whose programs are compiled. It grows while the engine runs, and has every length
        from the time on that it has the longest one.
    """

    name: str
    is_first: bool
    table: Sequence[Shape]
    ready: Sequence[Shape]

    def prepare(self, shape: Shape) -> None:
        """Compiles the program of a shape, and puts the shape into `ready`."""

    def rows(self, items: Sequence[Any]) -> list[list[Row]]:
        """The rows of each item. Raises UserError, naming the item, where it cannot be read."""

    def start(self, rows: Sequence[Row], shape: Shape) -> Any:
        """Begins to compute at most shape.rows rows of at most shape.length pieces, and does not wait for the end."""

    def finish(self, started: Any) -> dict[str, np.ndarray]:
        """Waits for the result of `start`: arrays [shape.rows, ...] in the rows' order."""

    def answer(self, items: Sequence[Any], rows: list[list[Row]], outputs: list[list[Output]]) -> list[Any]:
        """One answer for each item. rows: of `rows`. outputs: of each of these rows."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that the engine takes. Pieces are counted with the padding: rows x length."""

    batch_pieces: int = 8192  # of one batch
    queued_pieces: int = 262_144  # in flight: waiting, or on the device
    queued_inputs: int = 4096  # in flight, those included that are being tokenised


@dataclasses.dataclass(eq=False)
class Request:
    """Items that are answered together, and their progress. Times are those of the engine's clock, in seconds."""

    model: Model
    items: Sequence[Any]
    deadline: float
    arrived: float = 0.0
    admitted: float = 0.0
    started: float = 0.0  # the last batch
    finished: float = 0.0  # the last batch
    future: "Future[Any]" = dataclasses.field(default_factory=Future)
    rows: list[list[Row]] = dataclasses.field(default_factory=list)
    outputs: list[list[Output]] = dataclasses.field(default_factory=list)  # filled in as batches finish
    missing: int = 0  # rows whose outputs are missing
    inputs: int = 0  # that are counted as in flight
    pieces: int = 0  # that are counted as in flight
    waiting: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)  # length -> rows queued
    is_over: bool = False  # answered, failed or dropped


@dataclasses.dataclass(eq=False)
class Entry:
    """One row of a request."""

    request: Request
    item: int
    number: int  # of the row among the item's
    length: int  # with the padding of the shape that it waits for

    @property
    def row(self) -> Row:
        """The row itself."""
        return self.request.rows[self.item][self.number]


@dataclasses.dataclass(eq=False)
class Batch:
    """Rows that are computed together."""

    model: Model
    shape: Shape
    entries: list[Entry]
    started: float = 0.0


class _Queue:
    """Rows of one model and one length, the earliest deadline first, then in the order of their arrival."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Entry]] = []
        self.live = 0

    def head(self) -> Request | None:
        """The request of the first live row."""
        while self.heap and self.heap[0][2].request.is_over:
            heapq.heappop(self.heap)
        return self.heap[0][2].request if self.heap else None

    def take(self, count: int) -> list[Entry]:
        """The first `count` live rows, which leave the queue."""
        taken: list[Entry] = []
        while len(taken) < count and self.head():
            taken.append(heapq.heappop(self.heap)[2])
        self.live -= len(taken)
        return taken


class Scheduler:
    """The queues of all models, one for each length."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.inputs = self.pieces = 0  # in flight
        self.is_draining = False
        self._queues: dict[tuple[int, int], _Queue] = {}  # (id of the model, length) -> rows
        self._models: dict[int, Model] = {}
        self._requests: dict[Request, None] = {}  # in flight
        self._numbers = itertools.count()
        self._measured: collections.deque[tuple[int, float]] = collections.deque(maxlen=_MEASURED)

    def reserve(self, request: Request) -> None:
        """Counts the request's inputs, before it is tokenised; raises `Refused` where they are too many."""
        if self.is_draining:
            raise NotServing("the server is shutting down; send the request to another one")
        if max(self._lengths(request.model.ready), default=0) < max(self._lengths(request.model.table)):
            raise NotServing(f"{request.model.name} is being compiled; come again in some seconds")
        count, most = len(request.items), self.limits.queued_inputs
        if count > most:
            raise TooLarge(f"the request has {count:,} inputs; {most:,} are the most")
        if self.inputs + count > most:
            raise Overloaded(f"{self.inputs:,} inputs are waiting; {most:,} are the most", self.wait())
        request.inputs = count
        self.inputs += count
        self._requests[request] = None

    def admit(self, request: Request, rows: list[list[Row]], now: float) -> None:
        """Queues the rows of every item of a reserved request, unless it has been dropped. Raises `Refused` where their
        pieces are too many."""
        if request.is_over:
            return
        lengths = self._lengths(request.model.ready)
        places = np.searchsorted(lengths, [len(row["input_ids"]) for of in rows for row in of])
        if len(places) and places.max() == len(lengths):
            raise TooLarge(f"a row has more than {lengths[-1]} pieces, the most that {request.model.name} takes")
        padded = [lengths[place] for place in places]
        pieces, most = sum(padded), self.limits.queued_pieces
        if pieces > most:
            raise TooLarge(f"the request has {pieces:,} pieces with their padding; {most:,} are the most")
        if self.pieces + pieces > most:
            raise Overloaded(f"{self.pieces:,} pieces are waiting; {most:,} are the most", self.wait())
        self.pieces += pieces
        request.pieces, request.missing, request.rows = pieces, len(padded), rows
        request.admitted = request.started = request.finished = now
        request.outputs = [[{} for _ in of] for of in rows]
        request.waiting.update(padded)
        model = id(request.model)
        self._models[model] = request.model
        length = iter(padded)
        for item, of in enumerate(rows):
            for number in range(len(of)):
                entry = Entry(request, item, number, next(length))
                queue = self._queues.setdefault((model, entry.length), _Queue())
                heapq.heappush(queue.heap, (request.deadline, next(self._numbers), entry))
                queue.live += 1

    def drop(self, request: Request) -> None:
        """Takes a request out of the queues and the counts, whether it was answered, failed, or is not wanted any more.
        Its rows that are on the device are ignored when they come back."""
        if request.is_over:
            return
        request.is_over = True
        self._requests.pop(request, None)
        for length, count in request.waiting.items():
            if count:
                self._queues[id(request.model), length].live -= count
        request.waiting.clear()
        self.inputs -= request.inputs
        self.pieces -= request.pieces
        request.inputs = request.pieces = 0

    def in_flight(self) -> list[Request]:
        """The requests that are neither answered nor dropped, in the order of their arrival."""
        return list(self._requests)

    def next_batch(self, now: float) -> tuple[Batch | None, list[Request]]:
        """(the batch that should be computed now, or None where nothing waits; requests that have expired, which are
        dropped).

        The row whose deadline comes first decides the model and the length. So every row is taken before those that
        arrive later with the same time to live, and none starves. The batch has as many rows as the largest shape
        within the limit that waiting rows fill. Nothing waits for more rows to come.
        """
        expired: list[Request] = []
        chosen: tuple[float, int, int] | None = None
        for (model, length), queue in self._queues.items():
            while (head := queue.head()) and head.deadline <= now:
                self.drop(head)
                expired.append(head)
            if head and (chosen is None or queue.heap[0][0] < chosen[0]):
                chosen = (queue.heap[0][0], model, length)
        if chosen is None:
            return None, expired
        _, model, length = chosen
        queue = self._queues[model, length]
        shape = self._shape(self._models[model], length, queue.live)
        entries = queue.take(shape.rows)
        for entry in entries:
            entry.request.waiting[length] -= 1
        return Batch(self._models[model], shape, entries), expired

    @staticmethod
    def _lengths(shapes: Sequence[Shape]) -> list[int]:
        return sorted({shape.length for shape in shapes})

    def _shape(self, model: Model, length: int, waiting: int) -> Shape:
        """The largest shape of the length that `waiting` rows fill, or else the smallest there is."""
        shapes = sorted(shape for shape in model.ready if shape.length == length)
        within = [s for s in shapes if s.rows <= waiting and s.rows * s.length <= self.limits.batch_pieces]
        return within[-1] if within else shapes[0]

    def done(self, batch: Batch, seconds: float) -> None:
        """Counts a batch as computed. seconds: how long the device was busy with it."""
        self._measured.append((batch.shape.rows * batch.shape.length, seconds))
        for entry in batch.entries:
            if not entry.request.is_over:
                entry.request.missing -= 1
                entry.request.pieces -= entry.length
                self.pieces -= entry.length

    def wait(self) -> float:
        """Seconds in which the device computes all pieces in flight, by the speed of the last batches."""
        pieces, seconds = (sum(column) for column in zip(*self._measured, strict=True)) if self._measured else (0, 0.0)
        return self.pieces * seconds / pieces if pieces else _UNKNOWN
