"""GELU against float64, and the product that follows it against autodiff, under either kernel.

Triton is interpreted on the CPU and lowered for CUDA, and compared where there is a GPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from spanbert_jax.model.gelu import gelu, gelu_product
from spanbert_jax.model.kernels.gelu_triton import triton_gelu
from spanbert_jax.model.kernels.interpreter import interpreted
from tests.support.devices import on_four_devices
from tests.support.kernels import cuda_calls

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def gelu64(x: Any) -> np.ndarray:
    wide = np.float64(x)
    return 0.5 * wide * (1 + erf(wide / np.sqrt(2)))


def test_gelu_against_float64() -> None:
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    np.testing.assert_allclose(gelu(jnp.asarray(x)), gelu64(x), rtol=0, atol=1e-6)
    low = gelu(jnp.asarray(x, BF16))
    assert low.dtype == BF16
    np.testing.assert_allclose(np.float64(low), gelu64(np.float32(jnp.asarray(x, BF16))), rtol=2**-8, atol=1e-6)


def test_tritons_gelu_is_the_exact_one_to_float32s_rounding() -> None:
    x = np.linspace(-9, 9, 1001, dtype=np.float32)[:, None]
    with interpreted():
        result = triton_gelu(jnp.asarray(x), jnp.full(1, 0.25))
    np.testing.assert_allclose(result, gelu64(x + 0.25), rtol=0, atol=1e-6)


def values_and_gradients(kernel: str, rows: int, mlp: int, embed: int, dtype: jnp.dtype) -> list[np.ndarray]:
    """float64: gelu(x + bias) weights, and the gradients of x, bias and weights."""
    rng = np.random.default_rng(rows)
    x, weights, coming = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((rows, mlp), (mlp, embed), (rows, embed))
    )
    bias = jnp.asarray(rng.normal(size=mlp), F32)

    def plain(x: jax.Array, bias: jax.Array, weights: jax.Array) -> jax.Array:
        wide, weights = x.astype(F32) + bias, weights.astype(F32)
        return (0.5 * wide * (1 + jax.lax.erf(wide / np.sqrt(2)))) @ weights

    def run(x: jax.Array, bias: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
        function = plain if kernel == "plain" else functools.partial(gelu_product, kernel=kernel)
        result, vjp = jax.vjp(function, x, bias, weights)
        assert kernel == "plain" or result.dtype == dtype
        return result, *vjp(coming.astype(result.dtype))

    return [np.float64(x) for x in jax.jit(run)(x, bias, weights)]


def assert_agrees(kernel: str, rows: int, mlp: int, embed: int, dtype: jnp.dtype) -> None:
    """The values and gradients are those of autodiff in float32, relative to the largest."""
    tolerance = 1e-5 if dtype == F32 else 2e-2
    ours, expected = (values_and_gradients(name, rows, mlp, embed, dtype) for name in (kernel, "plain"))
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())


@pytest.mark.parametrize("kernel", ["xla", "triton"])
@pytest.mark.parametrize(
    ("rows", "mlp", "dtype"),
    [(37, 96, F32), (300, 600, F32), (300, 600, BF16)],  # no multiple of a block of rows, or of columns
)
def test_gelu_product_has_the_values_and_gradients_of_autodiff(
    kernel: str, rows: int, mlp: int, dtype: jnp.dtype
) -> None:
    with interpreted():
        assert_agrees(kernel, rows, mlp, 40, dtype)


FOUR_DEVICES = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spanbert_jax.config import MESH_AXES
from spanbert_jax.model.gelu import gelu_product
from spanbert_jax.model.kernels.interpreter import interpreted

rng = np.random.default_rng(0)
x, bias, weights, coming = (rng.normal(size=s).astype(np.float32) for s in ((64, 96), (96,), (96, 32), (64, 32)))

def run(x, bias, weights, coming):
    result, vjp = jax.vjp(lambda *a: gelu_product(*a, "triton"), x, bias, weights)
    return result, *vjp(coming)

with interpreted():
    expected = jax.jit(run)(x, bias, weights, coming)
mesh = jax.make_mesh((1, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
with jax.set_mesh(mesh), interpreted():
    put = lambda a, *axes: jax.device_put(a, NamedSharding(mesh, P(*axes)))
    arrays = put(x, "fsdp", "model"), put(bias, "model"), put(weights, "model"), put(coming, "fsdp")
    for ours, theirs in zip(jax.jit(run)(*arrays), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
print("same")
"""


def test_triton_on_four_devices_gives_the_values_and_the_gradients_of_one() -> None:
    assert on_four_devices(FOUR_DEVICES) == "same"


def test_for_cuda_triton_is_one_kernel_forward_and_one_backward() -> None:
    def loss(x: jax.Array, bias: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(gelu_product(x, bias, weights, "triton").astype(F32))

    shapes = ((70, 96), BF16), ((96,), F32), ((96, 48), BF16)
    targets = cuda_calls(jax.grad(loss, argnums=(0, 1, 2)), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    assert len(targets) == 2 and all("triton" in target for target in targets)


def test_triton_agrees_with_autodiff_on_a_gpu() -> None:
    try:
        device = jax.local_devices(backend="gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU; where there is one, JAX_PLATFORMS=cuda compares Triton's kernels there")
    for rows, mlp in ((2048, 4096), (300, 600), (37, 96)):
        with jax.default_device(device):
            assert_agrees("triton", rows, mlp, 40, BF16)
