"""An objective without a model, whose loss or gradient a batch can spoil, for tests of numbers that are not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.training.step import Objective


def init(key: jax.Array) -> dict[str, Any]:
    """Parameters with names that the tables of axes know."""
    return {"embeddings": {"word": jnp.arange(12.0).reshape(4, 3) / 7}, "mlm": {"bias": jnp.arange(4.0) - 1.3}}


def batch(factors: float | np.ndarray = 1.0, roots: float | np.ndarray = 4.0) -> dict[str, np.ndarray]:
    """A batch of 8 rows. A factor that is NaN makes the row's loss NaN. A root of 0 makes the gradient of mlm/bias
    NaN, and the loss stays finite: the square root's gradient at 0 is infinite, and infinity times 0 is NaN."""
    return {"factor": np.full(8, factors, np.float32), "root": np.full(8, roots, np.float32)}


def _loss(params: Any, batch: Any, *_: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)) / 8
    roots = jnp.sqrt(batch["root"] + 0 * params["mlm"]["bias"][3])  # [rows]
    return jnp.sum(squares * batch["factor"] + roots), {"pieces": jnp.float32(len(batch["root"]))}


# The loss of a sound batch is the sum of the squares of all parameters, and a constant.
OBJECTIVE = Objective(lambda batch: None, _loss)
