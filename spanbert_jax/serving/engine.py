"""Computes rows with models whose shapes of batch are fixed: all rows at hand at once, or those of many requests.

Invariant: a row's outputs are the same by both ways. Every request that is submitted to an `Engine` ends exactly once,
with its own answers or with one error. A failing batch fails the requests whose rows it has, and no other. No program
is compiled on the way of a request.

`compute_all` plans batches over all rows, and compiles the shapes that the batches have. An `Engine` is threads around
a `Scheduler`: a tokenising thread makes the rows of a request, the device thread starts their batches, the finishing
thread waits for the results, makes answers of them and ends the request. By both ways the next batch is started while
the last one is being computed, so two are in flight.
"""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from spanbert_jax.batches.shapes import Shape, plan_batches
from spanbert_jax.errors import UserError
from spanbert_jax.serving.counters import Counters
from spanbert_jax.serving.predictor import one_ahead
from spanbert_jax.serving.scheduler import (
    Batch,
    Expired,
    Limits,
    Model,
    NotServing,
    Output,
    Refused,
    Request,
    Row,
    Scheduler,
)
from spanbert_jax.training.progress import Show, quiet

NOT_FINITE = "the model's numbers are not finite"
_IN_FLIGHT = 2  # batches: one is computed, and one waits on the device


class ModelFailed(Exception):
    """The model raised an exception, which is the cause, or gave numbers that are not finite."""


class Answered(NamedTuple):
    """The answers to a request."""

    answers: list[Any]  # one for each item
    pieces: int  # of all rows, without padding
    cut: list[int]  # the items that lost text because they were too long
    seconds: dict[str, float]  # of the phases tokenize, queue, device and post, which follow each other


def compute_all(model: Model, rows: Sequence[Sequence[Row]], show: Show = quiet) -> list[list[Output]]:
    """The outputs of the rows of each item, in their order. show: takes the fraction that is done.

    Raises UserError where a number is not finite, and ValueError where a row is longer than every shape.
    """
    flat = [row for of in rows for row in of]
    plan = plan_batches(np.array([len(row["input_ids"]) for row in flat], np.int64), model.table)
    batches = ((numbers[numbers >= 0].tolist(), shape) for numbers, shape in plan)
    started = ((numbers, model.start([flat[number] for number in numbers], shape)) for numbers, shape in batches)
    found: list[Output] = [{}] * len(flat)
    done = 0
    for numbers, batch in one_ahead(started):
        outputs = model.finish(batch)
        if not _finite_rows(outputs)[: len(numbers)].all():
            raise UserError(
                f"{NOT_FINITE}: the weights are damaged, or too large for the dtype in which they are computed"
            )
        for place, number in enumerate(numbers):
            found[number] = {name: values[place] for name, values in outputs.items()}
        done += len(numbers)
        show(done / len(flat))
    ordered = iter(found)
    return [[next(ordered) for _ in of] for of in rows]


def cut_items(rows: Sequence[Sequence[Row]]) -> list[int]:
    """The items that have a row which lacks some of its text. rows: of each item."""
    return [item for item, of in enumerate(rows) if any(row.get("cut") for row in of)]


def _finite_rows(outputs: Output) -> np.ndarray:
    """bool [rows]: whether all numbers of a row are finite. outputs: arrays [rows, ...]."""
    is_finite = np.ones(len(next(iter(outputs.values()))), bool)
    for values in outputs.values():
        if np.issubdtype(values.dtype, np.floating):
            is_finite &= np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return is_finite


def _raised(error: Exception) -> None:
    raise error


