"""The attention kernels: each agrees with the XLA one, padding or not, and each runs where it can and nowhere else.

Splash is interpreted on the CPU; cuDNN is lowered for CUDA, and compared where there is a GPU.
"""

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.config_check import check
from spanbert_jax.errors import UserError
from spanbert_jax.model import attention as module
from spanbert_jax.model.attention import attention, choose_kernel
from spanbert_jax.model.attention_splash import splash_attention
from spanbert_jax.model.dropout import ATTENTION_PROBABILITIES, Dropout, site_seeds
from spanbert_jax.model.encoder import encode
from spanbert_jax.model.heads import init_params, pretraining_model
from tests.devices import on_four_devices

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes "splash" run on the CPU; the list gets an entry whenever it is traced."""
    calls: list[int] = []

    def splash(*arrays: jax.Array) -> jax.Array:
        calls.append(arrays[0].shape[1])
        return splash_attention(*arrays, interpret=True)

    monkeypatch.setitem(module._FLASH, "splash", splash)
    return calls


def random_qkv(lengths: tuple[int, ...], shape: tuple[int, int, int], dtype: jnp.dtype, seed: int = 0) -> list[Any]:
    """Queries, keys, values and cotangents [batch, *shape]; the cotangents of padding are 0."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(len(lengths), *shape)) for _ in range(4)]
    arrays[3] *= (np.arange(shape[0]) < np.array(lengths)[:, None])[:, :, None, None]
    return [jnp.asarray(x, dtype) for x in arrays]


def values_and_gradients(kernel: str, arrays: list[Any], lengths: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """float64: the result and the gradients of queries, keys and values."""

    @jax.jit
    def run(query: jax.Array, key: jax.Array, value: jax.Array, cotangent: jax.Array) -> Any:
        result, vjp = jax.vjp(lambda *x: attention(*x, jnp.array(lengths), kernel=kernel), query, key, value)
        assert result.dtype == query.dtype
        return result, *vjp(cotangent)

    return tuple(np.float64(x) for x in run(*arrays))


def assert_agrees(kernel: str, lengths: tuple[int, ...], shape: tuple[int, int, int], dtype: jnp.dtype) -> None:
    """At valid positions the values, and everywhere the gradients, are the XLA kernel's; nothing is NaN or infinite."""
    arrays = random_qkv(lengths, shape, dtype)
    valid = np.arange(shape[0]) < np.array(lengths)[:, None]
    ours, expected = (values_and_gradients(name, arrays, lengths) for name in (kernel, "xla"))
    tolerance = 1e-5 if dtype == F32 else 2e-2
    np.testing.assert_allclose(ours[0][valid], expected[0][valid], rtol=0, atol=tolerance)
    for x, y in zip(ours[1:], expected[1:], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)
        assert not np.any(x[~valid])  # a padded piece has no part in what a valid one becomes
    assert np.abs(expected[2]).max() > 0.1
    arrays[3] = jnp.ones_like(arrays[3])  # whatever comes back to padding
    assert all(np.isfinite(x).all() for x in values_and_gradients(kernel, arrays, lengths))


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
def test_splash_agrees_with_xla(
    interpreted: list[int], lengths: tuple[int, ...], shape: tuple[int, int, int], dtype: jnp.dtype
) -> None:
    assert_agrees("splash", lengths, shape, dtype)
    assert interpreted


def test_splash_keeps_float32_logits_at_spanbert_larges_magnitudes(interpreted: list[int]) -> None:
    lengths = (128, 50)
    query, key, value, cotangent = random_qkv(lengths, (128, 2, 64), BF16, 6)
    logits = np.abs(np.einsum("bqhd,bkhd->bhqk", *np.float64([query, key])) / 8).max()
    query = query * jnp.bfloat16(3000 / logits)
    key = key.at[:, 1::2].set(key[:, ::2] * jnp.bfloat16(0.9961))  # to every key one that competes with it
    arrays = [query, key, value, cotangent]
    valid = np.arange(128) < np.array(lengths)[:, None]
    ours, expected = (values_and_gradients(kernel, arrays, lengths)[0] for kernel in ("splash", "xla"))
    np.testing.assert_allclose(ours[valid], expected[valid], rtol=0, atol=2e-2)  # bfloat16 logits: off by about 3


def small_model(kernel: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """A float32 model that was resolved for somewhere else, and random parameters."""
    config = Config(model=ModelConfig(layers=2, embed=48, heads=3, mlp=64, max_length=64, **fields))
    model = pretraining_model(dataclasses.replace(config, compute=ComputeConfig(dtype="float32")), 131, "cpu")
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.2, x.shape)), shapes)
    return model.clone(compute=dataclasses.replace(model.compute, attention=kernel)), params


