"""Flash attention on an NVIDIA GPU with dropout inside: three Pallas kernels, which Triton compiles.

Invariant: the dropped probabilities are those of `dropout.keep_mask`, bit for bit, and no [length, length] array is
ever in memory. The kernels read queries, keys and values from the one array that the layer's matrix product wrote, and
write the gradients in the same layout, so no array is split or joined.

JAX calls the Triton backend of Pallas deprecated. Every version of JAX that this project runs on has it, and only the
files named *_triton.py use it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from spanbert_jax.model.dropout import counter, keep
from spanbert_jax.model.kernels.interpreter import is_interpreted

_LOG2_E = math.log2(math.e)
_MASKED = -1e30


class Blocks(NamedTuple):
    """How a kernel divides the positions of a row. A program computes the results of the positions that it owns, in a
    loop over the positions that these interact with."""

    owned: int
    step: int  # positions of one turn of the loop
    warps: int
    stages: int  # of Triton's software pipeline


# The fastest blocks of those tried on an H200, with rows of 512 and heads of 64.
FORWARD = Blocks(64, 64, 4, 3)
KEYS = Blocks(64, 64, 4, 3)
QUERIES = Blocks(64, 64, 4, 3)


def triton_attention(
    qkv: jax.Array,
    lengths: jax.Array,
    heads: jax.Array,
    seeds: jax.Array | None,
    rate: float,
) -> jax.Array:
    """`attention` of rows that are all on this device: [batch, length, heads, head_dim] in the dtype of qkv.

    A padded query gives 0, and its cotangent is ignored. A row without a valid piece attends to its first one.

    qkv: [batch, length, 3, heads, head_dim]. lengths: int32 [batch]. heads: int32 [heads], each head's number in the
    whole model, for dropout. seeds: uint32 [2, batch] of `dropout.site_seeds`, or None for no dropout.
    """
    if seeds is None:
        seeds, rate = jnp.zeros((2, len(qkv)), jnp.uint32), 0.0
    return _attention(qkv, jnp.maximum(lengths, 1), heads, seeds, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    return _forward(qkv, lengths, heads, seeds, rate)[0]


def _forward(
    qkv: jax.Array, lengths: jax.Array, heads: jax.Array, seeds: jax.Array, rate: float
) -> tuple[jax.Array, tuple]:
    batch, length, _, count, head_dim = qkv.shape
    shapes = [
        jax.ShapeDtypeStruct((batch, length, count, head_dim), qkv.dtype),
        jax.ShapeDtypeStruct((batch, count, length), jnp.float32),
    ]
    result, normaliser = _call(_forward_kernel, FORWARD, qkv, shapes, rate)(lengths, heads, seeds, qkv)
    return result, (qkv, lengths, heads, seeds, result, normaliser)


def _backward(rate: float, saved: tuple, cotangent: jax.Array) -> tuple:
    qkv, lengths, heads, seeds, result, normaliser = saved
    # The softmax's gradient needs sum_k(d_probabilities * probabilities), which equals sum_d(cotangent * result).
    mean = jnp.sum(cotangent.astype(jnp.float32) * result.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    inputs = (lengths, heads, seeds, qkv, cotangent, normaliser, mean)
    shape = [jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)]
    (d_qkv,) = _call(_keys_kernel, KEYS, qkv, shape, rate)(*inputs)
    last = {len(inputs): 0}  # the second kernel writes the gradients of queries into the same array
    (d_qkv,) = _call(_queries_kernel, QUERIES, qkv, shape, rate, last)(*inputs, d_qkv)
    return d_qkv, None, None, None


_attention.defvjp(_forward, _backward)


def _call(
    kernel: Callable,
    blocks: Blocks,
    qkv: jax.Array,
    shapes: list[jax.ShapeDtypeStruct],
    rate: float,
    aliases: dict[int, int] | None = None,
) -> Callable[..., Any]:
    """The kernel as a function of its arrays: a program for every row, head and block of positions. The programs of one
    head run next to each other, since the first axis of the grid varies fastest.

    shapes: of the results. aliases: number of an input -> number of the result that is written over that input.
    """
    batch, length, _, count, _ = qkv.shape
    return pl.pallas_call(
        functools.partial(kernel, blocks=blocks, rate=rate),
        out_shape=shapes,
        grid=(pl.cdiv(length, blocks.owned), count, batch),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        input_output_aliases=aliases or {},
        interpret=is_interpreted(),
    )


class _Program(NamedTuple):
    """The place of a program, of any of the kernels, in the arrays; and how it reads and writes them."""

    row: jax.Array
    head: jax.Array
    start: jax.Array  # the first of the positions that the program owns
    length: jax.Array  # of the row, without padding
    kept: Callable[[jax.Array, jax.Array], jax.Array]  # queries, keys -> whether dropout keeps their probability

    def load(self, ref: Any, start: jax.Array, count: int, *part: int) -> jax.Array:
        """[count, head_dim] of `ref`, from the position `start` on, 0 where the row is padded.

        ref: [batch, length, 3, heads, head_dim] with `part` (0: queries, 1: keys, 2: values), or [batch, length, heads,
        head_dim] without.
        """
        valid = start + jnp.arange(count) < self.length
        return plgpu.load(
            ref.at[self.row, pl.ds(start, count), *map(jnp.int32, part), self.head, :], mask=valid[:, None], other=0
        )

    def load_vector(self, ref: Any, start: jax.Array, count: int, padding: float) -> jax.Array:
        """[count] of `ref` [batch, heads, length], from the position `start` on, `padding` where the row is padded."""
        valid = start + jnp.arange(count) < self.length
        return plgpu.load(ref.at[self.row, self.head, pl.ds(start, count)], mask=valid, other=padding)

    def store(self, ref: Any, part: int, values: jax.Array) -> None:
        """Writes `values` [owned, head_dim] to `part` of `ref` [batch, length, 3, heads, head_dim], and 0 where the row
        is padded."""
        positions = self.start + jnp.arange(len(values))
        values = jnp.where(positions[:, None] < self.length, values, 0).astype(ref.dtype)
        place = ref.at[self.row, pl.ds(self.start, len(values)), jnp.int32(part), self.head, :]
        plgpu.store(place, values, mask=positions[:, None] < ref.shape[1])

    def through(self, size: int, step: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
        """The carry after `step(first position, carry)` for every `size` valid positions of the row. A program that
        owns padding alone takes no step."""
        valid = jnp.where(self.start < self.length, self.length, 0)
        return jax.lax.fori_loop(0, pl.cdiv(valid, size), lambda number, carry: step(number * size, carry), carry)

    def key_bias(self, keys: jax.Array) -> jax.Array:
        """-1e30 for padded `keys` and 0 for others: added to the logits, it gives padded keys a probability of 0."""
        return jnp.where(keys < self.length, 0.0, _MASKED)


def _program(lengths: Any, heads: Any, seeds: Any, qkv: Any, blocks: Blocks, rate: float) -> _Program:
    block, head, row = (pl.program_id(axis) for axis in range(3))
    size, second = qkv.shape[1], seeds[1, row]
    first = counter(seeds[0, row]) + counter(heads[head] * (size * size))

    def kept(queries: jax.Array, keys: jax.Array) -> jax.Array:
        return keep(first + counter(queries * size) + counter(keys), second, rate)

    return _Program(row, head, block * blocks.owned, lengths[row], kept)


def _forward_kernel(
    lengths: Any, heads: Any, seeds: Any, qkv: Any, result: Any, normaliser: Any, *, blocks: Blocks, rate: float
) -> None:
    """result: [batch, length, heads, head_dim]. normaliser: float32 [batch, heads, length], the binary logarithm of the
    divisor of each query's softmax."""
    at, size, head_dim = _program(lengths, heads, seeds, qkv, blocks, rate), qkv.shape[1], qkv.shape[4]
    queries = at.start + jnp.arange(blocks.owned)
    query = at.load(qkv, at.start, blocks.owned, 0)

    def step(start: jax.Array, carry: tuple) -> tuple:
        mixed, top, total = carry
        keys = start + jnp.arange(blocks.step)
        product = plgpu.dot(query, at.load(qkv, start, blocks.step, 1).T)
        logits = product * (head_dim**-0.5 * _LOG2_E) + at.key_bias(keys)[None]  # [owned, step]
        new_top = jnp.maximum(top, jnp.max(logits, axis=1))
        weights, shrink = jnp.exp2(logits - new_top[:, None]), jnp.exp2(top - new_top)
        total = total * shrink + jnp.sum(weights, axis=1)
        if rate:
            weights = jnp.where(at.kept(queries[:, None], keys[None]), weights, 0)
        value = at.load(qkv, start, blocks.step, 2)
        return mixed * shrink[:, None] + plgpu.dot(weights.astype(value.dtype), value), new_top, total

    nothing = jnp.zeros((blocks.owned, head_dim), jnp.float32)
    vectors = jnp.full(blocks.owned, _MASKED, jnp.float32), jnp.zeros(blocks.owned, jnp.float32)
    mixed, top, total = at.through(blocks.step, step, (nothing, *vectors))
    valid, inside = queries < at.length, queries < size
    mixed = jnp.where(valid[:, None], mixed / (total[:, None] * (1 - rate)), 0).astype(result.dtype)
    where = pl.ds(at.start, blocks.owned)
    plgpu.store(result.at[at.row, where, at.head, :], mixed, mask=inside[:, None])
    plgpu.store(normaliser.at[at.row, at.head, where], top + jnp.log2(total), mask=inside)


