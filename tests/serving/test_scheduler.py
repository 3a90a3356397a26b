"""The scheduler: whole requests or none, limits that hold, the earliest deadline first, dead rows cost nothing."""

import dataclasses

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from spanbert_jax.batches.shapes import Shape
from spanbert_jax.serving.scheduler import (
    Batch,
    Entry,
    Limits,
    NotServing,
    Overloaded,
    Refused,
    Request,
    Scheduler,
    TooLarge,
)
from tests.support.fake_model import TABLE, FakeModel

LIMITS = Limits(batch_pieces=32, queued_pieces=120, queued_inputs=9)
LENGTHS = st.lists(st.lists(st.integers(1, 16), min_size=1, max_size=3), min_size=1, max_size=6)
ARRIVAL = st.tuples(st.just("arrive"), st.integers(0, 1), LENGTHS, st.integers(1, 6))
EVENTS = st.lists(
    st.one_of(
        ARRIVAL,
        ARRIVAL,
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.just(("start",)),
        st.just(("finish",)),
        st.just(("tick",)),
    ),
    max_size=60,
)


class World:
    """Drives a scheduler as the engine does, with a clock that events move, and checks it after each event."""

    def __init__(self) -> None:
        self.models = [FakeModel("a"), FakeModel("b", TABLE[:7], TABLE[:7])]
        self.scheduler, self.now = Scheduler(LIMITS), 0.0
        self.requests: list[Request] = []
        self.taken: list[Entry] = []
        self.on_device: list[Batch] = []
        self.ended: dict[Request, str] = {}

    def arrive(self, model: int, lengths: list[list[int]], seconds: int) -> None:
        request = Request(self.models[model], lengths, self.now + seconds, self.now)
        before = dataclasses.replace(LIMITS, queued_pieces=self.scheduler.pieces, queued_inputs=self.scheduler.inputs)
        rows = [[{"input_ids": [0] * length} for length in of] for of in lengths]
        try:
            self.scheduler.reserve(request)
        except Refused:
            assert before.queued_inputs + len(lengths) > LIMITS.queued_inputs
            assert self.scheduler.inputs == before.queued_inputs
            return
        try:
            self.scheduler.admit(request, rows, self.now)
        except Refused:
            assert self.scheduler.pieces == before.queued_pieces
            self.scheduler.drop(request)
            assert self.scheduler.inputs == before.queued_inputs
            return
        self.requests.append(request)

    def cancel(self, number: int) -> None:
        if number < len(self.requests):
            request = self.requests[number]
            self.scheduler.drop(request)
            self.ended.setdefault(request, "cancelled")

    def start(self) -> None:
        waiting = [(r.deadline, r) for r in self.requests if not r.is_over and r.waiting.total()]
        batch, expired = self.scheduler.next_batch(self.now)
        assert expired == [r for r in expired if r.deadline <= self.now and r not in self.ended]
        self.ended |= dict.fromkeys(expired, "expired")
        live = [deadline for deadline, request in waiting if deadline > self.now]
        if batch is None:
            assert not live
            return
        assert batch.shape in batch.model.ready and len(batch.entries) == batch.shape.rows
        assert batch.shape.rows * batch.shape.length <= LIMITS.batch_pieces
        assert all(entry.request not in self.ended for entry in batch.entries)
        assert all(entry.request.model is batch.model for entry in batch.entries)
        assert all(len(entry.row["input_ids"]) <= batch.shape.length for entry in batch.entries)
        assert batch.entries[0].request.deadline == min(live)
        assert not set(map(id, batch.entries)) & set(map(id, self.taken))
        self.taken += batch.entries
        self.on_device.append(batch)

    def finish(self) -> None:
        if self.on_device:
            batch = self.on_device.pop(0)
            self.scheduler.done(batch, 0.5)
            for request in {entry.request for entry in batch.entries}:
                if not request.is_over and not request.missing:
                    self.scheduler.drop(request)
                    self.ended[request] = "answered"

    def tick(self) -> None:
        self.now += 1

    def check(self) -> None:
        live = [request for request in self.requests if request not in self.ended]
        taken = [entry for batch in self.on_device for entry in batch.entries if entry.request not in self.ended]
        waiting = sum(n * length for request in live for length, n in request.waiting.items())
        assert self.scheduler.pieces == waiting + sum(entry.length for entry in taken) <= LIMITS.queued_pieces
        assert self.scheduler.inputs == sum(len(request.items) for request in live) <= LIMITS.queued_inputs
        assert self.scheduler.in_flight() == live