class Engine:
    """Serves models on one device. `close` ends its threads."""

    def __init__(
        self,
        models: Sequence[Model],
        limits: Limits,
        workers: int = 2,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """workers: threads that tokenise. Raises UserError where a row of a model exceeds `limits.batch_pieces`."""
        for model in models:
            longest = max(shape.length for shape in model.table)
            least = min(shape.rows * shape.length for shape in model.table if shape.length == longest)
            if least > limits.batch_pieces:
                raise UserError(
                    f"--max-batch-pieces is {limits.batch_pieces:,}, and the smallest batch of {model.name} with rows "
                    f"of {longest:,} pieces has {least:,}; give that many at least"
                )
        self.models, self.counters, self._clock = models, counters or Counters(), clock
        self._limits = limits
        self._scheduler = Scheduler(limits)
        self._changed = threading.Condition()  # over the scheduler and everything below
        self._is_closed = False
        self._awaits_everything = False  # whether the engine is ready only after every program
        self._last_finished = 0.0
        self._in_flight = threading.Semaphore(_IN_FLIGHT)
        self._started: queue.SimpleQueue[tuple[Batch, Any] | None] = queue.SimpleQueue()
        self._tokenisers = ThreadPoolExecutor(workers, "tokenise")
        self._threads = [
            threading.Thread(target=self._run_device, name="device", daemon=True),
            threading.Thread(target=self._run_finishing, name="finish", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def warm_up(
        self,
        everything: bool,
        afterwards: Callable[[], None] = lambda: None,
        failed: Callable[[Exception], None] = _raised,
    ) -> None:
        """Compiles the programs that requests need.

        The smallest program of every length of the first models is compiled before the call returns, the shortest
        length first. The others follow in a thread, the smallest ones before the larger ones. With `everything` the
        others are compiled before the call returns too, and the engine is ready only then. afterwards: is called after
        all of them. failed: takes the exception where a program cannot be compiled in the thread; before the call
        returns, the exception is raised.
        """
        self._awaits_everything = everything
        smallest: list[tuple[Model, Shape]] = []
        larger: list[tuple[Model, Shape]] = []
        for model in sorted(self.models, key=lambda model: not model.is_first):
            shapes = sorted(model.table, key=lambda shape: (shape.length, shape.rows))
            for _, (least, *others) in itertools.groupby(shapes, key=lambda shape: shape.length):
                smallest.append((model, least))
                larger += [(model, one) for one in others if one.rows * one.length <= self._limits.batch_pieces]
        larger.sort(key=lambda one: one[1].rows)
        rest = [one for one in smallest if not one[0].is_first] + larger

        def compile_rest() -> None:
            self._prepare(rest)
            if not self._is_closed:
                afterwards()

        def compile_beside() -> None:
            try:
                compile_rest()
            except Exception as error:
                failed(error)

        self._prepare([one for one in smallest if one[0].is_first])
        if everything:
            compile_rest()
            self._awaits_everything = False
        else:
            self._threads.append(threading.Thread(target=compile_beside, name="warm up", daemon=True))
            self._threads[-1].start()

    def _prepare(self, shapes: Sequence[tuple[Model, Shape]]) -> None:
        for model, shape in shapes:
            if self._is_closed:
                return
            model.prepare(shape)

    @property
    def is_draining(self) -> bool:
        """Whether the engine takes no more requests."""
        return self._scheduler.is_draining

    @property
    def is_ready(self) -> bool:
        """Whether the programs that `warm_up` waits for are compiled, and requests to the first models are taken."""
        first = [model for model in self.models if model.is_first]
        longest = [(max(s.length for s in model.table), {s.length for s in model.ready}) for model in first]
        waits = self.is_draining or self._awaits_everything
        return not waits and all(length in ready for length, ready in longest)

    def submit(self, model: Model, items: Sequence[Any], seconds: float) -> "Future[Answered]":
        """The answers to the items, in their order, within so many seconds.

        Cancelling the future drops the request. Raises `Refused` where the inputs are too many, or the engine is not
        ready. The future raises `Refused` where there are too many pieces or the time is over, UserError where an item
        cannot be read, and `ModelFailed`.
        """
        now = self._clock()
        request = Request(model, items, now + seconds, now)
        try:
            with self._changed:
                self._scheduler.reserve(request)
        except Refused as error:
            self._count_refusal(error)
            raise
        request.future.add_done_callback(lambda future: self._cancel(request) if future.cancelled() else None)
        self._tokenisers.submit(self._tokenise, request)
        return request.future

    def drain(self, seconds: float) -> bool:
        """Takes no more requests, and waits until those in flight are answered; False where they take longer."""
        with self._changed:
            self._scheduler.is_draining = True
            return self._changed.wait_for(lambda: self._scheduler.inputs == 0, seconds)

    def close(self) -> None:
        """Fails the requests in flight and ends the threads. A program that is being compiled is waited for."""
        with self._changed:
            self._scheduler.is_draining = self._is_closed = True
            waiting = self._scheduler.in_flight()
            self._changed.notify_all()
        for request in waiting:
            self._end(request, NotServing("the server was shut down before the request was answered"))
        self._tokenisers.shutdown()
        for thread in self._threads:
            thread.join()

    def metrics(self) -> str:
        """The metrics in Prometheus's text format."""
        with self._changed:
            self.counters.set("spanbert_queue_inputs", self._scheduler.inputs)
            self.counters.set("spanbert_queue_pieces", self._scheduler.pieces)
        for model in self.models:
            self.counters.set("spanbert_compiled_shapes", len(model.ready), model=model.name)
        return self.counters.text()

    def _tokenise(self, request: Request) -> None:
        try:
            if request.is_over:
                return
            rows = request.model.rows(request.items)
            with self._changed:
                self._scheduler.admit(request, rows, self._clock())
                # Asked under the lock: once it is free, other threads may compute the rows and answer the request.
                has_no_rows = not request.missing
                self._changed.notify_all()
            if has_no_rows:
                self._answer(request)
        except (Refused, UserError) as error:
            self._end(request, error)
        except Exception as error:
            self._end(request, _failed(error))

    def _run_device(self) -> None:
        while True:
            self._in_flight.acquire()
            batch = self._next_batch()
            if batch is None:
                self._started.put(None)
                return
            try:
                started = batch.model.start([entry.row for entry in batch.entries], batch.shape)
            except Exception as error:
                self._fail_batch(batch, error)
                self._in_flight.release()
            else:
                self._started.put((batch, started))

    def _next_batch(self) -> Batch | None:
        """Waits for rows; None where the engine was closed."""
        while True:
            with self._changed:
                batch, expired = self._scheduler.next_batch(self._clock())
                if batch is None and not expired:
                    if self._is_closed:
                        return None
                    self._changed.wait()
            for request in expired:
                self._end(request, Expired("the deadline passed while the request was waiting"))
            if batch:
                batch.started = self._clock()
                return batch

    def _run_finishing(self) -> None:
        while (item := self._started.get()) is not None:
            batch, started = item
            try:
                outputs = batch.model.finish(started)
            except Exception as error:
                self._fail_batch(batch, error)
                continue
            finally:
                self._in_flight.release()
            for request in self._finished(batch, outputs):
                self._answer(request)

    def _finished(self, batch: Batch, outputs: dict[str, np.ndarray]) -> list[Request]:
        """The requests of which this batch computed the last row."""
        is_finite = _finite_rows(outputs)
        now = self._clock()
        broken = {entry.request: None for entry, fine in zip(batch.entries, is_finite, strict=False) if not fine}
        for request in broken:
            self._end(request, ModelFailed(NOT_FINITE))
        with self._changed:
            self._count_batch(batch, now)
            for place, entry in enumerate(batch.entries):
                request = entry.request
                request.outputs[entry.item][entry.number] = {name: values[place] for name, values in outputs.items()}
                request.started, request.finished = batch.started, now
            of_batch = dict.fromkeys(entry.request for entry in batch.entries)
            return [request for request in of_batch if not request.is_over and not request.missing]

    def _count_batch(self, batch: Batch, now: float) -> None:
        busy = now - max(batch.started, self._last_finished)
        self._last_finished = now
        self._scheduler.done(batch, busy)
        real = sum(len(entry.row["input_ids"]) for entry in batch.entries)
        padded = batch.shape.rows * batch.shape.length
        self.counters.observe("spanbert_batch_rows", batch.shape.rows, model=batch.model.name)
        self.counters.add("spanbert_batch_pieces_total", real, kind="real", model=batch.model.name)
        self.counters.add("spanbert_batch_pieces_total", padded, kind="padded", model=batch.model.name)
        self.counters.add("spanbert_device_busy_seconds_total", busy)

    def _answer(self, request: Request) -> None:
        if request.is_over:
            return
        try:
            answers = request.model.answer(request.items, request.rows, request.outputs)
        except Exception as error:
            self._end(request, error if isinstance(error, UserError | ModelFailed) else _failed(error))
            return
        pieces = [sum(len(row["input_ids"]) for row in of) for of in request.rows]
        cut = cut_items(request.rows)
        times = [request.arrived, request.admitted, request.started, request.finished, self._clock()]
        phases = ("tokenize", "queue", "device", "post")
        spent = dict(zip(phases, (after - before for before, after in itertools.pairwise(times)), strict=True))
        name = request.model.name
        for phase, seconds in (*spent.items(), ("total", times[-1] - times[0])):
            self.counters.observe("spanbert_request_seconds", seconds, model=name, phase=phase)
        for count in pieces:
            self.counters.observe("spanbert_input_pieces", count, model=name)
        self.counters.add("spanbert_truncated_total", len(cut), model=name)
        self._end(request, Answered(answers, sum(pieces), cut, spent))

    def _fail_batch(self, batch: Batch, error: Exception) -> None:
        for request in dict.fromkeys(entry.request for entry in batch.entries):
            self._end(request, _failed(error))

    def _end(self, request: Request, result: Answered | Exception) -> None:
        """Gives a request its result, unless it has ended already."""
        self._drop(request)
        with contextlib.suppress(InvalidStateError):
            if isinstance(result, Exception):
                request.future.set_exception(result)
                self._count_refusal(result)
            else:
                request.future.set_result(result)

    def _cancel(self, request: Request) -> None:
        self._drop(request)
        self.counters.add("spanbert_rejected_total", reason="Cancelled")

    def _drop(self, request: Request) -> None:
        with self._changed:
            self._scheduler.drop(request)
            self._changed.notify_all()

    def _count_refusal(self, error: Exception) -> None:
        self.counters.add("spanbert_rejected_total", reason=type(error).__name__)


def _failed(error: Exception) -> ModelFailed:
    failed = ModelFailed(f"the model failed: {type(error).__name__}")
    failed.__cause__ = error
    return failed