def _keys_kernel(
    lengths: Any,
    heads: Any,
    seeds: Any,
    qkv: Any,
    cotangent: Any,
    normaliser: Any,
    mean: Any,
    d_qkv: Any,
    *,
    blocks: Blocks,
    rate: float,
) -> None:
    """The gradients of keys and values.

    cotangent: [batch, length, heads, head_dim]. mean: float32 [batch, heads, length], for each query the mean of the
    gradients of its probabilities, weighted by the probabilities. d_qkv: [batch, length, 3, heads, head_dim], of which
    the queries' part is not written.
    """
    at, head_dim = _program(lengths, heads, seeds, qkv, blocks, rate), qkv.shape[4]
    keys = at.start + jnp.arange(blocks.owned)
    key, value = at.load(qkv, at.start, blocks.owned, 1), at.load(qkv, at.start, blocks.owned, 2)

    def step(start: jax.Array, carry: tuple) -> tuple:
        d_key, d_value = carry
        queries = start + jnp.arange(blocks.step)
        query, coming = at.load(qkv, start, blocks.step, 0), at.load(cotangent, start, blocks.step)
        product, d_weights = plgpu.dot(key, query.T), plgpu.dot(value, coming.T)  # [owned, step]
        # Padded queries have an infinite divisor, so their probabilities are 0.
        divisor = at.load_vector(normaliser, start, blocks.step, math.inf)
        weights = jnp.exp2(product * (head_dim**-0.5 * _LOG2_E) - divisor[None])
        used = weights
        if rate:
            kept = at.kept(queries[None], keys[:, None])
            used, d_weights = jnp.where(kept, weights, 0), jnp.where(kept, d_weights * (1 / (1 - rate)), 0)
        d_logits = weights * (d_weights - at.load_vector(mean, start, blocks.step, 0.0)[None])
        d_value += plgpu.dot(used.astype(coming.dtype), coming)
        return d_key + plgpu.dot(d_logits.astype(query.dtype), query), d_value

    nothing = jnp.zeros((blocks.owned, head_dim), jnp.float32)
    d_key, d_value = at.through(blocks.step, step, (nothing, nothing))
    at.store(d_qkv, 1, d_key * head_dim**-0.5)
    at.store(d_qkv, 2, d_value * (1 / (1 - rate)))


