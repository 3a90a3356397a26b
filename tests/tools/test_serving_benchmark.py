"""benchmarks/serving.py: the arithmetic of its figures, its verdicts, and what it sends, through the service itself."""

import asyncio
import base64
import json
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import serving, serving_load
from benchmarks.serving_fake import HashModel
from benchmarks.serving_load import FAILED, LOST, REFUSED, RIGHT, SWAPPED, Client, Reply, hashed, judged, percentile
from benchmarks.serving_sides import batches_at_saturation, torch_embedding
from spanbert_jax.batches.shapes import Shape
from spanbert_jax.errors import UserError
from spanbert_jax.serving.engine import Engine
from spanbert_jax.serving.scheduler import Limits

Serve = Callable[[bytes], Coroutine[Any, Any, bytes]]  # the body of a request -> the whole response


def response(vectors: Sequence[np.ndarray], status: str = "200 OK", extra: str = "") -> bytes:
    """A response as the service writes it."""
    data = [{"embedding": base64.b64encode(vector.tobytes()).decode()} for vector in vectors]
    body = json.dumps({"data": data, "usage": {"prompt_tokens": 3 * len(vectors)}}).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body


async def served(serve: Serve, work: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """The result of the work, with a client of a server that answers by `serve`; b"" ends the connection."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
                answer = await serve(await reader.readexactly(int(length.split()[1])))
                writer.write(answer)
                if not answer:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    client = Client(server.sockets[0].getsockname()[1], "m")
    try:
        return await work(client)
    finally:
        client.close()
        server.close()


@pytest.mark.parametrize("count", [1, 2, 7, 99, 100, 101, 1000])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_percentile_is_numpys(count: int, share: float) -> None:
    latencies = sorted(np.random.default_rng(count).exponential(size=count).tolist())
    assert percentile(latencies, share) == np.percentile(latencies, 100 * share, method="inverted_cdf")


def test_there_is_no_percentile_of_no_answer() -> None:
    assert math.isnan(percentile([], 0.99))


def test_every_way_in_which_a_request_can_end_has_its_verdict() -> None:
    texts = ["one", "two"]
    one, two = map(hashed, texts)

    def reply(*vectors: np.ndarray) -> Reply:
        return Reply(200, {}, response(vectors).partition(b"\r\n\r\n")[2])

    assert judged(reply(one, two), texts, True) == (RIGHT, 6)
    assert judged(reply(two, one), texts, True)[0] == SWAPPED
    assert judged(reply(two, one), texts, False)[0] == RIGHT
    assert judged(reply(one), texts, True)[0] == LOST
    assert judged(Reply(0, {}, b""), texts, True) == (LOST, 0)
    assert judged(Reply(429, {"retry-after": "2"}, b""), texts, True) == (REFUSED, 0)
    assert judged(Reply(429, {}, b""), texts, True)[0] == FAILED  # not told when to come again
    assert judged(Reply(500, {}, b""), texts, True)[0] == FAILED


def test_a_server_that_swaps_loses_and_refuses_is_found_out() -> None:
    """Of 12 requests every third swaps two vectors, one breaks the connection, and one is refused."""
    seen = 0

    async def serve(body: bytes) -> bytes:
        nonlocal seen
        seen += 1
        vectors = [hashed(text) for text in json.loads(body)["input"]]
        if seen == 5:
            return b""
        if seen == 7:
            return response([], "429 Too Many Requests", "retry-after: 1\r\n")
        return response(vectors[::-1] if seen % 3 == 0 else vectors)

    async def work(client: Client) -> Any:
        return await serving_load.closed_loop(client, lambda i: [f"a{i}", f"b{i}"], True, 1, 12)

    outcomes = asyncio.run(served(serve, work))
    found = serving_load.summary(outcomes, 2.0)
    assert found["verdicts"] == {RIGHT: 6, SWAPPED: 4, LOST: 1, REFUSED: 1}
    assert len(found["latencies"]) == 6
    assert found["pieces"] == 6 * 10


def test_an_open_loop_counts_the_time_in_which_a_server_stalls() -> None:
    """The server stops for 0.3 s at its first request, while 20 requests fall due every 10 ms."""

    async def serve(body: bytes) -> bytes:
        if stalls.pop():
            time.sleep(0.3)  # the client's own loop as well, so that nothing is sent meanwhile
        return response([hashed(text) for text in json.loads(body)["input"]])

    async def work(client: Client) -> Any:
        return await serving_load.open_loop(client, lambda i: [str(i)], True, 100.0, 0.2)

    stalls = [False] * 30 + [True]
    outcomes = asyncio.run(served(serve, work))
    assert [one.verdict for one in outcomes] == [RIGHT] * 20
    late = [one.seconds for one in outcomes]
    assert late[0] >= 0.3
    assert all(seconds >= 0.3 - 0.01 * number - 0.05 for number, seconds in enumerate(late))


def test_the_engine_answers_with_the_hash_of_each_text() -> None:
    model = HashModel("fake", 1e6)
    engine = Engine([model], Limits())
    try:
        texts = [f"text {number}" for number in range(40)]
        answered = engine.submit(model, [SimpleNamespace(text=text) for text in texts], 30).result(30)
    finally:
        engine.close()
    np.testing.assert_array_equal(answered.answers, [hashed(text) for text in texts])


def test_the_bare_forward_has_every_row_once_in_the_largest_filled_shapes() -> None:
    table = [Shape(rows, length) for length in (16, 32) for rows in (1, 4, 16)]
    lengths = [5] * 22 + [17, 32]
    batches = batches_at_saturation(lengths, table, 16 * 16)
    assert sorted(number for rows, _ in batches for number in rows) == list(range(24))
    assert [shape for _, shape in batches] == [(16, 16), (4, 16), (1, 16), (1, 16), (1, 32), (1, 32)]
    assert all(lengths[number] <= shape.length for rows, shape in batches for number in rows)


def test_torch_pools_like_a_mean_over_the_real_pieces_alone(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    vectors = torch_embedding(str(tmp_path))(np.array([[3, 4, 5], [6, 7, 0], [0, 0, 0]]), np.array([3, 2, 0]))
    with torch.inference_mode():
        mean = model(input_ids=torch.tensor([[6, 7]])).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-6)
    assert not vectors[2].any()


def test_paragraphs_that_are_too_few_are_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("too short\n" + "a line of more than eight words in all\n" * 3)
    assert len(serving.paragraphs(tmp_path, 3)) == 3
    with pytest.raises(UserError, match=r"3 paragraphs of eight words; 4 are needed"):
        serving.paragraphs(tmp_path, 4)