@seed(0)
@settings(max_examples=150, deadline=None, database=None)
@given(EVENTS)
def test_limits_hold_and_every_admitted_request_ends_once(events: list[tuple]) -> None:
    world = World()
    for name, *arguments in events:
        getattr(world, name)(*arguments)
        world.check()
    for _ in range(400):
        world.start()
        world.finish()
        world.check()
    assert set(world.ended) == set(world.requests) and world.scheduler.pieces == world.scheduler.inputs == 0
    answered = [request for request, how in world.ended.items() if how == "answered"]
    counts = {request: sum(entry.request is request for entry in world.taken) for request in answered}
    assert counts == {request: sum(map(len, request.items)) for request in answered}


def waiting(lengths: list[int], limits: Limits = LIMITS) -> tuple[Scheduler, FakeModel]:
    scheduler, model = Scheduler(limits), FakeModel()
    for number, length in enumerate(lengths):
        request = Request(model, ["one"], 10.0 + number)
        scheduler.reserve(request)
        scheduler.admit(request, [[{"input_ids": [0] * length}]], 0.0)
    return scheduler, model


def shapes(scheduler: Scheduler) -> list[Shape]:
    found = []
    while batch := scheduler.next_batch(0.0)[0]:
        found.append(batch.shape)
    return found


def test_rows_of_one_length_come_together_and_no_row_is_a_dummy() -> None:
    scheduler, _ = waiting([3, 12, 4, 4, 13, 2], Limits(batch_pieces=64))
    assert shapes(scheduler) == [Shape(2, 4), Shape(2, 16), Shape(2, 4)]
    scheduler, _ = waiting([3] * 8 + [5], LIMITS)
    assert shapes(scheduler) == [Shape(8, 4), Shape(1, 8)]
    scheduler, _ = waiting([5] * 8, LIMITS)  # 8 rows of 8 pieces are more than a batch may have
    assert shapes(scheduler) == [Shape(2, 8)] * 4


def test_a_rare_length_is_not_starved_by_a_crowd() -> None:
    scheduler, model = waiting([16], Limits())
    for step in range(1, 40):
        for _ in range(20):
            request = Request(model, ["one"], 10.0 + step)
            scheduler.reserve(request)
            scheduler.admit(request, [[{"input_ids": [0] * 3}]], 0.0)
        batch = scheduler.next_batch(0.0)[0]
        assert batch is not None
        if batch.shape.length == 16:
            break
    assert step == 1


def test_without_a_shape_that_is_filled_the_smallest_one_is_taken() -> None:
    model = FakeModel(table=(Shape(4, 8), Shape(8, 8)))
    scheduler, request = Scheduler(Limits()), Request(model, ["one"], 1.0)
    scheduler.reserve(request)
    scheduler.admit(request, [[{"input_ids": [0]}]], 0.0)
    assert shapes(scheduler) == [Shape(4, 8)]


def test_a_refusal_says_when_to_come_again_from_the_measured_speed() -> None:
    scheduler, model = waiting([16] * 7)
    with pytest.raises(Overloaded, match="112 pieces are waiting; 120 are the most") as refused:
        request = Request(model, ["one"], 1.0)
        scheduler.reserve(request)
        scheduler.admit(request, [[{"input_ids": [0] * 16}]], 0.0)
    assert refused.value.seconds == 1.0  # nothing was measured yet
    scheduler.drop(request)
    batch = scheduler.next_batch(0.0)[0]
    assert batch is not None and batch.shape == Shape(2, 16)
    scheduler.done(batch, 4.0)  # 32 pieces in 4 seconds; 80 are left
    assert scheduler.wait() == 10.0
    with pytest.raises(Overloaded, match="inputs are waiting; 9 are the most") as refused:
        scheduler.reserve(Request(model, ["one"] * 8, 1.0))
    assert refused.value.seconds == 10.0


def test_what_can_never_be_taken_is_refused_for_its_size() -> None:
    scheduler, model = waiting([])
    with pytest.raises(TooLarge, match="the request has 10 inputs; 9 are the most"):
        scheduler.reserve(Request(model, ["one"] * 10, 1.0))
    request = Request(model, ["one"], 1.0)
    scheduler.reserve(request)
    with pytest.raises(TooLarge, match="the request has 128 pieces with their padding; 120 are the most"):
        scheduler.admit(request, [[{"input_ids": [0] * 16}] * 8], 0.0)
    with pytest.raises(TooLarge, match="a row has more than 16 pieces"):
        scheduler.admit(request, [[{"input_ids": [0] * 17}]], 0.0)


def test_nothing_is_taken_before_every_length_is_compiled_nor_while_draining() -> None:
    scheduler, model = Scheduler(LIMITS), FakeModel(ready=TABLE[:3])
    with pytest.raises(NotServing, match="fake is being compiled"):
        scheduler.reserve(Request(model, ["one"], 1.0))
    for shape in TABLE[3:]:
        model.prepare(shape)
    scheduler.reserve(Request(model, ["one"], 1.0))
    scheduler.is_draining = True
    with pytest.raises(NotServing, match="shutting down"):
        scheduler.reserve(Request(model, ["one"], 1.0))