def _queries_kernel(
    lengths: Any,
    heads: Any,
    seeds: Any,
    qkv: Any,
    cotangent: Any,
    normaliser: Any,
    mean: Any,
    _: Any,
    d_qkv: Any,
    *,
    blocks: Blocks,
    rate: float,
) -> None:
    """The gradients of queries, written into the array that `_keys_kernel` made. Arguments are as there."""
    at, head_dim = _program(lengths, heads, seeds, qkv, blocks, rate), qkv.shape[4]
    queries = at.start + jnp.arange(blocks.owned)
    query, coming = at.load(qkv, at.start, blocks.owned, 0), at.load(cotangent, at.start, blocks.owned)
    divisor = at.load_vector(normaliser, at.start, blocks.owned, math.inf)
    subtracted = at.load_vector(mean, at.start, blocks.owned, 0.0)

    def step(start: jax.Array, d_query: jax.Array) -> jax.Array:
        keys = start + jnp.arange(blocks.step)
        key, value = at.load(qkv, start, blocks.step, 1), at.load(qkv, start, blocks.step, 2)
        product, d_weights = plgpu.dot(query, key.T), plgpu.dot(coming, value.T)  # [owned, step]
        weights = jnp.exp2(product * (head_dim**-0.5 * _LOG2_E) - divisor[:, None] + at.key_bias(keys)[None])
        if rate:
            d_weights = jnp.where(at.kept(queries[:, None], keys[None]), d_weights * (1 / (1 - rate)), 0)
        return d_query + plgpu.dot((weights * (d_weights - subtracted[:, None])).astype(key.dtype), key)

    d_query = at.through(blocks.step, step, jnp.zeros((blocks.owned, head_dim), jnp.float32))
    at.store(d_qkv, 0, d_query * head_dim**-0.5)
