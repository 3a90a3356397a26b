"""A service of one checkpoint whose models are fakes: a vector is made from a hash of the text. It needs no JAX."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.service.service import Checkpoint, Service, Settings
from spanbert_jax.serving.scheduler import Output, Row
from spanbert_jax.serving.served_models import ServedModels
from spanbert_jax.serving.text_models import Text
from tests.support.fake_model import FakeModel, value
from tests.support.tuned import WORDPIECE

EMBED = Config().model.embed


class FakeEmbedding(FakeModel):
    """The vector of a text is `vector(text)`."""

    longest = 16

    def rows(self, items: Sequence[Any]) -> list[list[Row]]:
        texts = [item.text if isinstance(item, Text) else item for item in items]
        return super().rows([[[ord(char) for char in text][:16] or [0]] for text in texts])

    def answer(self, items: Sequence[Any], rows: list[list[Row]], outputs: list[list[Output]]) -> list[Any]:
        return [np.full(EMBED, output[0]["value"], np.float32) for output in outputs]


def vector(text: str) -> np.ndarray:
    return np.full(EMBED, value([ord(char) for char in text]), np.float32)


def fake_service(settings: Settings, is_ready: bool = True) -> tuple[Service, FakeEmbedding]:
    """A ready service, and its model that embeds texts of up to 16 characters."""
    models = [FakeEmbedding(f"fake/{name}", ready=None if is_ready else ()) for name in ("embed", "pieces", "spans")]
    loaded: Any = SimpleNamespace(task="", labels=(), piece_heads=(), tokenizer=WORDPIECE, config=Config())
    served: Any = ServedModels(*models, None)  # type: ignore[arg-type]
    return Service({"fake": Checkpoint("fake", loaded, served)}, settings), models[0]


def hold_device(service: Service, model: FakeEmbedding) -> threading.Event:
    """Keeps two batches on the device until the event is set."""
    model.gate.clear()
    for _ in range(2):
        service.engine.submit(model, [Text("held")], 60)
        assert model.begun.acquire(timeout=30)
    return model.gate
