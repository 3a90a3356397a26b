"""The attention kernel that drops out: the XLA kernel's results, gradients and masks, however the batch is divided.

Triton is interpreted on the CPU and lowered for CUDA, and compared where there is a GPU.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.model.attention import attention
from spanbert_jax.model.dropout import keep_mask
from spanbert_jax.model.encoder import encode
from spanbert_jax.model.kernels.interpreter import interpreted
from tests.support.attention_agreement import (
    BF16,
    F32,
    assert_agrees,
    random_qkv,
    seeds_of,
    small_model,
    values_and_gradients,
)
from tests.support.devices import on_four_devices
from tests.support.kernels import arrays_between, cuda_calls, kernel_calls


@pytest.fixture(autouse=True)
def _interpreted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels run on the CPU, except in tests of what a GPU gets."""
    with contextlib.nullcontext() if request.node.name.endswith(("_gpu", "_length")) else interpreted():
        yield


@pytest.mark.parametrize(
    ("lengths", "shape", "dtype", "rate"),
    [
        ((128, 128), (128, 3, 64), F32, 0.0),  # no padding, whole blocks
        ((192, 100, 1, 0), (192, 2, 32), F32, 0.1),
        ((192, 100, 1, 0), (192, 2, 32), BF16, 0.0),
        ((37, 12, 0), (37, 1, 16), F32, 0.3),  # less than a block
        ((200, 65, 64), (200, 2, 16), F32, 0.3),  # no multiple of a block
        ((200, 65, 64), (200, 1, 128), BF16, 0.3),
    ],
)
def test_triton_agrees_with_xla_and_drops_the_same_probabilities(
    lengths: tuple[int, ...], shape: tuple[int, int, int], dtype: jnp.dtype, rate: float
) -> None:
    assert_agrees("triton", lengths, shape, dtype, rate)


def test_what_triton_drops_is_keep_masks_to_the_bit() -> None:
    """Queries of 0 give every key the same probability, and values of one 1 each show which keys are left."""
    rate = 0.3
    qkv = jnp.zeros((2, 100, 3, 4, 128)).at[:, :, 2].set(jnp.eye(100, 128)[:, None])
    result = jax.jit(lambda qkv: attention(qkv, jnp.array([100, 100]), seeds_of(2), rate, "triton"))(qkv)
    kept = keep_mask(seeds_of(2), (2, 4, 100, 100), rate).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(result[..., :100] > 0, kept)
    np.testing.assert_allclose(result[..., :100], kept / (100 * (1 - rate)), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_padded_query_gives_0_and_neither_padding_nor_what_comes_back_to_it_changes_anything(
    rate: float,
) -> None:
    lengths = (70, 64, 12, 1)
    qkv, cotangent = random_qkv(lengths, (70, 2, 16), F32, 2)
    valid = np.arange(70) < np.array(lengths)[:, None]
    other = jnp.where(valid[:, :, None, None, None], qkv, 1e3 * random_qkv(lengths, (70, 2, 16), F32, 3)[0])
    coming = jnp.where(valid[:, :, None, None], cotangent, 1e3)
    expected = values_and_gradients("triton", qkv, cotangent, lengths, rate)
    for x, y in zip(values_and_gradients("triton", other, coming, lengths, rate), expected, strict=True):
        np.testing.assert_array_equal(x, y)
        assert not np.any(x[~valid])


def test_attention_dropout_takes_the_triton_kernel_in_training_and_in_evaluation() -> None:
    (model, params), (xla, _) = (small_model(name, attention_dropout=0.5, dropout=0.0) for name in ("triton", "xla"))
    ids, lengths = np.random.default_rng(1).integers(0, 131, (2, 20)), np.array([20, 9])
    valid = np.arange(20) < lengths[:, None]

    def loss(params: dict[str, Any], which: Any) -> tuple[jax.Array, jax.Array]:
        hidden = encode(which, params, ids, lengths, dropout_key=jnp.uint32(3))
        return jnp.sum(jnp.sin(hidden) * valid[..., None]) / valid.sum(), hidden

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (ours, trained), (theirs, expected) = gradient(params, model), gradient(params, xla)
    assert kernel_calls(lambda params: gradient(params, model), params)
    np.testing.assert_allclose(trained[valid], expected[valid], rtol=0, atol=2e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-5), ours, theirs)
    evaluate = jax.jit(lambda params: encode(model, params, ids, lengths))
    evaluated = evaluate(params)
    assert kernel_calls(evaluate, params) and np.abs(evaluated - trained)[valid].max() > 0.1


