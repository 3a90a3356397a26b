"""The engine: every request ends once, with its own answers or one error; failures stay with their own requests."""

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from spanbert_jax.batches.shapes import Shape, plan_batches
from spanbert_jax.errors import UserError
from spanbert_jax.serving.engine import Answered, Engine, ModelFailed, compute_all, cut_items
from spanbert_jax.serving.scheduler import Expired, Limits, NotServing, Overloaded
from tests.support import fake_model
from tests.support.fake_model import TABLE, FakeModel, value

LIMITS = Limits(batch_pieces=64, queued_pieces=4096, queued_inputs=256)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(model: FakeModel, clock: Clock) -> Iterator[Engine]:
    before = set(threading.enumerate())
    made = Engine([model], LIMITS, clock=clock)
    yield made
    model.gate.set()
    made.close()
    assert set(threading.enumerate()) <= before


BAD = (fake_model.UNREADABLE, fake_model.FAILS_AT_START, fake_model.FAILS_AT_END, fake_model.NOT_FINITE)
IDS = st.one_of(st.integers(0, 99), st.integers(0, 99), st.sampled_from((*BAD, fake_model.NO_ANSWER)))
ROWS = st.lists(st.lists(IDS, min_size=1, max_size=16), min_size=1, max_size=2)
REQUESTS = st.lists(st.lists(ROWS, min_size=1, max_size=5), min_size=1, max_size=25)


@seed(1)
@settings(max_examples=40, deadline=None, database=None)
@given(REQUESTS)
def test_every_request_gets_its_own_values_or_its_own_error(requests: list[list[list[list[int]]]]) -> None:
    model = FakeModel()
    engine = Engine([model], LIMITS)
    try:
        futures = [engine.submit(model, items, 60) for items in requests]
        for items, future in zip(requests, futures, strict=True):
            ids = {id for item in items for row in item for id in row}
            error = future.exception(timeout=30)
            if error is None:
                assert not ids & {*BAD, fake_model.NO_ANSWER}
                assert future.result().answers == [[value(row) for row in item] for item in items]
                assert future.result().pieces == sum(len(row) for item in items for row in item)
            elif fake_model.UNREADABLE in ids:
                assert isinstance(error, UserError)
            else:  # a batch that fails takes every request with a row in it along, and none else
                assert isinstance(error, ModelFailed)
        assert engine.drain(5)
        assert set(model.batches) <= set(TABLE)
        assert all(shape.rows * shape.length <= LIMITS.batch_pieces for shape in model.batches)
    finally:
        engine.close()


@seed(2)
@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20), max_size=3), max_size=40))
def test_rows_at_hand_are_each_computed_once_in_batches_that_are_planned_over_all(items: list[list[list[int]]]) -> None:
    cut = [[ids[:16] for ids in item] for item in items]
    model, shown = FakeModel(ready=TABLE), list[float]()
    rows = model.rows(items)
    assert cut_items(rows) == [number for number, item in enumerate(items) if item != cut[number]]
    rows = model.rows(cut)
    outputs = compute_all(model, rows, shown.append)
    assert model.answer(cut, rows, outputs) == [[value(ids) for ids in item] for item in cut]
    lengths = np.array([len(ids) for item in cut for ids in item], int)
    assert model.batches == [shape for _, shape in plan_batches(lengths, TABLE)]
    assert shown == sorted(shown) and shown[-1:] == [1.0] * (len(lengths) > 0)


