"""Sliding-window attention: a query sees the valid keys that are at most `window` positions away, and no others.

Both forms of "xla" are compared with brute force in float64, and the banded form with the dense one.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.model.attention import attention
from spanbert_jax.model.dropout import keep_mask
from spanbert_jax.model.kernels.attention_banded import Band
from spanbert_jax.model.kernels.attention_splash import computed_scores
from spanbert_jax.model.kernels.interpreter import interpreted
from tests.support.attention_agreement import (
    BF16,
    F32,
    FORMS,
    assert_agrees,
    random_qkv,
    seeds_of,
    values_and_gradients,
    with_logits_near_3000,
)
from tests.support.devices import on_four_devices
from tests.support.kernels import arrays_between, cuda_calls, kernel_calls, tpu_calls

# Length, window and the rate of dropout: rows below a chunk (32 positions, or the window), whole chunks and parts of
# one, a window beyond a whole row, and a window for which the banded form is cheaper.
CASES = [(20, 2, 0.0), (45, 50, 0.4), (64, 40, 0.4), (96, 32, 0.0), (150, 9, 0.4)]


def brute_force(
    qkv: np.ndarray, cotangent: np.ndarray, lengths: tuple[int, ...], window: int, factors: np.ndarray
) -> list[np.ndarray]:
    """The result and the gradients of queries, keys and values, in float64. factors: [batch, heads, query, key], by
    which dropout multiplies each probability."""
    query, key, value = np.float64(qkv).transpose(2, 0, 3, 1, 4)  # [batch, heads, length, head_dim] each
    coming, places = np.float64(cotangent).swapaxes(1, 2), np.arange(qkv.shape[1])
    seen = np.abs(places[:, None] - places) <= window
    seen = seen & (places < np.array(lengths)[:, None, None, None])
    weights = seen * np.exp(query @ key.swapaxes(2, 3) / np.sqrt(qkv.shape[-1]))
    shares = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    d_shares = coming @ value.swapaxes(2, 3) * factors
    d_logits = shares * (d_shares - (d_shares * shares).sum(-1, keepdims=True)) / np.sqrt(qkv.shape[-1])
    results = shares * factors @ value, d_logits @ key, d_logits.swapaxes(2, 3) @ query
    return [x.swapaxes(1, 2) for x in (*results, (shares * factors).swapaxes(2, 3) @ coming)]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(CASES),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_a_query_sees_the_valid_keys_within_its_window_and_no_others(
    form: str, case: tuple[int, int, float], shares: tuple[float, float], seed: int
) -> None:
    length, window, rate = case
    lengths = tuple(round(share * length) for share in shares)
    qkv, cotangent = random_qkv(lengths, (length, 2, 8), F32, seed)
    ours = values_and_gradients(form, qkv, cotangent, lengths, rate, window)
    factors = np.asarray(keep_mask(seeds_of(2), (2, 2, length, length), rate)) / (1 - rate)
    expected = brute_force(np.asarray(qkv), np.asarray(cotangent), lengths, window, factors)
    valid = np.arange(length) < np.array(lengths)[:, None]
    assert np.isfinite(ours[0]).all()
    np.testing.assert_allclose(ours[0][valid], expected[0][valid], rtol=1e-6, atol=1e-6)
    for x, y in zip(ours[1:], expected[1:], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("lengths", "shape", "window", "dtype", "rate"),
    [
        ((333, 130, 1, 0), (333, 2, 16), 64, F32, 0.1),  # no multiple of a chunk
        ((200, 77, 0), (200, 2, 16), 8, BF16, 0.3),
    ],
)
def test_the_banded_form_agrees_with_the_dense_one(
    lengths: tuple[int, ...], shape: tuple[int, int, int], window: int, dtype: jnp.dtype, rate: float
) -> None:
    assert_agrees("banded", lengths, shape, dtype, rate, window)


def test_the_banded_form_keeps_float32_logits_at_spanbert_larges_magnitudes() -> None:
    lengths = (128, 50)
    qkv, cotangent = random_qkv(lengths, (128, 2, 64), BF16, 6)
    arrays = with_logits_near_3000(qkv), cotangent
    valid = np.arange(128) < np.array(lengths)[:, None]
    ours, expected = (values_and_gradients(form, *arrays, lengths, window=20)[0] for form in ("banded", "dense"))
    np.testing.assert_allclose(ours[valid], expected[valid], rtol=0, atol=2e-2)  # bfloat16 logits: off by about 3


@pytest.mark.parametrize("window", [3, 40])
def test_the_banded_form_drops_the_probabilities_that_the_dense_one_drops_to_the_bit(window: int) -> None:
    """Queries of 0 give every key the same probability, and values of one 1 each show which keys are left."""
    rate, places = 0.3, np.arange(100)
    value = np.broadcast_to(np.eye(100, dtype=np.float32)[:, None], (2, 100, 4, 100))
    banded = jax.jit(FORMS["banded"], static_argnums=(5, 6))
    result = banded(0 * value, 0 * value, value, np.array([100, 100]), seeds_of(2), rate, window)
    kept = np.asarray(keep_mask(seeds_of(2), (2, 4, 100, 100), rate)).transpose(0, 2, 1, 3)
    near = np.abs(places[:, None] - places) <= window
    np.testing.assert_array_equal(result > 0, kept & near[:, None])


@pytest.mark.parametrize(("length", "window", "banded"), [(320, 64, True), (192, 64, False), (128, 8, True)])
def test_rows_take_the_banded_form_where_it_has_at_most_three_quarters_of_the_scores(
    length: int, window: int, banded: bool
) -> None:
    def run(qkv: jax.Array) -> jax.Array:
        return attention(qkv, jnp.array([length]), window=window)

    squares = [
        x for x in arrays_between(jax.grad(lambda x: run(x).sum()), _abstract_qkv(length)) if x.count(length) > 1
    ]
    assert Band(length, window).is_cheaper() is banded
    assert bool(squares) is not banded


def _abstract_qkv(length: int, dtype: jnp.dtype = F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, length, 3, 2, 64), dtype)


@pytest.mark.parametrize("kernel", ["triton", "cudnn"])
def test_a_kernel_without_windows_computes_full_layers_and_rows_within_the_window(kernel: str) -> None:
    def calls(length: int, window: int) -> list[Any]:
        run = functools.partial(attention, kernel=kernel, window=window)
        arguments = _abstract_qkv(length, BF16), jax.ShapeDtypeStruct((1,), jnp.int32)
        return cuda_calls(run, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000)
        assert len(calls(384, 0)) == len(calls(65, 64)) == 1
        assert calls(384, 64) == calls(66, 64) == []


@pytest.mark.parametrize(
    ("lengths", "shape", "window", "dtype"),
    [
        ((100, 37, 0), (100, 2, 32), 20, F32),
        ((640, 130), (640, 1, 32), 64, BF16),  # blocks of 128, of which most are skipped
    ],
)
def test_splash_agrees_with_the_dense_form(
    lengths: tuple[int, ...], shape: tuple[int, int, int], window: int, dtype: jnp.dtype
) -> None:
    with interpreted():
        assert_agrees("splash", lengths, shape, dtype, window=window)


@pytest.mark.parametrize(("length", "calls"), [(1024, 2), (4096, 3)])
def test_for_a_tpu_splash_is_lowered_with_one_kernel_of_gradients_for_short_rows_and_two_for_long(
    length: int, calls: int
) -> None:
    def loss(qkv: jax.Array, lengths: jax.Array) -> jax.Array:
        return jnp.sum(attention(qkv, lengths, kernel="splash", window=64).astype(jnp.float32))

    arguments = _abstract_qkv(length, BF16), jax.ShapeDtypeStruct((1,), jnp.int32)
    assert tpu_calls(jax.grad(loss), *arguments) == calls * ["tpu_custom_call"]
    assert not [shape for shape in arrays_between(jax.grad(loss), *arguments) if shape.count(length) > 1]
    assert len(kernel_calls(jax.grad(loss), *arguments)) == calls


@pytest.mark.parametrize(("length", "window"), [(600, 0), (1024, 64), (1500, 513), (8192, 64)])
def test_splash_computes_the_blocks_that_hold_a_score_of_the_window(length: int, window: int) -> None:
    padded = -(-length // 128) * 128
    block = math.gcd(512, padded)
    places = np.arange(padded)
    blocks = np.zeros((padded // block, padded // block), bool)
    for begin in range(0, padded, block):
        near = np.abs(np.arange(begin, begin + block)[:, None] - places) <= (window or padded)
        blocks[begin // block] = near.reshape(block, -1, block).any((0, 2))
    assert computed_scores(length, window) == blocks.sum() * block**2


def test_the_banded_form_in_a_scan_with_rematerialisation_and_under_vmap_has_the_gradients_of_one_call() -> None:
    qkv, cotangent = random_qkv((130, 70), (130, 2, 8), F32)
    lengths, seeds = jnp.array([130, 70]), seeds_of(2)
    call = functools.partial(attention, lengths=lengths, seeds=seeds, rate=0.3, window=8)

    def scanned(qkv: jax.Array) -> jax.Array:
        layer = jax.checkpoint(lambda total, x: (total + jnp.sum(call(x) * cotangent), None))
        return jax.lax.scan(layer, jnp.float32(0), jnp.stack([qkv, 2 * qkv]))[0]

    def mapped(qkv: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(call)(jnp.stack([qkv, 2 * qkv])) * cotangent)

    def unrolled(qkv: jax.Array) -> jax.Array:
        return jnp.sum((call(qkv) + call(2 * qkv)) * cotangent)

    expected = jax.jit(jax.grad(unrolled))(qkv)
    for function in (scanned, mapped):
        np.testing.assert_allclose(jax.jit(jax.grad(function))(qkv), expected, rtol=1e-6, atol=1e-6)


MESHES = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spanbert_jax.config import MESH_AXES
from spanbert_jax.model.attention import attention
from spanbert_jax.model.axes import constrain
from tests.support.attention_agreement import F32, random_qkv, seeds_of

lengths = np.array([130, 20, 0, 5, 129, 1, 100, 7], np.int32)
arrays = *random_qkv(lengths, (130, 4, 8), F32), lengths, seeds_of(8).T

def loss(qkv, weights, lengths, seeds):
    qkv = constrain(qkv, "batch", "length", "qkv", "heads", "head_dim")
    return jnp.sum(weights * attention(qkv, lengths, seeds.T, 0.3, window=8))

expected = jax.jit(jax.grad(loss))(*arrays)
for sizes, manual, share in (((1, 2, 2), set(), "4,2"), ((2, 1, 2), {"data"}, "4,2"), ((2, 2, 1), set(), "2,4")):
    mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        step = jax.grad(loss)
        if manual:
            step = jax.shard_map(step, in_specs=P("data"), out_specs=P("data"), axis_names=manual, check_vma=False)
        rows, heads = P(("data", "fsdp")), P(("data", "fsdp"), None, None, "model")
        layouts = [NamedSharding(mesh, spec) for spec in (heads, P(*heads[:2], "model"), rows, rows)]
        placed = [jax.device_put(x, layout) for x, layout in zip(arrays, layouts)]
        compiled = jax.jit(step, out_shardings=layouts[0]).lower(*placed).compile()
        text = compiled.as_text()
        assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text), sizes
        assert f"f32[{share},5,32,48]" in text and "f32[8,4,5,32,48]" not in text, sizes  # scores of a device
        np.testing.assert_allclose(compiled(*placed), expected, rtol=0, atol=1e-6)
print("same")
"""


def test_on_four_devices_each_computes_its_rows_and_heads_and_sends_nothing() -> None:
    assert on_four_devices(MESHES) == "same"


@pytest.mark.parametrize("window", [0, 4])
def test_rows_of_a_length_that_is_not_known_yet_are_traced(window: int) -> None:
    """As in an export for serving, whose functions take rows of any length."""
    batch, length = jax.export.symbolic_shape("batch, length")
    qkv = jax.ShapeDtypeStruct((batch, length, 3, 2, 8), jnp.float32)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
    mixed = jax.eval_shape(functools.partial(attention, window=window), qkv, lengths)
    assert mixed.shape == (batch, length, 2, 8)