MESHES = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spanbert_jax.config import MESH_AXES
from spanbert_jax.model.attention import attention
from spanbert_jax.model.kernels.interpreter import interpreted
from tests.support.attention_agreement import F32, random_qkv, seeds_of
from tests.support.kernels import kernel_calls

lengths = np.array([33, 20, 0, 5, 32, 1, 33, 7], np.int32)
arrays = *random_qkv(lengths, (33, 4, 16), F32), lengths, seeds_of(8).T

def loss(qkv, weights, lengths, seeds, kernel, rate=0.3):
    return jnp.sum(weights * attention(qkv, lengths, seeds.T, rate, kernel))

def gradients(kernel):
    return jax.grad(functools.partial(loss, kernel=kernel))

expected = jax.jit(gradients("xla"))(*arrays)
same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
assert np.abs(expected - jax.jit(jax.grad(functools.partial(loss, kernel="xla", rate=0)))(*arrays)).max() > 0.1

for sizes, manual, seen in (
    ((1, 2, 2), set(), [(4,), (2,), (2, 4), (4, 33, 3, 2, 16)]),
    ((2, 1, 2), {"data"}, [(4,), (2,), (2, 4), (4, 33, 3, 2, 16)]),  # as the train step calls it
):
    mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh), interpreted():
        rows = NamedSharding(mesh, P(("data", "fsdp")))
        step = gradients("triton")
        if manual:
            step = jax.shard_map(step, in_specs=P("data"), out_specs=P("data"), axis_names=manual, check_vma=False)
        result = jax.jit(step)(*(jax.device_put(x, rows) for x in arrays))
        for inputs in kernel_calls(step, *arrays):  # lengths, heads, seeds and qkv of a device
            assert inputs[:4] == seen, (sizes, manual, inputs)
        same(result, expected)
        if sizes == (1, 2, 2):  # what does not divide evenly is computed everywhere
            few = arrays[0][:3, :, :, :3], lengths[:3], seeds_of(3), 0.3
            odd = jax.jit(lambda: attention(*few, "triton"))
            assert kernel_calls(odd) == [[(3,), (3,), (2, 3), (3, 33, 3, 3, 16)]]
            same(odd()[:2, :20], attention(*few)[:2, :20])
print("same")
"""


def test_triton_on_four_devices_gives_the_gradients_and_the_masks_of_one_each_device_its_rows_and_heads() -> None:
    assert on_four_devices(MESHES) == "same"


def test_for_cuda_triton_is_three_kernels_that_read_qkv_in_place_without_a_square_of_the_length() -> None:
    def loss(qkv: jax.Array, lengths: jax.Array, seeds: jax.Array) -> jax.Array:
        return jnp.sum(attention(qkv, lengths, seeds, 0.1, "triton").astype(jnp.float32))

    shapes = ((2, 384, 3, 4, 64), jnp.bfloat16), ((2,), jnp.int32), ((2, 2), jnp.uint32)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    targets = cuda_calls(jax.grad(loss), *arguments)
    assert len(targets) == 3 and all("triton" in target for target in targets)
    calls = kernel_calls(jax.grad(loss), *arguments)
    assert len(calls) == 3 and all(inputs[3] == (2, 384, 3, 4, 64) for inputs in calls)
    assert not [shape for shape in arrays_between(jax.grad(loss), *arguments) if shape.count(384) > 1]


def test_triton_agrees_with_xla_on_a_gpu() -> None:
    try:
        device = jax.local_devices(backend="gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU; where there is one, JAX_PLATFORMS=cuda compares Triton's kernels there")
    for lengths, shape, rate in (
        ((512, 512), (512, 4, 64), 0.0),
        ((512, 100, 1, 0), (512, 16, 64), 0.1),
        ((320, 77), (320, 2, 32), 0.3),
        ((37, 12, 0), (37, 2, 128), 0.1),
        ((200, 65, 64), (200, 2, 16), 0.1),
    ):
        with jax.default_device(device):
            assert_agrees("triton", lengths, shape, BF16, rate)
