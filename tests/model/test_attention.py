"""The attention kernels: each agrees with the XLA one, padding or not, and each runs where it can and nowhere else.

Splash is interpreted on the CPU; cuDNN is lowered for CUDA, and compared where there is a GPU. test_attention_triton.py
has the kernel that drops out.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.model.attention import attention
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
    with_logits_near,
)
from tests.support.devices import on_four_devices
from tests.support.kernels import arrays_between, cuda_calls, kernel_calls


@pytest.fixture(autouse=True)
def _interpreted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels run on the CPU, except in tests of cuDNN."""
    with contextlib.nullcontext() if "cudnn" in request.node.name else interpreted():
        yield


@pytest.mark.parametrize(
    ("lengths", "shape", "dtype"),
    [
        ((128, 128), (128, 3, 64), F32),  # no padding
        ((256, 100, 1, 0), (256, 2, 64), F32),
        ((256, 100, 1, 0), (256, 2, 64), BF16),
        ((37, 12, 0), (37, 1, 16), F32),  # no multiple of 128
        ((640, 130, 513), (640, 2, 32), F32),  # several blocks of keys, whose gradients of the queries add up
        ((640, 130, 513), (640, 2, 32), BF16),
    ],
)
def test_splash_agrees_with_xla(lengths: tuple[int, ...], shape: tuple[int, int, int], dtype: jnp.dtype) -> None:
    assert_agrees("splash", lengths, shape, dtype)


@pytest.mark.parametrize(
    ("kernel", "window"), [("dense", 0), ("dense", 24), ("banded", 24), ("splash", 0), ("splash", 24), ("triton", 0)]
)
def test_bfloat16_logits_of_magnitude_10000_stay_finite_and_give_the_softmax_of_float64(
    kernel: str, window: int
) -> None:
    lengths, places = (128, 50), np.arange(128)
    qkv, cotangent = random_qkv(lengths, (128, 2, 64), BF16, 6)
    qkv = with_logits_near(1.2e4, qkv)
    query, key, value = np.float64(qkv).transpose(2, 0, 3, 1, 4)  # [batch, heads, length, head_dim] each
    logits = query @ key.swapaxes(2, 3) / 8
    assert np.abs(logits).max() > 10_000
    valid = places < np.array(lengths)[:, None]
    seen = valid[:, None, None] & (np.abs(places[:, None] - places) <= (window or 128))
    logits = np.where(seen, logits, -np.inf)
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True, where=seen, initial=-1e5))
    expected = (weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9) @ value).swapaxes(1, 2)
    result, *gradients = values_and_gradients(kernel, qkv, cotangent, lengths, window=window)
    np.testing.assert_allclose(result[valid], expected[valid], rtol=0, atol=2e-2)
    assert all(np.isfinite(array).all() for array in (result, *gradients))
    assert np.abs(gradients[2]).max() > 0.1


def test_under_splash_too_padding_never_changes_what_a_valid_position_becomes() -> None:
    model, params = small_model("splash")
    xla, _ = small_model("xla")
    rng, lengths = np.random.default_rng(5), np.array([30, 12, 0])
    valid = np.arange(37) < lengths[:, None]
    ids = rng.integers(0, 131, (3, 37))
    run = jax.jit(lambda ids: encode(model, params, ids, lengths))
    hidden = np.asarray(run(ids))
    assert np.isfinite(hidden).all()
    np.testing.assert_array_equal(
        hidden[valid], np.asarray(run(np.where(valid, ids, rng.integers(0, 131, ids.shape))))[valid]
    )
    expected = np.asarray(jax.jit(lambda ids: encode(xla, params, ids, lengths))(ids))
    np.testing.assert_allclose(hidden[valid], expected[valid], rtol=0, atol=2e-5)


def test_attention_dropout_takes_the_xla_kernel_and_evaluation_the_fast_one() -> None:
    model, params = small_model("splash", attention_dropout=0.5, dropout=0.0)
    xla, _ = small_model("xla", attention_dropout=0.5, dropout=0.0)
    ids, lengths = np.random.default_rng(1).integers(0, 131, (2, 20)), np.array([20, 9])
    run = jax.jit(encode, static_argnums=0)
    trained, expected = (run(which, params, ids, lengths, dropout_key=jnp.uint32(3)) for which in (model, xla))
    np.testing.assert_array_equal(trained, expected)
    assert not kernel_calls(lambda: encode(model, params, ids, lengths, dropout_key=jnp.uint32(3)))
    assert kernel_calls(lambda: encode(model, params, ids, lengths))
    evaluated = run(model, params, ids, lengths)
    assert np.abs(evaluated - trained).max() > 0.1


