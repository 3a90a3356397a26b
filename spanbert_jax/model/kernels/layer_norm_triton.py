"""LayerNorm(x + dropout(y)) on an NVIDIA GPU, and its gradients: two Pallas kernels, which Triton compiles.

Invariant: each array of the layer's size is read or written once, and the dropped elements are those of
`dropout.keep_mask`, bit for bit. XLA needs three kernels forward and three backward, none at the memory's speed.

JAX calls Pallas' Triton backend deprecated; see attention_triton.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from spanbert_jax.model.axes import on_each_device
from spanbert_jax.model.dropout import counter, keep
from spanbert_jax.model.kernels.interpreter import is_interpreted

# Forward: positions and warps of a program. Backward: positions that a program takes at a time, all positions that it
# takes, and warps. The fastest of those tried on an H200, with rows of 512 and a width of 1024.
_FORWARD_STEP, _FORWARD_WARPS = 4, 8
_STEP, _OWNED, _WARPS = 1, 32, 4
_ROWS = ("batch", "length", "embed")


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def triton_add_norm(
    x: jax.Array,
    y: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    seeds: jax.Array,
    rate: float,
    eps: float,
) -> jax.Array:
    """LayerNorm(x + dropout(y)): [batch, length, embed].

    x, y: [batch, length, embed] of one dtype, which the result has too. scale, bias: float32 [embed]. seeds: uint32
    [2, batch] of `dropout.site_seeds`, not read where `rate` is 0.
    """
    return _forward(x, y, scale, bias, seeds, rate, eps)[0]


def _forward(
    x: jax.Array,
    y: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    seeds: jax.Array,
    rate: float,
    eps: float,
) -> tuple[jax.Array, tuple]:
    def run(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, seeds: jax.Array) -> Any:
        batch, length, _ = x.shape
        statistic = jax.ShapeDtypeStruct((batch, length), jnp.float32)
        return pl.pallas_call(
            functools.partial(_forward_kernel, rate=rate, eps=eps),
            out_shape=[x, x, statistic, statistic],
            grid=(pl.cdiv(length, _FORWARD_STEP), batch),
            compiler_params=plgpu.CompilerParams(num_warps=_FORWARD_WARPS, num_stages=1),
            interpret=is_interpreted(),
        )(x, y, scale, bias, seeds)

    inputs = (_ROWS, _ROWS, ("embed",), ("embed",), (None, "batch"))
    outputs = (_ROWS, _ROWS, ("batch", "length"), ("batch", "length"))
    result, total, mean, inverse = on_each_device(run, inputs, outputs)(x, y, scale, bias, seeds)
    return result, (total, mean, inverse, scale, seeds)


def _backward(rate: float, eps: float, saved: tuple, cotangent: jax.Array) -> tuple:
    def run(cotangent: jax.Array, total: jax.Array, *others: jax.Array) -> Any:
        batch, length, width = total.shape
        blocks = pl.cdiv(length, _OWNED)
        part = jax.ShapeDtypeStruct((batch, blocks, width), jnp.float32)
        d_x, *rest = pl.pallas_call(
            functools.partial(_backward_kernel, rate=rate),
            out_shape=[total, *([total] if rate else []), part, part],
            grid=(blocks, batch),
            compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=2),
            interpret=is_interpreted(),
        )(cotangent, total, *others)
        return (d_x, *rest) if rate else (d_x, d_x, *rest)

    statistic, of_part = ("batch", "length"), ("batch", None, "embed")
    inputs = (_ROWS, _ROWS, statistic, statistic, ("embed",), (None, "batch"))
    mapped = on_each_device(run, inputs, (_ROWS, _ROWS, of_part, of_part))
    d_x, d_y, d_scale, d_bias = mapped(cotangent, *saved)
    return d_x, d_y, jnp.sum(d_scale, axis=(0, 1)), jnp.sum(d_bias, axis=(0, 1)), None


triton_add_norm.defvjp(_forward, _backward)


def _lanes(width: int) -> jax.Array:
    """int32 [1, lanes], 0, 1, ...: `width` of them, rounded up to a power of two, as Triton requires of an array."""
    return jnp.arange(pl.next_power_of_2(width))[None]


def _kept(seeds: Any, row: jax.Array, positions: jax.Array, lanes: jax.Array, width: int, rate: float) -> jax.Array:
    """bool: `dropout.keep_mask` of a row at `positions` and `lanes`."""
    return keep(counter(seeds[0, row]) + counter(positions * width) + counter(lanes), seeds[1, row], rate)


def _forward_kernel(
    x: Any,
    y: Any,
    scale: Any,
    bias: Any,
    seeds: Any,
    result: Any,
    total: Any,
    mean: Any,
    inverse: Any,
    *,
    rate: float,
    eps: float,
) -> None:
    _, length, width = x.shape
    start, row, lanes = pl.program_id(0) * _FORWARD_STEP, pl.program_id(1), _lanes(width)
    positions = start + jnp.arange(_FORWARD_STEP)
    inside = positions < length
    where, mask = (row, pl.ds(start, _FORWARD_STEP), pl.ds(0, lanes.size)), inside[:, None] & (lanes < width)
    added = plgpu.load(y.at[where], mask=mask, other=0)
    if rate:
        scaled = (added.astype(jnp.float32) * (1 / (1 - rate))).astype(added.dtype)
        added = jnp.where(_kept(seeds, row, positions[:, None], lanes, width, rate), scaled, 0)
    summed = plgpu.load(x.at[where], mask=mask, other=0) + added.astype(x.dtype)
    plgpu.store(total.at[where], summed, mask=mask)
    wide = summed.astype(jnp.float32)
    average = jnp.sum(wide, axis=1) * (1 / width)
    centered = jnp.where(lanes < width, wide - average[:, None], 0)
    over = jax.lax.rsqrt(jnp.sum(centered * centered, axis=1) * (1 / width) + eps)
    plgpu.store(mean.at[where[:2]], average, mask=inside)
    plgpu.store(inverse.at[where[:2]], over, mask=inside)
    factors, offsets = (plgpu.load(ref.at[where[2]], mask=lanes[0] < width, other=0)[None] for ref in (scale, bias))
    normalised = centered * over[:, None] * factors + offsets
    plgpu.store(result.at[where], normalised.astype(result.dtype), mask=mask)


def _backward_kernel(
    cotangent: Any, total: Any, mean: Any, inverse: Any, scale: Any, seeds: Any, d_x: Any, *rest: Any, rate: float
) -> None:
    """rest: d_y, where there is dropout; then the gradients of scale and bias, summed over the positions of each block,
    float32 [batch, blocks, embed] each."""
    _, length, width = total.shape
    block, row, lanes = pl.program_id(0), pl.program_id(1), _lanes(width)
    *d_y, d_scale, d_bias = rest
    everywhere = pl.ds(0, lanes.size)
    factors = plgpu.load(scale.at[everywhere], mask=lanes[0] < width, other=0)[None]

    def step(number: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start = block * _OWNED + number * _STEP
        positions = start + jnp.arange(_STEP)
        inside = positions < length
        where, mask = (row, pl.ds(start, _STEP), everywhere), inside[:, None] & (lanes < width)
        average = plgpu.load(mean.at[where[:2]], mask=inside, other=0)[:, None]
        over = plgpu.load(inverse.at[where[:2]], mask=inside, other=0)[:, None]
        coming = plgpu.load(cotangent.at[where], mask=mask, other=0).astype(jnp.float32)
        normalised = (plgpu.load(total.at[where], mask=mask, other=0).astype(jnp.float32) - average) * over
        scaled = coming * factors  # 0 outside of the array, and so is scaled * normalised
        along = jnp.sum(scaled * normalised, axis=1, keepdims=True) * (1 / width)
        gradient = over * (scaled - jnp.sum(scaled, axis=1, keepdims=True) * (1 / width) - normalised * along)
        gradient = gradient.astype(d_x.dtype)
        plgpu.store(d_x.at[where], gradient, mask=mask)
        for ref in d_y:
            dropped = (gradient.astype(jnp.float32) * (1 / (1 - rate))).astype(ref.dtype)
            dropped = jnp.where(_kept(seeds, row, positions[:, None], lanes, width, rate), dropped, 0)
            plgpu.store(ref.at[where], dropped.astype(ref.dtype), mask=mask)
        return sums[0] + coming * normalised, sums[1] + coming

    nothing = jnp.zeros((_STEP, lanes.size), jnp.float32)
    sums = jax.lax.fori_loop(0, _OWNED // _STEP, step, (nothing, nothing))
    for ref, summed in zip((d_scale, d_bias), sums, strict=True):
        plgpu.store(ref.at[row, block, everywhere], jnp.sum(summed, axis=0), mask=lanes[0] < width)
