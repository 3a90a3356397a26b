"""What a compiled program moves, against programs whose answer is known: written by hand, or counted by XLA itself."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.support.devices import on_four_devices
from tools.tpu.hlo_cost import Collective, Program, by_kind, collectives, read_program, traffic

# As XLA writes for TPUs: layouts with tiles and memory spaces, loops without a written count, each form of collective.
TPU_PROGRAM = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%add (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %sum.1 = f32[]{:T(128)} add(%a.1, %b.1)
}

%layer (carry: (s32[], f32[8,128], f32[24,128])) -> (s32[], f32[8,128], f32[24,128]) {
  %carry = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[24,128]{1,0:T(8,128)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%carry), index=1
  %stack = f32[24,128]{1,0:T(8,128)} get-tuple-element(%carry), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)S(1)} add(%count, %one)
  %row = f32[1,128]{1,0:T(1,128)S(1)} fusion(%stack, %count), kind=kLoop, calls=%take_row
  %reduced = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-reduce(%x), channel_id=1, \
replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0'}, to_apply=%add
  ROOT %carried = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[24,128]{1,0:T(8,128)}) tuple(%next, %x, %stack)
}

%take_row (whole: f32[24,128], index: s32[]) -> f32[1,128] {
  %whole = f32[24,128]{1,0:T(8,128)} parameter(0)
  %index = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %taken = f32[1,128]{1,0:T(1,128)S(1)} dynamic-slice(%whole, %index, %zero), dynamic_slice_sizes={1,128}
}

%more (carry.1: (s32[], f32[8,128], f32[24,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %carry.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[24,128]{1,0:T(8,128)}) parameter(0)
  %count.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%count.1, %limit), direction=LT
}

%scattered (whole.1: f32[64,128]) -> f32[16,128] {
  %whole.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %part = f32[16,128]{1,0:T(8,128)} reduce-scatter(%whole.1), replica_groups=[2,4]<=[8], \
dimensions={0}, to_apply=%add
}

%fused_with_work (y.1: f32[64,128]) -> f32[64,128] {
  %y.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %everywhere = f32[64,128]{1,0:T(8,128)} all-reduce(%y.1), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %twice = f32[64,128]{1,0:T(8,128)} add(%everywhere, %everywhere)
}

ENTRY %main (p.0: f32[64,128], p.1: f32[24,128], p.2: f32[8,128]) -> f32[64,128] {
  %p.0 = f32[64,128]{1,0:T(8,128)} parameter(0), metadata={op_name="state"}
  %p.1 = f32[24,128]{1,0:T(8,128)} parameter(1)
  %p.2 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p.2)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %from = s32[]{:T(128)} constant(FIRST)
  %init = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[24,128]{1,0:T(8,128)}) tuple(%from, %copy-done, %p.1)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[24,128]{1,0:T(8,128)}) while(%init), \
condition=%more, body=%layer
  %scatter-start = ((f32[64,128]{1,0:T(8,128)}), f32[16,128]{1,0:T(8,128)}) async-start(%p.0), calls=%scattered
  %gather-start = (f32[16,128]{1,0}, f32[64,128]{1,0}) all-gather-start(%scatter-done), \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %scatter-done = f32[16,128]{1,0:T(8,128)} async-done(%scatter-start), calls=%scattered
  %gather-done = f32[64,128]{1,0:T(8,128)} all-gather-done(%gather-start)
  %send = (f32[64,128]{1,0:T(8,128)}, u32[], token[]) send(%gather-done, %token), channel_id=3, is_host_transfer=true
  %token = token[] after-all()
  ROOT %result = f32[64,128]{1,0:T(8,128)} fusion(%gather-done), kind=kLoop, calls=%fused_with_work
}
"""


def total(program: Program, on_chip: bool = False) -> int:
    return sum(one.bytes * one.runs for one in traffic(program, on_chip))