def test_the_next_batch_of_rows_at_hand_is_started_before_the_last_one_is_fetched(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("start", "finish"):
        method = getattr(model, name)
        monkeypatch.setattr(model, name, lambda *of, name=name, method=method: done.append(name) or method(*of))
    compute_all(model, model.rows([[[number] * 16] for number in range(20)]))
    assert done == ["start", "start", "finish", "start", "finish", "finish"]


def test_rows_at_hand_whose_numbers_are_not_finite_are_refused_in_one_line(model: FakeModel) -> None:
    with pytest.raises(UserError, match=r"^the model's numbers are not finite: the weights are damaged, or too large"):
        compute_all(model, model.rows([[[1], [fake_model.NOT_FINITE]]]))
    with pytest.raises(ValueError, match="a row has 17 pieces"):
        compute_all(model, model.rows([[[1] * 17]]))


@pytest.mark.parametrize("bad", [*BAD, fake_model.NO_ANSWER])
def test_a_failure_is_of_its_own_request_and_the_engine_goes_on(engine: Engine, model: FakeModel, bad: int) -> None:
    with pytest.raises(UserError if bad == fake_model.UNREADABLE else ModelFailed) as failed:
        engine.submit(model, [[[1, bad]]], 60).result(30)
    if bad == fake_model.NOT_FINITE:
        assert "not finite" in str(failed.value)
    elif bad != fake_model.UNREADABLE:
        assert isinstance(failed.value.__cause__, ValueError | KeyError)
    assert engine.submit(model, [[[1, 2]]], 60).result(30).answers == [[value([1, 2])]]
    assert engine.drain(5)


def test_numbers_that_are_not_finite_fail_one_request_of_a_batch(engine: Engine, model: FakeModel) -> None:
    good, bad = held_together(engine, model, [[[1]]], [[[fake_model.NOT_FINITE]]])
    assert good.result(30).answers == [[value([1])]]
    with pytest.raises(ModelFailed, match="not finite"):
        bad.result(30)


def held_together(engine: Engine, model: FakeModel, *requests: Any) -> list[Any]:
    """The futures of requests that all wait until the device is free."""
    model.gate.clear()
    first = [hold(engine, model) for _ in range(2)]
    futures = [engine.submit(model, items, 60) for items in requests]
    until(lambda: queued(engine) == 4 * (2 + len(requests)))
    model.gate.set()
    assert all(future.result(30) for future in first)
    return futures


def hold(engine: Engine, model: FakeModel) -> Any:
    """A request whose batch has begun."""
    future = engine.submit(model, [[[0]]], 60)
    assert model.begun.acquire(timeout=30)
    return future


def queued(engine: Engine) -> float:
    """Pieces in flight."""
    engine.metrics()
    return engine.counters.value("spanbert_queue_pieces")


def until(holds: Any) -> None:
    done = threading.Event()
    for _ in range(3000):
        if holds():
            return
        done.wait(0.01)
    raise AssertionError("does not come to hold")


def test_at_most_two_batches_are_in_flight_and_waiting_rows_then_come_together(
    engine: Engine, model: FakeModel
) -> None:
    futures = held_together(engine, model, *([[[number]]] for number in range(8)))
    assert [future.result(30).answers for future in futures] == [[[value([number])]] for number in range(8)]
    assert [shape.rows for shape in model.batches] == [1, 1, 8]


def test_expired_and_cancelled_requests_are_never_computed(engine: Engine, model: FakeModel, clock: Clock) -> None:
    model.gate.clear()
    first = [hold(engine, model), hold(engine, model)]
    late, cancelled = engine.submit(model, [[[1]]], 5), engine.submit(model, [[[2]]], 60)
    until(lambda: queued(engine) == 16)
    assert cancelled.cancel()
    clock.now = 6.0
    model.gate.set()
    assert [future.result(30).answers for future in first] == [[[value([0])]]] * 2
    with pytest.raises(Expired):
        late.result(30)
    with pytest.raises(CancelledError):
        cancelled.result(30)
    assert engine.drain(5) and len(model.batches) == 2
    assert engine.counters.value("spanbert_rejected_total", reason="Expired") == 1
    assert engine.counters.value("spanbert_rejected_total", reason="Cancelled") == 1


def test_an_overload_is_refused_at_once_and_the_rest_is_answered(model: FakeModel) -> None:
    engine = Engine([model], Limits(batch_pieces=64, queued_pieces=40, queued_inputs=50))
    model.gate.clear()
    futures = [engine.submit(model, [[[number]]], 60) for number in range(30)]
    until(lambda: sum(future.done() for future in futures) == 20)
    model.gate.set()
    kept = [(number, future) for number, future in enumerate(futures) if future.exception(30) is None]
    assert [future.result().answers for _, future in kept] == [[[value([number])]] for number, _ in kept]
    errors = [future.exception() for future in futures if future.exception()]
    assert len(kept) == 10 and all(isinstance(error, Overloaded) for error in errors)
    model.gate.set()
    engine.close()


def test_inputs_are_counted_before_they_are_tokenised(engine: Engine, model: FakeModel) -> None:
    model.gate.clear()
    first = engine.submit(model, [[[1]]] * 200, 60)
    with pytest.raises(Overloaded, match="200 inputs are waiting; 256 are the most"):
        engine.submit(model, [[[1]]] * 57, 60)
    second = engine.submit(model, [[[2]]] * 56, 60)
    model.gate.set()
    assert first.result(30).answers == [[value([1])]] * 200 and second.result(30).answers == [[value([2])]] * 56


def test_a_drain_answers_what_is_in_flight_and_takes_nothing_more(engine: Engine, model: FakeModel) -> None:
    model.gate.clear()
    future = hold(engine, model)
    assert engine.is_ready and not engine.drain(0.01) and not engine.is_ready
    with pytest.raises(NotServing):
        engine.submit(model, [[[1]]], 60)
    model.gate.set()
    assert engine.drain(5) and isinstance(future.result(0), Answered)


def test_closing_fails_what_is_left(model: FakeModel) -> None:
    engine = Engine([model], LIMITS)
    model.gate.clear()
    futures = [hold(engine, model), hold(engine, model), engine.submit(model, [[[1]]], 60)]
    until(lambda: queued(engine) == 12)
    closing = threading.Thread(target=engine.close)
    closing.start()
    for future in futures:
        with pytest.raises(NotServing, match="shut down before"):
            future.result(30)
    model.gate.set()
    closing.join(30)
    assert not closing.is_alive()


def test_the_smallest_programs_of_the_first_models_are_compiled_first_and_then_the_others() -> None:
    first, second = FakeModel("first", ready=()), FakeModel("second", ready=())
    second.is_first, order = False, []
    for model in (first, second):
        prepare = model.prepare
        model.prepare = lambda shape, model=model, prepare=prepare: (order.append((model.name, *shape)), prepare(shape))
    engine = Engine([second, first], LIMITS)
    assert not engine.is_ready
    done = threading.Event()
    engine.warm_up(everything=False, afterwards=done.set)
    assert engine.is_ready and order[:3] == [("first", 1, 4), ("first", 1, 8), ("first", 1, 16)]
    assert done.wait(30)
    assert order[3:6] == [("second", 1, 4), ("second", 1, 8), ("second", 1, 16)]
    usable = {shape for shape in TABLE if shape.rows * shape.length <= LIMITS.batch_pieces}
    assert set(first.ready) == set(second.ready) == usable
    engine.close()


def test_a_program_that_cannot_be_compiled_beside_requests_is_told() -> None:
    first, second = FakeModel("first", ready=()), FakeModel("second", ready=())
    second.is_first, failure = False, MemoryError("no room")

    def prepare(_: Shape) -> None:
        raise failure

    second.prepare = prepare  # type: ignore[method-assign]
    engine, told = Engine([first, second], LIMITS), queue.SimpleQueue()
    engine.warm_up(everything=False, failed=told.put)
    assert told.get(timeout=30) is failure
    with pytest.raises(MemoryError):
        engine.warm_up(everything=True)
    engine.close()


def test_a_request_is_answered_once_however_late_its_tokeniser_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenising: set[int] = set()  # threads

    class Slow(threading.Condition):
        """Another thread goes on before the tokenising one does, whenever that one leaves the lock."""

        def __exit__(self, *of: Any) -> None:
            super().__exit__(*of)
            if threading.get_ident() in tokenising:
                time.sleep(0.1)

    monkeypatch.setattr(threading, "Condition", Slow)
    model, answered = FakeModel(), []
    rows, answer = model.rows, model.answer

    def slow(*of: Any) -> list[Any]:
        answered.append(threading.current_thread().name)
        time.sleep(0.3)
        return answer(*of)

    model.rows = lambda items: (tokenising.add(threading.get_ident()), rows(items))[1]  # type: ignore[method-assign]
    model.answer = slow  # type: ignore[method-assign]
    engine = Engine([model], LIMITS)
    assert engine.submit(model, [[[1, 2]]], 30).result(30).pieces == 2
    engine.close()
    assert answered == ["finish"]


def test_an_engine_that_compiles_everything_is_ready_only_after_all_of_it() -> None:
    first, second = FakeModel("first", ready=()), FakeModel("second", ready=())
    second.is_first, ready = False, []
    engine = Engine([first, second], LIMITS)
    for model in (first, second):
        prepare = model.prepare
        model.prepare = lambda shape, prepare=prepare: (prepare(shape), ready.append(engine.is_ready))
    engine.warm_up(everything=True, afterwards=lambda: ready.append(engine.is_ready))
    assert len(ready) > len(TABLE) and not any(ready) and engine.is_ready
    engine.close()


def test_a_row_that_no_batch_can_hold_is_refused_at_the_start() -> None:
    with pytest.raises(UserError, match=r"--max-batch-pieces is 15, .* rows of 16 pieces has 16; give that many"):
        Engine([FakeModel()], Limits(batch_pieces=15))


def test_what_was_cut_and_how_long_each_phase_took_is_told(engine: Engine, model: FakeModel, clock: Clock) -> None:
    model.gate.clear()
    future = hold(engine, model)
    clock.now = 2.0
    model.gate.set()
    assert future.result(30).seconds == {"tokenize": 0.0, "queue": 0.0, "device": 2.0, "post": 0.0}
    text = engine.metrics()
    assert 'spanbert_request_seconds_bucket{model="fake",phase="device",le="+Inf"} 1' in text
    assert 'spanbert_batch_pieces_total{kind="real",model="fake"} 1' in text
    assert 'spanbert_batch_pieces_total{kind="padded",model="fake"} 4' in text
    assert "spanbert_device_busy_seconds_total 2" in text and 'spanbert_compiled_shapes{model="fake"} 9' in text
    assert "# TYPE spanbert_queue_pieces gauge\nspanbert_queue_pieces 0" in text
