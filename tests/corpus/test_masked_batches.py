"""Input: a batch is a pure function of the step, whatever the devices, the start or the neighbours."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.batch import abstract_batch, empty_batch, slots
from spanbert_jax.config import Config
from spanbert_jax.corpus.masked_batches import eval_batches, train_batches
from tests.support.devices import on_four_devices
from tests.support.fake_blocks import LENGTH, TOKENIZER, FakeBlocks, block_ids, make_config, one_device


def train(config: Config, blocks: FakeBlocks, start: int, stop: int) -> list[dict[str, np.ndarray]]:
    return to_numpy(train_batches(config, blocks, TOKENIZER, one_device(), start, stop))  # type: ignore[arg-type]


def held_out(config: Config, blocks: FakeBlocks, limit: int = 0) -> list[dict[str, np.ndarray]]:
    return to_numpy(eval_batches(config, blocks, TOKENIZER, one_device(), limit))  # type: ignore[arg-type]


def to_numpy(batches: Iterator[dict[str, jax.Array]]) -> list[dict[str, np.ndarray]]:
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in batches]


def assert_equal(got: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_shapes_and_types_of_a_batch() -> None:
    batch = train(make_config(), FakeBlocks(21), 0, 1)[0]
    config = make_config()
    empty, abstract = empty_batch(config, 8, LENGTH, slots(config)), abstract_batch(config)
    assert batch.keys() == empty.keys() == abstract.keys()
    for name, value in batch.items():
        assert value.shape == empty[name].shape == abstract[name].shape
        assert value.dtype == empty[name].dtype == abstract[name].dtype
    np.testing.assert_array_equal(batch["lengths"], (batch["input_ids"] != TOKENIZER.pad_id).sum(1))


@pytest.mark.parametrize(("lengths", "steps"), [(1, 3), (3, 3)])
def test_every_block_comes_once_an_epoch(lengths: int, steps: int) -> None:
    blocks, config = FakeBlocks(21), make_config(lengths=lengths)
    batches = [block_ids(batch) for batch in train(config, blocks, 0, 3 * steps)]
    epochs = [[i for batch in batches[k : k + steps] for i in batch] for k in range(0, 3 * steps, steps)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = [block_ids(batch) for batch in train(make_config(seed=2, lengths=lengths), blocks, 0, steps)]
    assert other != batches[:steps]


def test_rows_of_few_lengths_hold_as_many_positions_as_the_longest_and_less_padding() -> None:
    blocks = FakeBlocks(2000)
    padded, bucketed = (train(make_config(64, lengths=lengths), blocks, 0, 24) for lengths in (1, 3))
    shapes = {batch["input_ids"].shape for batch in bucketed}
    assert shapes == {(64 * LENGTH // 8 // length * 8, length) for length in (16, 24, 32)}
    padding = [
        1 - sum(batch["lengths"].sum() for batch in batches) / sum(batch["input_ids"].size for batch in batches)
        for batches in (padded, bucketed)
    ]
    expected = 1 - (blocks.lengths + 2).mean() / LENGTH
    assert padding[0] == pytest.approx(expected, abs=0.03) and padding[1] < 0.6 * expected
    for batch in bucketed:
        length = batch["input_ids"].shape[1]
        assert batch["masked_positions"].shape[1] == 8 and batch["lengths"].max() <= length


def test_starting_at_a_step_gives_the_batches_of_an_uninterrupted_run() -> None:
    blocks, config = FakeBlocks(21), make_config(rate=0.2, final_rate=0.1, rate_steps=6)
    whole = train(config, blocks, 0, 9)
    assert_equal(train(config, blocks, 4, 9), whole[4:])
    assert_equal(train(config, blocks, 0, 9), whole)
    rates = [batch["masked_weights"].sum() / batch["lengths"].sum() for batch in whole]
    assert rates[0] > 1.5 * rates[8]


def test_masks_follow_the_block_and_the_epoch_not_the_batch_nor_its_length() -> None:
    blocks = FakeBlocks(24)

    def rows(batch_size: int, lengths: int, epoch: int = 0) -> dict[int, bytes]:
        """Block -> its row without padding."""
        steps = -(-24 // batch_size)
        batches = train(make_config(batch_size, lengths=lengths), blocks, epoch * steps, (epoch + 1) * steps)
        found = {}
        for batch in batches:
            for row, block in zip(np.flatnonzero(batch["lengths"]), block_ids(batch), strict=True):
                used = batch["masked_weights"][row] > 0
                parts = [
                    batch[name][row][used] for name in ("masked_positions", "masked_ids", "span_left", "span_offset")
                ]
                found[block] = b"".join(
                    part.tobytes() for part in [batch["input_ids"][row][: batch["lengths"][row]], *parts]
                )
        return found

    first = rows(8, 1)
    assert len(first) == 24 and first == rows(6, 1) == rows(24, 1) == rows(24, 4)
    second = rows(8, 1, epoch=1)
    assert sum(first[block] != second[block] for block in range(24)) >= 23


def test_evaluation_visits_every_block_once_with_the_same_masks() -> None:
    blocks, config = FakeBlocks(20), make_config()
    batches = held_out(config, blocks)
    assert sorted(i for batch in batches for i in block_ids(batch)) == list(range(20))
    assert_equal(held_out(make_config(seed=77, final_rate=0.5, rate_steps=3), blocks), batches_padded(batches, 0.5))
    empty = batches[-1]["lengths"] == 0
    assert len(batches) == 3 and empty.sum() == 1
    assert all(not value[empty].any() for value in batches[-1].values())  # [PAD] is 0 here


def batches_padded(batches: list[dict[str, np.ndarray]], rate: float) -> list[dict[str, np.ndarray]]:
    """The same batches with the slots that a rate asks for."""
    slots = -(-int(np.ceil(rate * (LENGTH - 2))) // 8) * 8
    return [
        {k: np.pad(v, [(0, 0), (0, slots - 8)]) if v.ndim == 2 and v.shape[1] == 8 else v for k, v in batch.items()}
        for batch in batches
    ]


@pytest.mark.parametrize(("limit", "visited"), [(8, 8), (10, 10), (500, 21)])
def test_a_limited_evaluation_visits_always_the_same_blocks(limit: int, visited: int) -> None:
    blocks, seen = FakeBlocks(21), []
    for config in (make_config(), make_config(5, seed=7, lengths=3)):
        seen.append(sorted(i for batch in held_out(config, blocks, limit) for i in block_ids(batch)))
    assert seen[0] == seen[1] and len(set(seen[0])) == visited


PARTS = """
import json
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.support.fake_blocks import TOKENIZER, FakeBlocks, make_config
from spanbert_jax.batches.feed import held_places
from spanbert_jax.corpus import masked_batches as under_test