@pytest.mark.parametrize(("first", "rounds"), [(0, 24), (1, 23)])
def test_collectives_count_in_each_round_of_the_loop_that_holds_them(first: int, rounds: int) -> None:
    program = read_program(TPU_PROGRAM.replace("FIRST", str(first)))
    assert program.unread_loops == 0
    whole = 64 * 128 * 4
    assert sorted(collectives(program)) == sorted(
        [
            Collective("all-reduce", 8 * 128 * 4, group=16, asynchronous=False, runs=rounds),
            Collective("reduce-scatter", whole, group=4, asynchronous=True, runs=1),
            Collective("all-gather", whole, group=4, asynchronous=True, runs=1),
            Collective("send", whole, group=0, asynchronous=True, runs=1),
            Collective("all-reduce", whole, group=4, asynchronous=True, runs=1),
        ]
    )


OVERLAPPED = """HloModule jit_step, is_scheduled=true

%sum (x.1: bf16[512,1024]) -> bf16[512,1024] {
  %x.1 = bf16[512,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %reduced.1 = bf16[512,1024]{1,0:T(8,128)(2,1)} all-reduce(%x.1), replica_groups={{0,1,2,3}}, to_apply=%add
}

%async_collective_fusion.7 (x.2: bf16[512,1024], y.2: f32[8,128]) -> (f32[8,128], bf16[512,1024], bf16[512,1024]) {
  %x.2 = bf16[512,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %y.2 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %worked = f32[8,128]{1,0:T(8,128)} tanh(%y.2)
  %reduced.2 = bf16[512,1024]{1,0:T(8,128)(2,1)} all-reduce(%x.2), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %all.2 = (f32[8,128], bf16[512,1024], bf16[512,1024]) tuple(%worked, %x.2, %reduced.2)
}

ENTRY %main (p.0: bf16[512,1024], p.1: f32[8,128]) -> bf16[512,1024] {
  %p.0 = bf16[512,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  FIRST
  ROOT %out = bf16[512,1024]{1,0:T(8,128)(2,1)} copy(%p.0)
}
"""
SPREAD_OVER_FUSIONS = """%async-collective-start.3 = (bf16[512,1024], u32[]) fusion(%p.0), kind=kCustom, calls=%sum
  %work = (f32[8,128], bf16[512,1024], bf16[512,1024]) fusion(%p.0, %p.1), calls=%async_collective_fusion.7
  %async-collective-done.3 = bf16[512,1024] fusion(%p.0), kind=kCustom, calls=%sum"""
ON_ANOTHER_CORE = """%reduced-start = ((bf16[512,1024]), bf16[512,1024]) call-start(%p.0), to_apply=%sum
  %reduced-done = bf16[512,1024] call-done(%reduced-start)"""


@pytest.mark.parametrize("form", [SPREAD_OVER_FUSIONS, ON_ANOTHER_CORE], ids=["fused", "sparse core"])
def test_a_collective_that_runs_beside_work_counts_once_and_as_asynchronous(form: str) -> None:
    program = read_program(OVERLAPPED.replace("FIRST", form))
    assert collectives(program) == [Collective("all-reduce", 512 * 1024 * 2, group=4, asynchronous=True, runs=1)]


def test_a_collective_that_is_spread_over_fusions_moves_its_array_once_and_they_their_own() -> None:
    program = read_program(OVERLAPPED.replace("FIRST", SPREAD_OVER_FUSIONS))
    moved = {one.instruction.name: one.bytes for one in traffic(program)}
    whole = 512 * 1024 * 2
    assert moved == {
        "async-collective-start.3": whole,
        "work": 2 * 8 * 128 * 4,
        "async-collective-done.3": whole,
        "out": 2 * whole,
    }


def test_a_ring_sends_each_byte_twice_to_reduce_it_and_once_to_gather_it() -> None:
    sent = {kind: Collective(kind, 1000, 4, False, 1).sent for kind in ("all-reduce", "all-gather", "reduce-scatter")}
    assert sent == {"all-reduce": 1500, "all-gather": 750, "reduce-scatter": 750}
    assert Collective("send", 1000, 0, True, 1).sent == 1000


