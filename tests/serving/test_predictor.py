"""Rows through a function of batches: each once, in their order, by programs that are compiled once."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from spanbert_jax.batch import NumpyBatch
from spanbert_jax.batches.shapes import Shape, plan_batches, shape_table
from spanbert_jax.config import MeshConfig
from spanbert_jax.serving.predictor import Predictor
from spanbert_jax.training.sharding import batch_sharding, make_mesh

TABLE = shape_table(24, 2, 1)


@pytest.fixture
def layout() -> NamedSharding:
    return batch_sharding(make_mesh(MeshConfig(), jax.devices()[:1]))


class Counted:
    """Sums each row, times the parameter, and keeps the shapes that it was traced for."""

    def __init__(self) -> None:
        self.traced: list[tuple[int, ...]] = []

    def __call__(self, params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        self.traced.append(batch["values"].shape)
        return {"sum": params["factor"] * jnp.sum(batch["values"], axis=1)}


def batches(rows: list[np.ndarray]) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
    for indices, shape in plan_batches(np.array([len(row) for row in rows]), TABLE):
        values = np.zeros(shape, np.int32)
        for place, row in enumerate(indices):
            if row >= 0:
                values[place, : len(rows[row])] = rows[row]
        yield indices, {"values": values}


def random_rows(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 100, rng.integers(1, 25)) for _ in range(count)]


def abstract(shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
    return {"values": jax.ShapeDtypeStruct(shape, np.int32)}


def test_rows_come_back_in_their_order_each_shape_traced_once(layout: NamedSharding) -> None:
    counted = Counted()
    predictor = Predictor(counted, layout)
    params = predictor.place({"factor": np.float32(2)})
    for seed in (0, 1):
        rows, shown = random_rows(seed, 90), []
        outputs = predictor.outputs(params, batches(rows), len(rows), shown.append)
        assert [float(output["sum"]) for output in outputs] == [2 * row.sum() for row in rows]
        assert shown == sorted(shown) and shown[-1] == 1.0
    assert len(counted.traced) == len(set(counted.traced)) < len(TABLE)


def test_only_the_shapes_that_are_met_are_compiled_and_after_warm_up_none(layout: NamedSharding) -> None:
    counted = Counted()
    predictor = Predictor(counted, layout)
    params = predictor.place({"factor": np.float32(1)})
    rows = random_rows(2, 5)
    met = {shape for _, shape in plan_batches(np.array([len(row) for row in rows]), TABLE)}
    predictor.outputs(params, batches(rows), len(rows))
    assert set(counted.traced) == met
    shown: list[float] = []
    predictor.warm_up(params, [abstract(shape) for shape in TABLE], shown.append)
    assert sorted(counted.traced) == sorted(TABLE) and shown[-1] == 1.0 and len(shown) == len(TABLE)
    predictor.outputs(params, batches(random_rows(3, 700)), 700)
    assert len(counted.traced) == len(TABLE)


def test_parameters_may_change_from_call_to_call(layout: NamedSharding) -> None:
    predictor, rows = Predictor(Counted(), layout), random_rows(4, 3)
    for factor in (1.0, 3.0):
        outputs = predictor.outputs(predictor.place({"factor": np.float32(factor)}), batches(rows), len(rows))
        assert [float(output["sum"]) for output in outputs] == [factor * row.sum() for row in rows]