def test_under_splash_too_padding_never_changes_what_a_valid_position_becomes(interpreted: list[int]) -> None:
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


def test_attention_dropout_takes_the_xla_kernel_and_evaluation_the_fast_one(interpreted: list[int]) -> None:
    model, params = small_model("splash", attention_dropout=0.5, dropout=0.0)
    xla, _ = small_model("xla", attention_dropout=0.5, dropout=0.0)
    ids, lengths = np.random.default_rng(1).integers(0, 131, (2, 20)), np.array([20, 9])
    trained, expected = (encode(which, params, ids, lengths, dropout_key=jnp.uint32(3)) for which in (model, xla))
    assert not interpreted
    np.testing.assert_array_equal(trained, expected)
    evaluated = encode(model, params, ids, lengths)
    assert interpreted and np.abs(evaluated - trained).max() > 0.1


def test_a_rate_of_zero_and_no_seeds_are_both_no_dropout(interpreted: list[int]) -> None:
    query, key, value, _ = random_qkv((16, 3), (16, 2, 8), F32)
    seeds = site_seeds(Dropout(jnp.uint32(1), jnp.arange(2)), 0, ATTENTION_PROBABILITIES)
    for arguments, calls in (((seeds, 0.0), 1), ((None, 0.1), 2), ((seeds, 0.1), 2)):

        def run(*qkv: jax.Array, arguments: Any = arguments) -> jax.Array:
            return attention(*qkv, jnp.array([16, 3]), *arguments, kernel="splash")

        jax.eval_shape(run, query, key, value)
        assert len(interpreted) == calls


def gpu(capability: str) -> Callable[..., list[SimpleNamespace]]:
    return lambda backend: [SimpleNamespace(compute_capability=capability)]


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "capability", "expected"),
    [
        ("cpu", F32, 64, "", "xla"),
        ("cpu", BF16, 64, "", "xla"),
        ("tpu", BF16, 64, "", "splash"),
        ("tpu", F32, 64, "", "xla"),
        ("gpu", BF16, 64, "9.0", "cudnn"),
        ("gpu", BF16, 64, "12.0", "cudnn"),
        ("gpu", BF16, 64, "8.0", "cudnn"),
        ("gpu", BF16, 64, "7.5", "xla"),
        ("gpu", BF16, 64, "gfx90a", "xla"),
        ("gpu", BF16, 60, "9.0", "xla"),
        ("gpu", BF16, 256, "9.0", "xla"),
        ("gpu", F32, 64, "9.0", "xla"),
    ],
)
def test_auto_is_the_fastest_kernel_that_runs_there(
    monkeypatch: pytest.MonkeyPatch, platform: str, dtype: jnp.dtype, head_dim: int, capability: str, expected: str
) -> None:
    monkeypatch.setattr(jax, "local_devices", gpu(capability))
    assert choose_kernel("auto", platform, dtype, head_dim) == expected
    assert choose_kernel("xla", platform, dtype, head_dim) == "xla"
    for name in {"splash", "cudnn"} - {expected}:
        with pytest.raises(UserError, match=rf"config.compute.attention is '{name}', which needs .*'auto' or 'xla'"):
            choose_kernel(name, platform, dtype, head_dim)


def test_a_program_for_a_gpu_that_is_elsewhere_gets_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(backend: str) -> list[Any]:
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    assert choose_kernel("auto", "gpu", BF16, 64) == "cudnn"