def test_kinds_are_summed_with_what_is_asynchronous() -> None:
    rows = by_kind(collectives(read_program(TPU_PROGRAM.replace("FIRST", "0"))))
    reduced = next(row for row in rows if row["kind"] == "all-reduce")
    assert (reduced["count"], reduced["asynchronous"]) == (25, 1)
    assert reduced["bytes"] == 24 * 4096 + 32768
    assert reduced["asynchronous_bytes"] == 32768
    assert reduced["sent"] == 24 * 2 * 15 / 16 * 4096 + 2 * 3 / 4 * 32768


def test_only_what_crosses_the_border_of_the_hbm_counts() -> None:
    program = read_program(TPU_PROGRAM.replace("FIRST", "0"))
    moved = {one.instruction.name: (one.bytes, one.runs) for one in traffic(program)}
    assert moved["copy-start"] == (4096, 1)  # read from HBM, written on the chip
    assert moved["row"] == (512 + 4, 24)  # one row of the stack, not all 24, and its number
    assert "reduced" not in moved  # on the chip alone
    assert moved["result"] == (2 * 32768, 1)
    assert traffic(program)[0].bytes * traffic(program)[0].runs == max(size * runs for size, runs in moved.values())
    assert total(program, on_chip=True) > total(program)


def test_a_loop_whose_rounds_are_not_written_is_reported_and_counts_once() -> None:
    text = TPU_PROGRAM.replace("FIRST", "0").replace("compare(%count.1, %limit), direction=LT", "not(%count.1)")
    program = read_program(text)
    assert program.unread_loops == 1
    assert program.runs["layer"] == 1


def test_a_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("HloModule nothing\n")


def compiled(function: Callable, *arguments: jax.Array) -> tuple[Program, float]:
    """The program on this CPU, and XLA's own count of its bytes (a loop's body once)."""
    done: Any = jax.jit(function).lower(*arguments).compile()
    return read_program(done.as_text()), done.cost_analysis()["bytes accessed"]


def test_without_loops_the_traffic_is_what_xla_counts() -> None:
    def function(x: jax.Array, w: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.tanh(x @ w + b) @ w.T
        z = jax.lax.dynamic_update_slice(x, y[:1], (3, 0))
        return jax.lax.dynamic_slice(z, (2, 0), (4, 64)), jnp.sum(y, axis=0)

    program, counted = compiled(function, jnp.ones((32, 64)), jnp.ones((64, 96)), jnp.ones(96))
    assert total(program, on_chip=True) == pytest.approx(counted, rel=0.05)


def test_a_scan_over_layers_moves_what_its_unrolled_form_does() -> None:
    weights, x = jnp.ones((7, 256, 256)), jnp.ones((16, 256))

    def layers(x: jax.Array, weights: jax.Array, unroll: bool) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, unroll=unroll)[0]

    scanned, once = compiled(lambda x, w: layers(x, w, False), x, weights)
    unrolled, all_of_it = compiled(lambda x, w: layers(x, w, True), x, weights)
    at_least = 7 * (256 * 256 + 2 * 16 * 256) * 4  # each layer's weights once, its input and its output
    assert at_least <= total(scanned) <= 3.5 * at_least  # XLA may copy the slice that it reads
    assert at_least <= total(unrolled) <= 3.5 * at_least
    assert total(unrolled) == pytest.approx(all_of_it, rel=0.05)
    assert once < 0.5 * total(scanned)  # which is why it is not XLA's count that is used


def test_collectives_of_a_real_program_on_four_devices() -> None:
    script = """
import json, jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from tools.tpu.hlo_cost import by_kind, collectives, read_program
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
def step(x):
    def body(carry, _):
        return jax.lax.psum(carry * 2, "data") / 4, None
    x = jax.lax.scan(body, x, None, length=5)[0]
    return jax.lax.all_gather(x, "data", tiled=True)
mapped = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((4000,), jnp.float32)).compile().as_text()
print(json.dumps(by_kind(collectives(read_program(text)))))
"""
    found = json.loads(on_four_devices(script))
    rows = {row["kind"]: (row["count"], row["bytes"], row["sent"]) for row in found}
    assert rows == {"all-reduce": (5, 5 * 4000, 5 * 1.5 * 4000), "all-gather": (1, 16000, 12000)}
