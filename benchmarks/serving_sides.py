"""The sides that serving.py compares a server with: the bare forward, and ways to embed texts without a server.

Invariant: every side embeds the same texts, cut at the same length, with mean pooling over all pieces and vectors of
length 1. A side is `start(spec)` for benchmarks/worker.py; spec: side, checkpoint, texts (a JSON file), longest,
batch_pieces.
"""

import base64
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.worker import Handler, Json
from spanbert_jax.batches.shapes import Shape
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.model.row_pooling import pool_rows
from spanbert_jax.serving.engine import Engine
from spanbert_jax.serving.functions import encode_function
from spanbert_jax.serving.loaded import Loaded
from spanbert_jax.serving.scheduler import Limits, Output, Row
from spanbert_jax.serving.text_models import EmbeddingModel, Text
from spanbert_jax.serving.weights import open_weights

_REQUEST = 32  # inputs in a request to an engine
_SHOWN = 64  # vectors that are returned for comparison
Embed = Callable[[Sequence[str]], np.ndarray]


def batches_at_saturation(lengths: Sequence[int], table: Sequence[Shape], most: int) -> list[tuple[list[int], Shape]]:
    """(the numbers of the rows, the shape) of each batch, as the engine makes them of rows that all wait at once: a
    batch is the largest shape that the rows of its length fill, of at most `most` pieces."""
    queues: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        queues[min(shape.length for shape in table if shape.length >= length)].append(number)
    batches = []
    for length, rows in sorted(queues.items()):
        shapes = sorted(shape for shape in table if shape.length == length)
        while rows:
            filled = [shape for shape in shapes if shape.rows <= len(rows) and shape.rows * length <= most]
            shape = filled[-1] if filled else shapes[0]
            batches.append((rows[: shape.rows], shape))
            rows = rows[shape.rows :]
    return batches


