"""Records in memory, files and standard input give the same predictions; any traffic compiles nothing after warm-up."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jax import monitoring

from spanbert_jax.batches.shapes import shape_table
from spanbert_jax.errors import UserError
from spanbert_jax.serving.answers import Answerer, open_answerer
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.tasks.finetuning import Learnt
from tests.support.tuned import assert_close, random_texts, write_tuned
from tools import predict

NAMES = ("question_answering", "sequence_classification", "token_classification")
LEARNT = {
    "question_answering": Learnt(),
    "sequence_classification": Learnt(("no", "perhaps", "yes")),
    "token_classification": Learnt(("O", "LOC", "PER"), nested=True),
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("tuned")
    for name in NAMES:
        data = {"block_length": 24, "lengths": 2 if name == "sequence_classification" else 1}
        write_tuned(folder / name, name, LEARNT[name], tagging={"head": "span", "max_width": 2}, data=data)
    return lambda name: folder / name


def opened(path: Path) -> Answerer:
    with open_weights(path) as weights:
        return open_answerer(weights)


TEXTS = random_texts(np.random.default_rng(0), 500)


def random_records(name: str, rng: np.random.Generator, count: int) -> list[Any]:
    texts = [TEXTS[i] for i in rng.integers(0, len(TEXTS), count)]
    if name == "question_answering":
        return [{"question": text[:9], "context": text * 3} for text in texts]
    return [text if rng.random() < 0.5 else {"text": text} for text in texts]


@pytest.fixture
def compilations() -> list[str]:
    """Whatever JAX says that it traces, lowers or compiles, while the test runs."""
    seen: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            seen.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    return seen


@pytest.mark.parametrize(("name", "requests"), list(zip(NAMES, (20, 200, 20), strict=True)))
def test_requests_of_1_to_64_texts_compile_nothing_after_warm_up(
    name: str, requests: int, tuned: Callable[[str], Path], compilations: list[str]
) -> None:
    answerer, shown = opened(tuned(name)), []
    answerer.warm_up(shown.append)
    compiled = sum(event.endswith("backend_compile_duration") for event in compilations)
    assert compiled >= len(shown) == len(shape_table(24, answerer.task.config.data.lengths, 1)) and shown[-1] == 1.0
    before, rng = len(compilations), np.random.default_rng(0)
    for _ in range(requests):
        records = random_records(name, rng, int(rng.integers(1, 65)))
        assert len(answerer.answer(records)) == len(records)
    assert compilations[before:] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_record_has_the_same_prediction_whatever_its_company(name: str, tuned: Callable[[str], Path]) -> None:
    answerer = opened(tuned(name))
    records = random_records(name, np.random.default_rng(1), 40)
    together = answerer.answer(records)
    for number in (0, 7, 39):
        (alone,) = answerer.answer([records[number]])
        assert alone["id"] == "0" and together[number]["id"] == str(number)
        assert_close({**alone, "id": str(number)}, together[number])
    assert answerer.answer([]) == []


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("question_answering", "Who?", r"records\[1\]: 'Who\?' is no question with its text"),
        ("question_answering", {"question": "Who?"}, r"records\[1\]: no 'context'"),
        ("sequence_classification", {"words": ["a"]}, r"records\[1\]: no 'text'"),
        ("token_classification", {"words": []}, r"records\[1\]: 'words' is \[\]"),
    ],
)
def test_a_record_that_the_task_does_not_read_is_named(
    name: str, record: Any, message: str, tuned: Callable[[str], Path]
) -> None:
    good = random_records(name, np.random.default_rng(2), 1)
    with pytest.raises(UserError, match=message):
        opened(tuned(name)).answer([*good, record])


def from_standard_input(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    status = predict.main(["--checkpoint", str(path)])
    return status, *capsys.readouterr()


def test_records_a_file_and_standard_input_give_the_same_predictions(
    tuned: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, texts = tuned("sequence_classification"), [text[:20] for text in random_texts(np.random.default_rng(3), 5)]
    answers = [{**answer, "id": None} for answer in opened(path).answer(texts)]
    content = "".join(f"{text}\n" for text in texts).encode()
    status, out, err = from_standard_input(path, content, monkeypatch, capsys)
    assert (status, err) == (0, "")
    assert [{**json.loads(line), "id": None} for line in out.splitlines()] == answers
    (tmp_path / "texts.txt").write_bytes(content)
    output = tmp_path / "my answers" / "x.jsonl"
    assert (
        predict.main(["--checkpoint", str(path), "--input", str(tmp_path / "texts.txt"), "--output", str(output)]) == 0
    )
    assert [{**json.loads(line), "id": None} for line in output.read_text().splitlines()] == answers
    assert [one.name for one in output.parent.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sequence_classification", b"fine\ncaf\xe9 au lait\n", "standard input, line 2: byte 8 (0xe9)"),
        ("sequence_classification", "caf\u00e9".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("question_answering", b"Who lived in London?\n", "standard input"),
        ("token_classification", b'{"words": ["a"]}\n{"words": []}\n', "standard input, line 2"),
    ],
)
def test_errors_name_standard_input_and_its_line(
    name: str,
    content: bytes,
    message: str,
    tuned: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = from_standard_input(tuned(name), content, monkeypatch, capsys)
    assert (status, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1
    assert message in err and "/tmp" not in err


def test_texts_that_were_cut_are_counted(tuned: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    opened(tuned("sequence_classification")).answer(["a", "a " * 40, "b " * 40])
    assert "warning: the records: 2 of 3 examples are longer than a row and were cut" in capsys.readouterr().err