def digest(batches, sharding):
    batches = list(batches)
    assert all(v.sharding.is_equivalent_to(sharding, v.ndim) for b in batches for v in b.values())
    return [{k: np.asarray(v).tolist() for k, v in b.items()} for b in batches]

blocks, config, out = FakeBlocks(21), make_config(), []
for shape in ((2, 1, 1), (1, 2, 2), (2, 2, 1)):
    mesh = Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), ("data", "fsdp", "model"))
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    train = under_test.train_batches(config, blocks, TOKENIZER, sharding, 2, 6)
    held_out = under_test.eval_batches(config, blocks, TOKENIZER, sharding, 0)
    out.append([digest(train, sharding), digest(held_out, sharding)])

# One of several processes, with the middle two of four devices: only their rows are computed.
class Held:
    num_devices = 4
    shard_shape = sharding.shard_shape
    def addressable_devices_indices_map(self, shape):
        return dict(list(sharding.addressable_devices_indices_map(shape).items())[1:3])
print(json.dumps([out, held_places(Held(), 8).tolist()]))
"""


def test_batches_are_the_same_on_one_two_and_four_devices() -> None:
    meshes, held = json.loads(on_four_devices(PARTS))
    blocks, config = FakeBlocks(21), make_config()
    expected = [{name: value.tolist() for name, value in batch.items()} for batch in train(config, blocks, 2, 6)]
    assert [on_mesh for on_mesh, _ in meshes] == [expected] * 3

    def rows(batches: list[dict[str, Any]]) -> list[list[Any]]:  # more devices have more empty rows
        each = (list(row) for batch in batches for row in zip(*(batch[name] for name in sorted(batch)), strict=True))
        return [row for row in each if any(np.any(value) for value in row)]

    evaluated = rows([{name: value.tolist() for name, value in batch.items()} for batch in held_out(config, blocks)])
    assert len(evaluated) == 21 and [rows(on_mesh) for _, on_mesh in meshes] == [evaluated] * 3
    assert held == [2, 3, 4, 5]


def test_only_the_rows_that_are_held_are_read() -> None:
    blocks, config = FakeBlocks(4000), make_config()
    next(iter(train_batches(config, blocks, TOKENIZER, one_device(), 0, 1)))  # type: ignore[arg-type]
    assert len(blocks.reads) == 8
