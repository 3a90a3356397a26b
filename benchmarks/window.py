"""Sliding-window attention on the CPU: the banded form beside the dense one, forward and backward.

Invariant: both sides compute the same results and gradients in float32, on full rows of 12 heads of 64 numbers, with a
window of 64 positions on each side and no dropout. Speeds count CPU time, which other processes on the same cores
disturb less than the time on the clock. Memory is that of XLA's temporaries, as the compiler plans them.
"""

import time
from typing import Any

from benchmarks.measure import Options, Result, Side, alternate, median, started
from benchmarks.step import environment
from benchmarks.worker import Handler, Json

_LENGTHS = (512, 1024, 2048)
_SHAPE = {"rows": 2, "heads": 12, "head_dim": 64, "window": 64}
_ROUND_SECONDS = 0.5  # least CPU time of a round at one length


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: "form" ("banded" or "dense"), "lengths", the keys of _SHAPE and, where a round takes another least CPU time
    than _ROUND_SECONDS, "seconds". The facts are the "bytes" of temporaries at each length. A request is answered with
    the rows per second of CPU time at each length ("speeds")."""
    import jax

    compiled = [_compile(spec, length) for length in spec["lengths"]]
    arrays = [[jax.numpy.ones(shape) for shape in _shapes(spec, length)] for length in spec["lengths"]]

    def speed(number: int) -> float:
        calls, began = 0, time.process_time()
        while not calls or time.process_time() - began < spec.get("seconds", _ROUND_SECONDS):
            jax.block_until_ready(compiled[number](*arrays[number]))
            calls += 1
        return spec["rows"] * calls / (time.process_time() - began)

    def run(request: Json) -> Json:
        return {"speeds": [speed(number) for number in range(len(compiled))]}

    run({})
    return {"bytes": [step.memory_analysis().temp_size_in_bytes for step in compiled]}, run


def _shapes(spec: Json, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of qkv, and of the result."""
    rows, heads, head_dim = spec["rows"], spec["heads"], spec["head_dim"]
    return (rows, length, 3, heads, head_dim), (rows, length, heads, head_dim)


def _compile(spec: Json, length: int) -> Any:
    """The compiled function (qkv, cotangents of the result) -> (result, gradient of qkv)."""
    import jax
    import jax.numpy as jnp

    from spanbert_jax.model.kernels.attention_banded import banded_attention
    from spanbert_jax.model.kernels.attention_dense import dense_attention

    attention = {"banded": banded_attention, "dense": dense_attention}[spec["form"]]
    lengths = jnp.full(spec["rows"], length, jnp.int32)

    def call(qkv: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of_parts(qkv: jax.Array) -> jax.Array:
            query, key, value = (qkv[:, :, part] for part in range(3))
            return attention(query, key, value, lengths, None, 0.0, spec["window"])

        result, vjp = jax.vjp(of_parts, qkv)
        return result, vjp(cotangent)[0]

    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in _shapes(spec, length))
    return jax.jit(call).lower(*arguments).compile()


def run(options: Options) -> list[Result]:
    """The subject `window`."""
    names = "banded", "dense"
    specs = {name: {**_SHAPE, "lengths": _LENGTHS, "form": name} for name in names}
    with (
        Side("window", specs["banded"], options.cores, environment("", "cpu")) as banded,
        Side("window", specs["dense"], options.cores, environment("", "cpu")) as dense,
    ):
        sides = {"banded": banded, "dense": dense}
        started(sides, "Sliding windows: compiling")
        answers = alternate(sides, options.rounds, {}, "Sliding windows")
    results = []
    for number, length in enumerate(_LENGTHS):
        speeds = {name: [answer["speeds"][number] for answer in answers[name]] for name in names}
        memory = {name: sides[name].facts["bytes"][number] / 1e6 for name in names}
        counted = (
            "forward and backward in float32, {rows} rows of {heads} heads of {head_dim} numbers, a window of {window} "
            "positions on each side; the banded form beside the dense one"
        ).format(**_SHAPE)
        ours, theirs = (median(speeds[name]) for name in names)
        results += [
            Result(f"window, rows of {length}", ours, "rows/CPU s", theirs, counted, speeds),
            Result(f"window, rows of {length}: XLA's temporaries", memory["banded"], "MB", memory["dense"], counted),
        ]
    return results
