"""A small model with a span decoder and random parameters, and the probabilities of strings in one span of a row."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.pretraining_heads import DECODER, HeadLoss, PretrainingModel
from tests.support.synthetic import small_config

LIMIT, LENGTH = 4, 12  # pieces in a span; positions in a row
LENGTHS = (9, 12)  # of the two rows
SPANS = ((3, 6), (1, 8))  # positions of each row's [MASK]s


def decoder_config(init_from: str = "", **sections: dict[str, Any]) -> Config:
    """Two encoder layers and two decoder layers of width 24."""
    model = {"decoder_layers": 2, "dropout": 0.0, "attention_dropout": 0.0, **sections.pop("model", {})}
    masking = {"collapse_spans": True, "max_span_offset": LIMIT, **sections.pop("masking", {})}
    return small_config(init_from, model=model, masking=masking, **sections)


@functools.cache
def random_model(vocab: int, family: str = "bert") -> tuple[PretrainingModel, dict[str, Any]]:
    """The model of `decoder_config` with parameters that are nowhere at their initial values."""
    model = pretraining_heads.pretraining_model(decoder_config(model={"family": family}), vocab, "cpu")
    shapes, rng = (
        jax.eval_shape(lambda: pretraining_heads.init_params(model, jax.random.key(0))),
        np.random.default_rng(0),
    )

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(float(path[-1].key == "scale"), 0.3, leaf.shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def batch_of(strings: Sequence[tuple[Sequence[int], Sequence[int]]], row: int, vocab: int) -> dict[str, np.ndarray]:
    """A collapsed batch of copies of one of the two rows, each with two strings, one for each of its [MASK]s."""
    slots = max(len(first) + len(second) for first, second in strings)
    ids = np.random.default_rng(row).integers(5, vocab, LENGTH)
    ids[list(SPANS[row])] = 4
    ids[LENGTHS[row] :] = 0
    batch = {
        "input_ids": np.tile(ids.astype(np.int32), (len(strings), 1)),
        "lengths": np.full(len(strings), LENGTHS[row], np.int32),
    }
    names = ("masked_positions", "masked_ids", "span_left", "span_right", "span_offset", "replacement")
    batch |= {name: np.zeros((len(strings), slots), np.int32) for name in names}
    batch |= {name: np.zeros((len(strings), slots), np.float32) for name in ("masked_weights", "span_weights")}
    for number, pair in enumerate(strings):
        pieces = [(at, *one) for at, string in zip(SPANS[row], pair, strict=True) for one in enumerate(string)]
        for slot, (at, offset, piece) in enumerate(pieces):
            values = (at, piece, at - 1, at + 1, offset, 1)
            for name, value in zip(names, values, strict=True):
                batch[name][number, slot] = value
            batch["masked_weights"][number, slot] = batch["span_weights"][number, slot] = 1
    return batch


def losses_of(model: PretrainingModel, params: dict[str, Any], batch: dict[str, np.ndarray]) -> HeadLoss:
    """The decoder's losses, in NumPy."""
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    with jax.default_matmul_precision("highest"):
        found = _losses(model, params, arrays)
    return HeadLoss(*jax.tree.map(np.asarray, tuple(found)))


@functools.partial(jax.jit, static_argnums=0)
def _losses(model: PretrainingModel, params: Any, batch: Any) -> Any:
    return pretraining_heads.losses(model, params, batch, heads=(DECODER,))[DECODER.name]