def test_a_rate_of_zero_and_no_seeds_are_both_no_dropout() -> None:
    qkv, _ = random_qkv((16, 3), (16, 2, 8), F32)
    seeds = seeds_of(2)
    for arguments, calls in (((seeds, 0.0), 1), ((None, 0.1), 1), ((seeds, 0.1), 0)):

        def run(qkv: jax.Array, arguments: Any = arguments) -> jax.Array:
            return attention(qkv, jnp.array([16, 3]), *arguments, kernel="splash")

        assert len(kernel_calls(run, qkv)) == calls


MESHES = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spanbert_jax.config import MESH_AXES
from spanbert_jax.model.attention import attention
from spanbert_jax.model.kernels.interpreter import interpreted
from tests.support.kernels import kernel_calls

rng, lengths = np.random.default_rng(0), np.array([33, 20, 0, 5, 32, 1, 33, 7], np.int32)
arrays = [rng.normal(size=(8, 33, 4, 8)).astype(np.float32) for _ in range(4)]
arrays[3] *= (np.arange(33) < lengths[:, None])[:, :, None, None]
arrays = [np.stack(arrays[:3], axis=2), arrays[3]]

def loss(qkv, weights, lengths, kernel):
    return jnp.sum(weights * attention(qkv, lengths, kernel=kernel))

def gradients(kernel):
    return jax.grad(functools.partial(loss, kernel=kernel))

expected = jax.jit(gradients("xla"))(*arrays, lengths)
same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)

for sizes, manual, seen in (
    ((1, 2, 2), set(), (4, 2)),
    ((2, 1, 2), {"data"}, (4, 2)),  # as the train step calls it
    ((2, 2, 1), {"data", "model"}, (2, 4)),
    ((4, 1, 1), {"data", "fsdp", "model"}, (2, 4)),
):
    mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh), interpreted():
        rows = NamedSharding(mesh, P(("data", "fsdp")))
        step = gradients("splash")
        if manual:
            step = jax.shard_map(step, in_specs=P("data"), out_specs=P("data"), axis_names=manual, check_vma=False)
        result = jax.jit(step)(*(jax.device_put(x, rows) for x in (*arrays, lengths)))
        for inputs in kernel_calls(step, *arrays, lengths):  # rows and heads of a device, padded to 128 pieces
            assert (*seen, 8, 128) in inputs, (sizes, manual, inputs)
        jax.tree.map(same, result, expected)
        if sizes == (1, 2, 2):  # what does not divide evenly is computed everywhere
            few, some = arrays[0][:3, :, :, :3], lengths[:3]
            odd = jax.jit(functools.partial(attention, kernel="splash"))(few, some)
            same(odd[:2, :20], attention(few, some)[:2, :20])
print("same")
"""


def test_splash_on_four_devices_gives_the_gradients_of_one_each_device_its_rows_and_heads() -> None:
    assert on_four_devices(MESHES) == "same"


def test_cudnn_is_called_forward_and_backward_without_a_square_of_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)  # it asks the installed library

    def loss(qkv: jax.Array, lengths: jax.Array) -> jax.Array:
        return jnp.sum(attention(qkv, lengths, kernel="cudnn").astype(jnp.float32))

    arguments = jax.ShapeDtypeStruct((2, 384, 3, 4, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.int32)
    calls = cuda_calls(jax.grad(loss), *arguments)
    assert len(calls) == 2 and all("cudnn" in call for call in calls)
    assert not [shape for shape in arrays_between(jax.grad(loss), *arguments) if shape.count(384) > 1]


def test_cudnn_agrees_with_xla() -> None:
    try:
        jax.local_devices(backend="gpu")
    except RuntimeError:
        pytest.skip("no GPU; where there is one, JAX_PLATFORMS=cuda compares cuDNN's kernel there")
    for lengths, shape in (
        ((512, 512), (512, 4, 64)),
        ((512, 100, 1, 0), (512, 16, 64)),
        ((320, 77), (320, 2, 32)),
        ((37, 12, 0), (37, 2, 128)),
    ):
        with jax.default_device(jax.local_devices(backend="gpu")[0]):
            assert_agrees("cudnn", lengths, shape, BF16)
            qkv, cotangent = random_qkv(lengths, shape, BF16)
            arrays = values_and_gradients("cudnn", with_logits_near(1e4, qkv), cotangent, lengths)
            assert all(np.isfinite(array).all() for array in arrays)
