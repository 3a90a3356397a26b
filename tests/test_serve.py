"""`python -m spanbert_jax.serve`: mistakes in one line, and a real process from its start to SIGTERM."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
import tritonclient.http

import spanbert_jax
from spanbert_jax import serve
from spanbert_jax.errors import UserError
from tests.support.runs import ROOT
from tests.support.served import write_checkpoint

SECRET = "zyxw vuts"


def test_checkpoints_are_named_by_the_user_or_their_folder() -> None:
    found = serve.sources(["runs/squad", "ner=runs/conll", "a/b=c"])
    assert found == {"squad": Path("runs/squad"), "ner": Path("runs/conll"), "b=c": Path("a/b=c")}
    with pytest.raises(UserError, match="two are named x; write NAME=PATH"):
        serve.sources(["x", "x=y"])


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert serve.main(list(arguments)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("\n \n")
    absent = ["--checkpoint", f"x={tmp_path}/absent", "--port", "0"]
    assert "--checkpoint x=" in failed(capsys, *absent) and "no such file or directory" in failed(capsys, *absent)
    assert "has no key" in failed(capsys, *absent, "--api-key-file", str(tmp_path / "keys"))
    assert "cannot be read" in failed(capsys, *absent, "--api-key-file", str(tmp_path / "absent"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: cannot listen there" in failed(capsys, "--checkpoint", "x", "--port", port)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -r requirements-serve.txt" in failed(capsys, *absent)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--drain-seconds", "inf", "inf is not from 0 to"),
        ("--drain-seconds", "nan", "nan is not from 0 to"),
        ("--deadline", "1e300", "1e300 is not from 0 to"),
        ("--max-input-pieces", "2", "2 leaves no room for text beside [CLS] and [SEP]; give 3 or more"),
    ],
)
def test_numbers_without_use_are_refused_before_anything_is_opened(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        serve.main(["--checkpoint", "absent", option, value])
    assert f"error: argument {option}: {message}" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("served"), "labels")


@pytest.fixture
def process(checkpoint: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "keys").write_text("first\nsecond\n")
    command = [sys.executable, "-m", "spanbert_jax.serve", "--checkpoint", str(checkpoint), "--port", "0"]
    command += ["--deterministic", "--api-key-file", str(tmp_path / "keys")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        yield started
        started.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> tuple[re.Match[str], str]:
    lines = ""
    assert process.stdout
    for line in process.stdout:
        lines += line
        if found := re.search(pattern, line):
            return found, lines
    raise AssertionError(f"the process ended: {lines}")


def test_a_process_serves_openai_s_client_and_drains_after_sigterm(
    process: subprocess.Popen[str], checkpoint: Path
) -> None:
    port, shown = read_until(process, r"http://127\.0\.0\.1:(\d+)")
    _, more = read_until(process, r"Ready after [\d.]+ s")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port[1]}/v1", api_key="second", max_retries=0) as client:
        use(client, process, checkpoint)
    assert process.stdout and SECRET.split()[0] not in shown + more + process.stdout.read()


def use(client: openai.OpenAI, process: subprocess.Popen[str], checkpoint: Path) -> None:
    assert [model.id for model in client.models.list()] == ["labels"]
    texts = [SECRET, "ab cd"]
    vectors = [one.embedding for one in client.embeddings.create(model="labels", input=texts).data]
    states = [one.hidden_states.mean(axis=0) for one in spanbert_jax.load(checkpoint).hidden_states(texts)]
    np.testing.assert_allclose(vectors, [state / np.linalg.norm(state) for state in states], atol=1e-5)
    with pytest.raises(openai.NotFoundError, match="no checkpoint named 'other' is served, only labels"):
        client.embeddings.create(model="other", input=texts)
    with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
        client.with_options(api_key="wrong").embeddings.create(model="labels", input=texts)

    port = str(client.base_url.port)
    triton_client(port, texts, np.array(vectors))
    answered, refused = [], []
    begun = threading.Semaphore(0)

    def ask(number: int) -> None:
        for _ in range(200):
            try:
                response = client.embeddings.create(model="labels", input=texts)
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                refused.append(error)
                return
            answered.append([one.embedding for one in response.data] == vectors)
            begun.release()

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        for _ in range(8):
            assert begun.acquire(timeout=60)
        os.kill(process.pid, signal.SIGTERM)
        begun_to_end = time.monotonic()
        assert process.wait(30) == 0 and time.monotonic() - begun_to_end < 30
        for future in asking:
            future.result()
    assert all(answered) and len(answered) >= 8 and len(refused) == 4


def triton_client(port: str, texts: list[str], vectors: np.ndarray) -> None:
    """tritonclient's own way, binary tensors, and JSON give the same vectors."""
    headers = {"Authorization": "Bearer first"}
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("labels", headers=headers)
        assert client.get_server_metadata(headers)["name"] == "spanbert_jax"
        assert client.get_model_metadata("labels", headers=headers)["inputs"][0]["name"] == "text"
        for binary in (True, False):
            given = tritonclient.http.InferInput("text", [2], "BYTES")
            given.set_data_from_numpy(np.array(texts, np.object_), binary_data=binary)
            wanted = [tritonclient.http.InferRequestedOutput(name, binary) for name in ("embedding", "label")]
            for outputs in (wanted, None):
                result = client.infer("labels", [given], outputs=outputs, headers=dict(headers))
                np.testing.assert_allclose(result.as_numpy("embedding"), vectors, atol=1e-6)
                assert {
                    str(label, "utf-8") if isinstance(label, bytes) else label for label in result.as_numpy("label")
                } <= {
                    "no",
                    "perhaps",
                    "yes",
                }
