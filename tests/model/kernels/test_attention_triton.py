"""The attention kernel that drops out: the XLA kernel's results, gradients and masks, however the batch is divided.

Triton is interpreted on the CPU and lowered for CUDA, and compared where there is a GPU.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.model import attention as module
from spanbert_jax.model.attention import attention
from spanbert_jax.model.dropout import keep_mask
from spanbert_jax.model.encoder import encode
from spanbert_jax.model.kernels.attention_triton import triton_attention
from tests.support.attention_agreement import (
    BF16,
    F32,
    assert_agrees,
    random_qkv,
    seeds_of,
    small_model,
    values_and_gradients,
    with_logits_near_3000,
)
from tests.support.devices import on_four_devices


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes "triton" run on the CPU; the list gets the rate whenever it is traced, 0 without seeds."""
    calls: list[float] = []

    def triton(qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
        calls.append(0.0 if seeds is None else rate)
        return triton_attention(qkv, lengths, heads, seeds, rate, interpret=True)

    monkeypatch.setitem(module._FLASH, "triton", triton)
    return calls


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
    interpreted: list[float], lengths: tuple[int, ...], shape: tuple[int, int, int], dtype: jnp.dtype, rate: float
) -> None:
    assert_agrees("triton", lengths, shape, dtype, rate)
    assert set(interpreted) == {rate}


def test_what_triton_drops_is_keep_masks_to_the_bit(interpreted: list[float]) -> None:
    """Queries of 0 give every key the same probability, and values of one 1 each show which keys are left."""
    rate = 0.3
    qkv = jnp.zeros((2, 100, 3, 4, 128)).at[:, :, 2].set(jnp.eye(100, 128)[:, None])
    result = jax.jit(lambda qkv: attention(qkv, jnp.array([100, 100]), seeds_of(2), rate, "triton"))(qkv)
    kept = keep_mask(seeds_of(2), (2, 4, 100, 100), rate).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(result[..., :100] > 0, kept)
    np.testing.assert_allclose(result[..., :100], kept / (100 * (1 - rate)), rtol=1e-5)
    assert interpreted == [rate]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_padded_query_gives_0_and_neither_padding_nor_what_comes_back_to_it_changes_anything(
    interpreted: list[float], rate: float
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
    assert interpreted


def test_triton_keeps_float32_logits_at_spanbert_larges_magnitudes(interpreted: list[float]) -> None:
    lengths = (128, 50)
    qkv, cotangent = random_qkv(lengths, (128, 2, 64), BF16, 6)
    arrays = with_logits_near_3000(qkv), cotangent
    valid = np.arange(128) < np.array(lengths)[:, None]
    ours, expected = (values_and_gradients(kernel, *arrays, lengths)[0] for kernel in ("triton", "xla"))
    np.testing.assert_allclose(ours[valid], expected[valid], rtol=0, atol=2e-2)  # bfloat16 logits: off by about 3
    assert interpreted


def test_attention_dropout_takes_the_triton_kernel_in_training_and_in_evaluation(interpreted: list[float]) -> None:
    (model, params), (xla, _) = (small_model(name, attention_dropout=0.5, dropout=0.0) for name in ("triton", "xla"))
    ids, lengths = np.random.default_rng(1).integers(0, 131, (2, 20)), np.array([20, 9])
    valid = np.arange(20) < lengths[:, None]

    def loss(params: dict[str, Any], which: Any) -> tuple[jax.Array, jax.Array]:
        hidden = encode(which, params, ids, lengths, dropout_key=jnp.uint32(3))
        return jnp.sum(jnp.sin(hidden) * valid[..., None]) / valid.sum(), hidden

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (ours, trained), (theirs, expected) = gradient(params, model), gradient(params, xla)
    assert set(interpreted) == {0.5}
    np.testing.assert_allclose(trained[valid], expected[valid], rtol=0, atol=2e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-5), ours, theirs)
    interpreted.clear()
    evaluated = jax.jit(lambda params: encode(model, params, ids, lengths))(params)
    assert set(interpreted) == {0.0} and np.abs(evaluated - trained)[valid].max() > 0.1


MESHES = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spanbert_jax.model import attention as module
from spanbert_jax.model.kernels.attention_triton import triton_attention
from tests.support.attention_agreement import F32, random_qkv, seeds_of

shapes = []
def triton(qkv, lengths, heads, seeds, rate):
    shapes.append((qkv.shape, heads.shape, seeds.shape))
    return triton_attention(qkv, lengths, heads, seeds, rate, interpret=True)

module._FLASH["triton"] = triton
lengths = np.array([33, 20, 0, 5, 32, 1, 33, 7], np.int32)
arrays = *random_qkv(lengths, (33, 4, 16), F32), lengths, seeds_of(8).T

def loss(qkv, weights, lengths, seeds, kernel, rate=0.3):
    return jnp.sum(weights * module.attention(qkv, lengths, seeds.T, rate, kernel))

def gradients(kernel):
    return jax.grad(functools.partial(loss, kernel=kernel))

expected = jax.jit(gradients("xla"))(*arrays)
same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
assert np.abs(expected - jax.jit(jax.grad(functools.partial(loss, kernel="xla", rate=0)))(*arrays)).max() > 0.1

for sizes, manual, seen in (
    ((1, 2, 2), set(), ((4, 33, 3, 2, 16), (2,), (2, 4))),
    ((2, 1, 2), {"data"}, ((4, 33, 3, 2, 16), (2,), (2, 4))),  # as the train step calls it
):
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P(("data", "fsdp")))
        step = gradients("triton")
        if manual:
            step = jax.shard_map(step, in_specs=P("data"), out_specs=P("data"), axis_names=manual, check_vma=False)
        shapes.clear()
        result = jax.jit(step)(*(jax.device_put(x, rows) for x in arrays))
        assert set(shapes) == {seen}, (sizes, manual, shapes)
        same(result, expected)
        if sizes == (1, 2, 2):  # what does not divide evenly is computed everywhere
            few = arrays[0][:3, :, :, :3], lengths[:3], seeds_of(3), 0.3
            odd = jax.jit(lambda: module.attention(*few, "triton"))()
            assert shapes[-1] == ((3, 33, 3, 3, 16), (3,), (2, 3))
            same(odd[:2, :20], module.attention(*few)[:2, :20])
print("same")
"""


def test_triton_on_four_devices_gives_the_gradients_and_the_masks_of_one_each_device_its_rows_and_heads() -> None:
    assert on_four_devices(MESHES) == "same"


def test_for_cuda_triton_is_three_kernels_that_read_qkv_in_place_without_a_square_of_the_length() -> None:
    def loss(qkv: jax.Array, lengths: jax.Array, seeds: jax.Array) -> jax.Array:
        return jnp.sum(attention(qkv, lengths, seeds, 0.1, "triton").astype(jnp.float32))

    shapes = ((2, 384, 3, 4, 64), jnp.bfloat16), ((2,), jnp.int32), ((2, 2), jnp.uint32)
    step = jax.jit(jax.grad(loss)).trace(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    text = step.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call" in line]
    assert all("@__gpu$xla.gpu.triton(" in line for line in calls)
    names = [re.search(r'name = "(\w+)"', line).group(1) for line in calls]  # type: ignore[union-attr]
    assert names == ["_forward_kernel", "_keys_kernel", "_queries_kernel"]
    assert all("%arg0" in line.split("{")[0] for line in calls)
    assert "384x384" not in text


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
