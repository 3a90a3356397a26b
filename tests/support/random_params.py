"""Random parameters of the small model with every combination of heads, and their comparison bit for bit."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from spanbert_jax.convert.names import Params
from spanbert_jax.model.encoder import padded_vocab
from spanbert_jax.model.parameters import parameter_shapes
from tests.support.synthetic import VOCAB, small_config

MODEL, ROWS = small_config().model, padded_vocab(VOCAB)
COMBINATIONS: dict[str, dict[str, int]] = {
    "encoder": {},
    "mlm": {"mlm": 0},
    "sbo": {"sbo": 15},
    "pretraining": {"mlm": 0, "sbo": 15},
    "next_sentence": {"pooler": 0, "mlm": 0, "nsp": 0},
    "pooled": {"pooler": 0},
    "question_answering": {"qa_outputs": 0},
    "token_classification": {"classifier": 5},
    "sequence_classification": {"pooler": 0, "classifier": 3},
    "all": {"pooler": 0, "mlm": 0, "sbo": 7, "qa_outputs": 0, "classifier": 1},
}


@functools.cache
def _shapes(heads: tuple[tuple[str, int], ...]) -> Any:
    return parameter_shapes(MODEL, VOCAB, dict(heads))


def shapes(heads: Mapping[str, int]) -> Any:
    """Shapes of our parameters: of the encoder, and of the heads, each with its size as parameter_shapes takes it."""
    return _shapes(tuple(heads.items()))


def filled(tree: Any, fill: Any) -> Any:
    """`tree` of shapes -> the same tree of `fill(shape)`."""
    return {name: filled(part, fill) for name, part in tree.items()} if isinstance(tree, dict) else fill(tree)


def random_bits(sizes: dict[str, int], seed: int = 0) -> Params:
    """Parameters of any finite float32: denormals, -0.0 and the largest too. Rows that pad the vocabulary are 0."""
    rng = np.random.default_rng(seed)

    def fill(shape: tuple[int, ...]) -> np.ndarray:
        x = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
        x = np.where(np.isfinite(x), x, np.float32(-0.0))
        if shape[0] == ROWS:
            x[VOCAB:] = 0
        return x

    return filled(shapes(sizes), fill)


def assert_same_bits(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)