def bare(spec: Json) -> tuple[Json, Handler]:
    """The jitted forward alone: batches lie ready as arrays, and vectors stay NumPy arrays. Two batches are in flight,
    as in the engine."""
    texts = json.loads(Path(spec["texts"]).read_text())
    loaded = Loaded(Path(spec["checkpoint"]))
    model = loaded.served("bare", spec["longest"]).embed
    with open_weights(Path(spec["checkpoint"])) as weights:
        params, _ = weights.load()
    params = jax.device_put({group: params[group] for group in ENCODER if group in params})
    encode = encode_function(loaded.config, loaded.tokenizer.vocab_size, None)

    @jax.jit
    def forward(params: Any, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # as the engine's models
            vectors = pool_rows(encode(params, ids, lengths, ids * 0), lengths, "mean")
            return vectors / jax.numpy.linalg.norm(vectors, axis=-1, keepdims=True)

    def arrays(rows: Sequence[list[int]], shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = np.zeros(shape, np.int32), np.zeros(shape.rows, np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row)], lengths[place] = row, len(row)
        return ids, lengths

    rows = [list(of[0]["input_ids"]) for of in model.rows([Text(text) for text in texts])]
    plan = batches_at_saturation([len(row) for row in rows], model.table, spec["batch_pieces"])
    made = [arrays([rows[number] for number in numbers], shape) for numbers, shape in plan]
    shortest = arrays([list(model.rows([Text(spec["short"])])[0][0]["input_ids"])], min(model.table))
    largest = max(made, key=lambda batch: batch[0].size)
    for batch in {batch[0].shape: batch for batch in (*made, shortest)}.values():
        forward(params, *batch).block_until_ready()

    def timed(batch: tuple[np.ndarray, np.ndarray], count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            begun = time.monotonic()
            np.asarray(forward(params, *batch))
            seconds.append(time.monotonic() - begun)
        return seconds

    def run(request: Json) -> Json:
        """request: short, how often the short text is computed alone; where 0, all texts are computed once."""
        if request["short"]:
            return {"seconds": timed(shortest, request["short"])}
        begun = time.monotonic()
        waiting: Any = None
        for batch in made:
            started = forward(params, *batch)
            if waiting is not None:
                np.asarray(waiting)
            waiting = started
        np.asarray(waiting)
        seconds = time.monotonic() - begun
        return {"seconds": seconds, "pieces": sum(map(len, rows)), "batch_seconds": timed(largest, 3)}

    return {"mean_pieces": float(np.mean([len(row) for row in rows]))}, run


class TorchModel:
    """A model of the engine that computes with transformers' BertModel in PyTorch. It has the rows and the shapes of
    the project's own model."""

    is_first = True

    def __init__(self, ours: EmbeddingModel, embed: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.name, self.table, self.ready = "torch", ours.table, ours.table
        self.rows, self.answer = ours.rows, ours.answer
        self._embed = embed

    def prepare(self, shape: Shape) -> None:
        """Does nothing: PyTorch compiles nothing here."""

    def start(self, rows: Sequence[Row], shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """The batch; `finish` computes it, since PyTorch on a CPU returns only at the end."""
        ids, lengths = np.zeros(shape, np.int64), np.zeros(shape.rows, np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row["input_ids"])], lengths[place] = row["input_ids"], len(row["input_ids"])
        return ids, lengths

    def finish(self, started: tuple[np.ndarray, np.ndarray]) -> Output:
        """The vectors."""
        return {"embedding": self._embed(*started)}


def torch_embedding(checkpoint: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function of ids, int64 [rows, length], and lengths, int64 [rows], that returns float32 [rows, embed]:
    sentence-transformers' mean pooling over transformers' BertModel, then Normalize. Empty rows get zeros."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()

    def embed(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            mask = (torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]).long()
            states = model(input_ids=torch.from_numpy(ids), attention_mask=mask).last_hidden_state
            states = states.masked_fill(mask[..., None] == 0, 0.0)  # of a row without a piece they are not finite
            pooled = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).numpy()
            return vectors

    return embed


def _through_engine(model: Any, limits: Limits) -> Embed:
    engine = Engine([model], limits)
    engine.warm_up(everything=True)

    def embed(texts: Sequence[str]) -> np.ndarray:
        items = [Text(text) for text in texts]
        futures = [engine.submit(model, items[i : i + _REQUEST], 3600) for i in range(0, len(items), _REQUEST)]
        return np.stack([vector for future in futures for vector in future.result().answers])

    return embed


def sorted_loop(checkpoint: str, longest: int) -> Embed:
    """sentence-transformers' `encode`, written out over transformers: texts sorted by their length in characters, the
    longest first, in batches of 32, each padded to its own longest text, its tokenizer called for each batch."""
    from transformers import AutoTokenizer

    tokenizer, embed_ids = AutoTokenizer.from_pretrained(checkpoint), torch_embedding(checkpoint)

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        found: dict[int, np.ndarray] = {}
        for i in range(0, len(order), 32):
            numbers = order[i : i + 32]
            batch: Any = tokenizer(
                [texts[number] for number in numbers],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="np",
            )
            vectors = embed_ids(batch["input_ids"].astype(np.int64), batch["attention_mask"].sum(1).astype(np.int64))
            found.update(zip(numbers, vectors, strict=True))
        return np.stack([found[number] for number in range(len(texts))])

    return embed


def start(spec: Json) -> tuple[Json, Handler]:
    """spec["side"]: "bare", "ours" and "torch" (each behind an engine), or "loop"."""
    if spec["side"] == "bare":
        return bare(spec)
    texts = json.loads(Path(spec["texts"]).read_text())
    ours = Loaded(Path(spec["checkpoint"])).served("ours", spec["longest"]).embed
    limits = Limits(batch_pieces=spec["batch_pieces"], queued_pieces=2**31, queued_inputs=2**31)
    if spec["side"] == "loop":
        embed = sorted_loop(spec["checkpoint"], ours.longest)
    elif spec["side"] == "torch":
        embed = _through_engine(TorchModel(ours, torch_embedding(spec["checkpoint"])), limits)
    else:
        embed = _through_engine(ours, limits)
    pieces = sum(len(of[0]["input_ids"]) for of in ours.rows([Text(text) for text in texts]))
    embed(texts[:_SHOWN])

    def run(_: Json) -> Json:
        begun = time.monotonic()
        vectors = embed(texts)
        seconds = time.monotonic() - begun
        shown = base64.b64encode(vectors[:_SHOWN].astype("<f4").tobytes()).decode()
        return {"seconds": seconds, "pieces": pieces, "vectors": shown, "embed": vectors.shape[1]}

    return {}, run
