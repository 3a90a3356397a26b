"""Processes wait for each other's work, and every one learns of a failure. The other processes are stood in for."""

from collections.abc import Callable

import jax
import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.training import lifeline
from spanbert_jax.training.together import decided, first_text, together


@pytest.fixture
def three_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """others(index, *given): this process is number `index` of three, and the others bring the texts in `given`, in
    the order of their numbers, one tuple an exchange."""

    def others(index: int, *given: tuple[str, str]) -> None:
        exchanges = iter(given)

        def exchange(mine: str) -> tuple[int, str]:
            texts = list(next(exchanges))
            texts.insert(index, mine)
            return next(((number, text) for number, text in enumerate(texts) if text), (0, ""))

        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(lifeline, "first_text", exchange)

    return others


WELL, FAILED = "", "failed"


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
    three_processes(2, (WELL, WELL), ("runs/ä/best/3", ""))
    assert decided("find it", lambda: pytest.fail("process 2 did the work of process 0")) == "runs/ä/best/3"
    three_processes(0, (WELL, WELL), ("", ""))
    assert decided("find it", lambda: "runs/tiny") == "runs/tiny"


def test_the_first_text_that_is_not_empty_counts(three_processes: Callable[..., None]) -> None:
    three_processes(0, ("of 1", "of 2"), ("", ""), ("", ""))
    assert first_text("") == "of 1"
    assert first_text("") == ""
    assert first_text("x" * 5000) == "x" * 4096
    three_processes(1, ("", ""))
    assert first_text("ä" * 5000) == "ä" * 2048


def test_one_process_exchanges_nothing() -> None:
    assert (together("add", lambda: 2), decided("find it", lambda: "a"), first_text("b")) == (2, "a", "b")
    with pytest.raises(UserError, match="the reason"):
        together("add", fail)
