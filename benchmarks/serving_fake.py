"""A server for serving.py whose vector of a text is a hash of that text, so that a swapped or a wrong answer is seen.

    python -m benchmarks.serving_fake --rows-per-second 100

Invariant: all but the model is the real service: routes, engine, limits and server. The model computes a known number
of rows a second, whatever the machine, so that "three times the load that it can carry" is a known load.
"""

import argparse
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.serving_load import hashed
from spanbert_jax.batches.shapes import Shape
from spanbert_jax.serving.scheduler import Limits, Output, Row
from spanbert_jax.serving.served_models import ServedModels

_PIECES = 64  # of a text at most: its bytes


class HashModel:
    """A model of the engine. The vector of a text is `hashed(text)`."""

    is_first = True
    table: Sequence[Shape] = tuple(Shape(rows, length) for length in (16, _PIECES) for rows in (1, 4, 16))

    def __init__(self, name: str, rows_per_second: float):
        self.name, self._rate, self.ready = name, rows_per_second, self.table

    def prepare(self, shape: Shape) -> None:
        """Does nothing: there is nothing to compile."""

    def rows(self, items: Sequence[Any]) -> list[list[Row]]:
        """One row of each text: its bytes."""
        return [[{"input_ids": list(item.text.encode())[:_PIECES]}] for item in items]

    def start(self, rows: Sequence[Row], shape: Shape) -> Any:
        """The rows, for `finish`."""
        return rows, shape

    def finish(self, started: Any) -> dict[str, np.ndarray]:
        """The hashes, after the time that the rows take."""
        rows, shape = started
        time.sleep(len(rows) / self._rate)
        vectors = np.zeros((shape.rows, 4), np.float32)
        for place, row in enumerate(rows):
            vectors[place] = hashed(bytes(row["input_ids"]).decode())
        return {"vectors": vectors}

    def answer(self, items: Sequence[Any], rows: list[list[Row]], outputs: list[list[Output]]) -> list[np.ndarray]:
        """The vectors, float32 [4] each."""
        return [output[0]["vectors"] for output in outputs]


def main() -> int:
    from spanbert_jax.service.server import bind, run
    from spanbert_jax.service.service import Checkpoint, Service, Settings

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows-per-second", type=float, required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    models = [HashModel(f"fake/{name}", arguments.rows_per_second) for name in ("embed", "pieces", "spans")]
    loaded: Any = SimpleNamespace(
        task="",
        labels=(),
        piece_heads=(),
        tokenizer=SimpleNamespace(fingerprint="fake"),
        config=SimpleNamespace(model=SimpleNamespace(embed=4)),
    )
    served = ServedModels._make([*models, None])
    # One second of work may wait. So an accepted request is answered within little more than a second.
    limits = Limits(queued_inputs=max(1, int(arguments.rows_per_second)))
    service = Service({"fake": Checkpoint("fake", loaded, served)}, Settings(limits=limits))
    with bind("127.0.0.1", arguments.port) as listening:
        print(f"Listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        return run(service, listening, True, 5.0)


if __name__ == "__main__":
    raise SystemExit(main())