def test_the_model_is_made_with_the_kernel_of_its_platform() -> None:
    config = Config()
    assert pretraining_model(config, 131, "tpu").compute.attention == "splash"
    assert pretraining_model(config, 131, "cpu").compute.attention == "xla"
    named = dataclasses.replace(config, compute=ComputeConfig(attention="splash"))
    with pytest.raises(UserError, match=r"needs config\.compute\.dtype 'bfloat16', not 'float32'"):
        pretraining_model(named, 131, "cpu")


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_a_kernel_without_attention_dropout_is_refused_where_the_model_has_some(kernel: str) -> None:
    config = Config(compute=ComputeConfig(attention=kernel))
    with pytest.raises(UserError, match=r"set config\.model\.attention_dropout=0, or config\.compute\.attention=xla"):
        check(config)
    check(dataclasses.replace(config, model=ModelConfig(attention_dropout=0.0)))


MESHES = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spanbert_jax.model import attention as module
from spanbert_jax.model.attention_splash import splash_attention

shapes = []
def splash(*arrays):
    shapes.append(arrays[0].shape)
    return splash_attention(*arrays, interpret=True)

module._FLASH["splash"] = splash
rng, lengths = np.random.default_rng(0), np.array([33, 20, 0, 5, 32, 1, 33, 7], np.int32)
arrays = [rng.normal(size=(8, 33, 4, 8)).astype(np.float32) for _ in range(4)]
arrays[3] *= (np.arange(33) < lengths[:, None])[:, :, None, None]

def loss(query, key, value, weights, lengths, kernel):
    return jnp.sum(weights * module.attention(query, key, value, lengths, kernel=kernel))

def gradients(kernel):
    return jax.grad(functools.partial(loss, kernel=kernel), argnums=(0, 1, 2))

expected = jax.jit(gradients("xla"))(*arrays, lengths)
same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)

for sizes, manual, seen in (
    ((1, 2, 2), set(), (4, 33, 2, 8)),
    ((2, 1, 2), {"data"}, (4, 33, 2, 8)),  # as the train step calls it
    ((2, 2, 1), {"data", "model"}, (2, 33, 4, 8)),
    ((4, 1, 1), {"data", "fsdp", "model"}, (2, 33, 4, 8)),
):
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P(("data", "fsdp")))
        step = gradients("splash")
        if manual:
            step = jax.shard_map(step, in_specs=P("data"), out_specs=P("data"), axis_names=manual, check_vma=False)
        shapes.clear()
        result = jax.jit(step)(*(jax.device_put(x, rows) for x in (*arrays, lengths)))
        assert set(shapes) == {seen}, (sizes, manual, shapes)
        jax.tree.map(same, result, expected)
        if sizes == (1, 2, 2):  # what does not divide evenly is computed everywhere
            few, some = [x[:3, :, :3] for x in arrays[:3]], lengths[:3]
            odd = jax.jit(functools.partial(module.attention, kernel="splash"))(*few, some)
            same(odd[:2, :20], module.attention(*few, some)[:2, :20])
print("same")
"""


def test_splash_on_four_devices_gives_the_gradients_of_one_each_device_its_rows_and_heads() -> None:
    assert on_four_devices(MESHES) == "same"


def test_cudnn_is_called_with_lengths_and_without_dropout_or_a_square_of_the_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)  # it asks the installed library

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array) -> jax.Array:
        return jnp.sum(attention(query, key, value, lengths, kernel="cudnn").astype(jnp.float32))

    qkv = [jax.ShapeDtypeStruct((2, 384, 4, 64), jnp.bfloat16)] * 3
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*qkv, jax.ShapeDtypeStruct((2,), jnp.int32))
    text = step.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call" in line]
    names = [re.search(r"@(\S+?)\(", line).group(1) for line in calls]  # type: ignore[union-attr]
    assert names == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    for line in calls:
        assert r"\22mask_type\22: \22PADDING\22" in line and r"\22dropout_rate\22: 0.0" in line
        assert line.count("tensor<2xi32>") == 2  # the lengths of the queries and of the keys
    assert "384x384" not in text


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
