"""GELU(x + bias) on an NVIDIA GPU, and its gradients: two Pallas kernels, which Triton compiles.

Invariant: each array of the layer's size is read or written once, at the memory's speed. The normal distribution
function is computed by Abramowitz and Stegun's formula 7.1.26, which is within 1e-7 and needs three quarters of the
instructions of XLA's erf. The exponential in the formula gives the density too.

JAX calls Pallas' Triton backend deprecated; see attention_triton.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from spanbert_jax.model.axes import on_each_device
from spanbert_jax.model.kernels.interpreter import is_interpreted

# (rows that a program takes at a time, all rows that it takes, columns). The fastest of those tried on an H200.
_FORWARD = (8, 8, 512)
_BACKWARD = (16, 256, 256)
_WARPS = 4
_NAMES = ("batch", "mlp")
# Formula 7.1.26 for an argument that is scaled by sqrt(1/2), with halved coefficients.
_SLOPE = 0.3275911 * math.sqrt(0.5)
_TERMS = [0.5 * term for term in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]


def triton_gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """GELU(x + bias): `x` [rows, mlp], `bias` float32 [mlp]; the dtype of `x`."""

    def run(x: jax.Array, bias: jax.Array) -> Any:
        return _call(_forward_kernel, _FORWARD, x, [x])(x, bias)

    return on_each_device(run, (_NAMES, ("mlp",)), (_NAMES,))(x, bias)[0]


def triton_gelu_gradients(
    x: jax.Array, bias: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """GELU(x + bias) once more, [rows, mlp] in the dtype of `x`; the gradient of `x`, likewise; and the gradient of
    `bias`, float32 [mlp]."""

    def run(x: jax.Array, bias: jax.Array, cotangent: jax.Array) -> Any:
        part = jax.ShapeDtypeStruct((pl.cdiv(len(x), _BACKWARD[1]), x.shape[1]), jnp.float32)
        return _call(_backward_kernel, _BACKWARD, x, [x, x, part])(x, bias, cotangent)

    mapped = on_each_device(run, (_NAMES, ("mlp",), _NAMES), (_NAMES, _NAMES, _NAMES))
    activated, d_x, d_bias = mapped(x, bias, cotangent)
    return activated, d_x, jnp.sum(d_bias, axis=0)


def _call(kernel: Callable, blocks: tuple[int, int, int], x: jax.Array, out_shape: Any) -> Callable[..., Any]:
    _, rows, columns = blocks
    return pl.pallas_call(
        functools.partial(kernel, blocks=blocks),
        out_shape=out_shape,
        grid=(pl.cdiv(x.shape[1], columns), pl.cdiv(len(x), rows)),
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=2),
        interpret=is_interpreted(),
    )


def _share_and_power(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The normal distribution function, and exp(-x^2 / 2)."""
    above_one = 1 + _SLOPE * jnp.abs(x)
    t = jax.lax.rsqrt(above_one * above_one)  # one instruction, where a division is ten
    power = jnp.exp2(x * x * (-0.5 * math.log2(math.e)))
    tail = jnp.zeros_like(x)
    for term in _TERMS:
        tail = (tail + term) * t
    tail = tail * power
    return jnp.where(x < 0, tail, 1 - tail), power


class _Columns(NamedTuple):
    """The columns that a program takes."""

    first: jax.Array
    number: int
    width: int  # of the whole array

    def load_row(self, ref: Any) -> jax.Array:
        """[1, number] of `ref` [width]."""
        return plgpu.load(ref.at[pl.ds(self.first, self.number)], mask=self._inside(), other=0)[None]

    def load(self, ref: Any, row: jax.Array, rows: int) -> jax.Array:
        """float32 [rows, number] of `ref` [all rows, width], from `row` on, 0 outside of the array."""
        place, inside = self._at(ref, row, rows)
        return plgpu.load(place, mask=inside, other=0).astype(jnp.float32)

    def store(self, ref: Any, row: jax.Array, values: jax.Array) -> None:
        """Writes `values` [rows, number] to `ref` [all rows, width], from `row` on, as far as the array goes."""
        place, inside = self._at(ref, row, len(values))
        plgpu.store(place, values.astype(ref.dtype), mask=inside)

    def _inside(self) -> jax.Array:
        return self.first + jnp.arange(self.number) < self.width

    def _at(self, ref: Any, row: jax.Array, rows: int) -> tuple[Any, jax.Array]:
        inside = (row + jnp.arange(rows) < ref.shape[0])[:, None] & self._inside()[None]
        return ref.at[pl.ds(row, rows), pl.ds(self.first, self.number)], inside


def _forward_kernel(x: Any, bias: Any, result: Any, *, blocks: tuple[int, int, int]) -> None:
    step, rows, columns = blocks
    at, row = _Columns(pl.program_id(0) * columns, columns, x.shape[1]), pl.program_id(1) * rows
    wide = at.load(x, row, step) + at.load_row(bias)
    at.store(result, row, wide * _share_and_power(wide)[0])


def _backward_kernel(
    x: Any, bias: Any, cotangent: Any, activated: Any, d_x: Any, d_bias: Any, *, blocks: tuple[int, int, int]
) -> None:
    step, rows, columns = blocks
    at, block = _Columns(pl.program_id(0) * columns, columns, x.shape[1]), pl.program_id(1)
    offset = at.load_row(bias)

    def take(number: jax.Array, total: jax.Array) -> jax.Array:
        row = block * rows + number * step
        wide, coming = at.load(x, row, step) + offset, at.load(cotangent, row, step)
        share, power = _share_and_power(wide)
        gradient = coming * (share + wide * power * (1 / math.sqrt(2 * math.pi)))
        at.store(activated, row, wide * share)
        at.store(d_x, row, gradient)
        return total + gradient

    total = jax.lax.fori_loop(0, rows // step, take, jnp.zeros((step, columns), jnp.float32))
    at.store(d_bias, block, jnp.sum(total, axis=0, keepdims=True))
