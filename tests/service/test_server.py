"""The server around the application, without a process of its own (tests/test_serve.py has one)."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.service.server import bind, run
from spanbert_jax.service.service import Settings, open_service
from spanbert_jax.serving.mixture import FILE
from spanbert_jax.serving.scheduler import Limits
from tests.support.fake_service import fake_service
from tests.support.pretrained import random_weights, write_pretrained
from tests.support.tuned import WORDPIECE


def test_a_program_that_cannot_be_compiled_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service, model = fake_service(Settings(limits=Limits(batch_pieces=64)), is_ready=False)

    def prepare(_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(model, "prepare", prepare)
    with bind("127.0.0.1", 0) as listening:
        assert run(service, listening, False, 1.0) == 1
    assert "error: a program cannot be compiled" in capsys.readouterr().err


def test_a_user_s_mistake_that_compiling_finds_is_told_in_its_own_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service, _ = fake_service(Settings(limits=Limits(batch_pieces=64)))

    def warm_up(*_: object) -> None:
        raise UserError("FILE is damaged; delete it")

    monkeypatch.setattr(service, "warm_up", warm_up)
    with bind("127.0.0.1", 0) as listening:
        assert run(service, listening, True, 1.0) == 1
    assert capsys.readouterr().err == "error: FILE is damaged; delete it\n"


def test_a_damaged_mixture_is_found_when_the_checkpoint_is_opened(tmp_path: Path) -> None:
    checkpoint = write_pretrained(tmp_path, random_weights(WORDPIECE))
    (checkpoint / FILE).write_text("[]")
    with pytest.raises(UserError, match=r"^--checkpoint gaps=.*infilling.json is damaged"):
        open_service({"gaps": checkpoint}, Settings(max_input_pieces=16))


def test_closing_waits_for_one_program_and_compiles_no_other() -> None:
    service, _ = fake_service(Settings(limits=Limits(batch_pieces=64)))
    compiling, compiled = threading.Semaphore(0), []

    def warm_up(show: Callable[[float], None]) -> None:
        for number in range(1000):
            compiling.release()
            time.sleep(0.01)
            compiled.append(number)
            show(number / 1000)

    loaded: Any = service.checkpoint(None).loaded
    loaded.piece_heads, loaded.infiller = ("mlm",), SimpleNamespace(warm_up=warm_up)
    service.warm_up(everything=False, failed=lambda error: pytest.fail(str(error)))
    assert compiling.acquire(timeout=30)
    service.close()
    assert 1 <= len(compiled) < 1000
    count = len(compiled)
    time.sleep(0.05)
    assert len(compiled) == count


def test_an_address_that_cannot_be_had_is_a_user_s_mistake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen there"):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="--port 70000: expected a number from 0 to 65535"):
        bind("127.0.0.1", 70_000)
