"""Processes wait for each other's work, and every one learns of a failure. The other processes are stood in for."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from spanbert_jax.errors import UserError
from spanbert_jax.training.together import decided, first_text, together


@pytest.fixture
def three_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """others(index, *given): this process is number `index` of three, and the others bring the arrays in `given`, in
    the order of their numbers, one tuple an exchange."""

    def others(index: int, *given: tuple[np.ndarray, np.ndarray]) -> None:
        exchanges = iter(given)

        def gather(mine: np.ndarray) -> np.ndarray:
            arrays = list(next(exchanges))
            arrays.insert(index, mine)
            return np.stack(arrays)

        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(multihost_utils, "process_allgather", gather)

    return others


WELL, FAILED = np.int32(0), np.int32(1)


def text(content: str) -> np.ndarray:
    return np.frombuffer(content.encode().ljust(4096, b"\0"), np.uint8)


def fail() -> None:
    raise UserError("the reason")


def test_a_failure_in_one_process_is_an_error_in_every_one(three_processes: Callable[..., None]) -> None:
    three_processes(0, (WELL, FAILED))
    with pytest.raises(UserError, match="process 2 could not read it; that process prints the reason"):
        together("read it", lambda: 1)
    three_processes(1, (WELL, WELL))
    with pytest.raises(UserError, match=r"^the reason$"):
        together("read it", fail)
    three_processes(2, (FAILED, WELL))
    with pytest.raises(UserError, match="process 0 could not read it"):
        together("read it", fail, here=False)


def test_a_request_to_stop_ends_this_process_without_an_exchange(three_processes: Callable[..., None]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    three_processes(0)
    with pytest.raises(KeyboardInterrupt):
        together("read it", interrupted)


def test_where_the_work_succeeds_its_result_is_returned_where_it_was_done(three_processes: Callable[..., None]) -> None:
    three_processes(0, (WELL, WELL), (WELL, WELL))
    assert together("add", lambda: 1 + 1) == 2
    assert together("add", lambda: 1 + 1, here=False) is None


def test_what_process_0_finds_is_what_every_process_gets(three_processes: Callable[..., None]) -> None:
    three_processes(2, (WELL, WELL), (text("runs/ä/best/3"), text("")))
    assert decided("find it", lambda: pytest.fail("process 2 did the work of process 0")) == "runs/ä/best/3"
    three_processes(0, (WELL, WELL), (text(""), text("")))
    assert decided("find it", lambda: "runs/tiny") == "runs/tiny"


def test_the_first_text_that_is_not_empty_counts(three_processes: Callable[..., None]) -> None:
    three_processes(0, (text("of 1"), text("of 2")), (text(""), text("")), (text(""), text("")))
    assert first_text("") == "of 1"
    assert first_text("") == ""
    assert first_text("x" * 5000) == "x" * 4096


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda *_: pytest.fail("exchanged"))
    assert (together("add", lambda: 2), decided("find it", lambda: "a"), first_text("b")) == (2, "a", "b")
    with pytest.raises(UserError, match="the reason"):
        together("add", fail)
