"""Compiles the real train step for TPUs without having any: does the step fit, what does it cost, what limits it?

    python tools/compile_tpu.py --config configs/large.py --topology v5e-256 [--rows-per-chip 16] [--fit] [--json FILE]
    python tools/compile_tpu.py --table [--topology=v5e-256]      (base, large and modern base; an hour for all TPUs)

Needs no TPU: `pip install -r requirements-tpu.txt` brings the compiler. Fields are set as --config.FIELD=VALUE.

Invariant: memory, traffic and collectives are those of the program that would run on these TPUs. XLA counts the body of
a loop once, so the FLOPs of all layers are extrapolated from two unrolled programs on one chip with as many rows: with
one layer, and with one turn of the kinds of layers more (of BERT 2 layers, of the modern family 4).
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from spanbert_jax import cli
from spanbert_jax.batch import abstract_batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.files import written_aside
from spanbert_jax.main import config_file, run_app
from tools.tpu import hlo_cost
from tools.tpu.layer_costs import kernel_flops, of_all_layers
from tools.tpu.tpu_topologies import TOPOLOGIES, compile_only_devices, one_chip, topology

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from spanbert_jax.training.flops import Chip

TOPOLOGY = flags.DEFINE_string("topology", None, "The TPUs, by the name that Google Cloud gives them.")
ROWS = flags.DEFINE_integer(
    "rows-per-chip",
    None,
    "Rows of a microbatch on one chip; default: as config.train has them, at least 1.",
    lower_bound=1,
)
VOCAB = flags.DEFINE_integer("vocab-size", 28_996, "Pieces in the vocabulary.", lower_bound=1)
FIT = flags.DEFINE_bool("fit", False, "Find the most rows that fit on a chip (above 8: in steps of 8).")
LARGEST = flags.DEFINE_integer("largest", 0, "List this many of the instructions that move the most bytes.")
OPTIONS = flags.DEFINE_multi_string("compiler-option", [], "NAME=VALUE for XLA, as in LIBTPU_INIT_ARGS; repeatable.")
JSON = flags.DEFINE_string("json", None, "Write everything to this file too.")
TABLE = flags.DEFINE_bool("table", False, "Base, large and modern base for every topology, as a Markdown table.")
# Lengths and rows a chip of modern base in the table: about as many pieces in each.
_MODERN_LENGTHS = {512: 16, 1024: 8, 8192: 1}


class DoesNotFit(Exception):
    """The step does not fit; the message is the compiler's account of the memory that is missing."""


class Compiled(NamedTuple):
    """A step compiled for a mesh."""

    memory: Any  # jax's memory_analysis()
    costs: dict[str, float]  # jax's cost_analysis()
    program: hlo_cost.Program
    parameters: int  # numbers in the model
    seconds: float


def compile_step(config: Config, mesh: "Mesh", what: str) -> Compiled:
    """Compiles the train step of `config` for the mesh. what: names the step on stderr.

    Raises DoesNotFit, and UserError for an unknown --compiler-option.
    """
    import jax

    from spanbert_jax.model import pretraining_heads
    from spanbert_jax.tasks.pretraining_loss import objective
    from spanbert_jax.training import sharding
    from spanbert_jax.training.step import abstract_state, make_train_step

    began = time.monotonic()
    print(f"compiling {what} ...", end=" ", file=sys.stderr, flush=True)
    with jax.set_mesh(mesh):  # make no concrete array in here: there is no device to hold it
        model = pretraining_heads.pretraining_model(config, VOCAB.value, "tpu")
        abstract = abstract_state(config, lambda key: pretraining_heads.init_params(model, key), mesh)
        step = make_train_step(config, objective(model, commonest=0), abstract)
        lowered = step.lower(abstract, abstract_batch(config, sharding.batch_sharding(mesh)))
        try:
            compiled = lowered.compile(compiler_options=dict(_option(text) for text in OPTIONS.value))
        except jax.errors.JaxRuntimeError as error:
            print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")) from error
            if "No such compile option" in str(error):
                raise UserError(f"--compiler-option: {str(error).splitlines()[0]}") from error
            raise
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s", file=sys.stderr)
    size = sum(leaf.size for leaf in jax.tree.leaves(abstract["params"]))
    program = hlo_cost.read_program(compiled.as_text())
    return Compiled(compiled.memory_analysis(), dict(compiled.cost_analysis()), program, size, seconds)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.removeprefix("--").partition("=")
    if not equals:
        raise UserError(f"--compiler-option {text!r}: expected NAME=VALUE")
    return name, value


def with_rows(config: Config, mesh: "Mesh", rows: int | None) -> tuple[Config, int]:
    """(configuration, rows): with `rows` on each chip in each microbatch; without `rows`, as close as possible to the
    batch of `config`."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = rows or max(1, config.train.batch_size // config.train.accumulation // shards)
    train = dataclasses.replace(config.train, batch_size=rows * shards * config.train.accumulation)
    return dataclasses.replace(config, train=train), rows


def one_chip_costs(config: Config, rows: int) -> dict[str, float]:
    """FLOPs and bytes per row of all layers, unrolled on one chip: extrapolated from few layers."""
    from spanbert_jax.model.families import family_of
    from spanbert_jax.training import sharding

    (device,) = compile_only_devices(one_chip(topology(TOPOLOGY.value)))
    compute = dataclasses.replace(config.compute, unroll=True)
    mesh_config = dataclasses.replace(config.mesh, data=1, fsdp=1, model=1)
    train = dataclasses.replace(config.train, batch_size=rows, accumulation=1)
    config = dataclasses.replace(config, compute=compute, mesh=mesh_config, train=train)

    def costs(layers: int) -> dict[str, float]:
        shallow = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=layers))
        mesh = sharding.make_mesh(mesh_config, [device])
        compiled = compile_step(shallow, mesh, f"{layers} of {config.model.layers} layers for one chip")
        moved = sum(one.bytes * one.runs for one in hlo_cost.traffic(compiled.program))
        xla = compiled.costs
        total = xla["flops"] + kernel_flops(compiled.program, config, rows)
        return {"flops": total, "xla_bytes": xla["bytes accessed"], "memory_bytes": float(moved)}

    summed = of_all_layers(costs, config.model.layers, len(family_of(config.model).layers(config.model)))
    return {name: cost / rows for name, cost in summed.items()}


def memory_of(compiled: Compiled) -> dict[str, int]:
    """Bytes of HBM that one chip needs, by purpose; "peak" is their sum, with aliased buffers counted once."""
    memory = compiled.memory
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,  # outputs in the place of arguments
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return sizes | {"peak": sum(sizes.values()) - 2 * sizes["aliased"]}


def bounds_of(facts: dict[str, Any], chip: "Chip") -> dict[str, float]:
    """Lower bounds of a step's seconds, one for each resource that may limit the step."""
    rows = facts["batch"] / facts["chips"]  # each chip's share of the arithmetic, on any mesh
    needed = max(facts["model_flops_per_row"], facts["hlo_flops_per_row"])
    sent = {row["kind"]: row["sent"] for row in facts["collectives"]}
    network = sent.pop("send", 0.0)
    bounds = {
        "compute": rows * needed / chip.flops,
        "memory": facts["memory_bytes_per_step"] / chip.memory_bandwidth,
        "interconnect": sum(sent.values()) / chip.link_bandwidth,
    }
    if network and chip.network_bandwidth:
        bounds["network"] = network / chip.network_bandwidth
    return bounds


def facts_of(config: Config, mesh: "Mesh", rows: int, compiled: Compiled) -> dict[str, Any]:
    """All numbers of the report, as JSON; sizes are in bytes."""
    from spanbert_jax.training import flops

    kind = mesh.devices.flat[0].device_kind
    costs = one_chip_costs(config, rows)
    moved = hlo_cost.traffic(compiled.program)
    facts: dict[str, Any] = {
        "topology": TOPOLOGY.value,
        "device_kind": kind,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "batch": config.train.batch_size,
        "rows_per_chip": rows,
        "accumulation": config.train.accumulation,
        "parameters": compiled.parameters,
        "compile_seconds": compiled.seconds,
        "memory": memory_of(compiled),
        "memory_bytes_per_step": sum(one.bytes * one.runs for one in moved),
        "model_flops_per_row": flops.pretraining_row_flops(config, VOCAB.value, config.data.block_length),
        "hlo_flops_per_row": costs["flops"],
        "unrolled_memory_bytes_per_row": costs["memory_bytes"],
        "unrolled_xla_bytes_per_row": costs["xla_bytes"],
        "collectives": hlo_cost.by_kind(hlo_cost.collectives(compiled.program)),
        "unread_loops": compiled.program.unread_loops,
        "largest": [
            [one.bytes * one.runs, one.runs, one.instruction.name, one.instruction.origin]
            for one in moved[: LARGEST.value]
        ],
    }
    facts["bounds"] = bounds_of(facts, flops.TPUS[kind])
    return facts


def describe(facts: dict[str, Any], config: Config) -> str:
    """The report as text."""
    from spanbert_jax.training import flops

    chip, memory, gib, rows = flops.TPUS[facts["device_kind"]], facts["memory"], 2**30, facts["rows_per_chip"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    shards = facts["mesh"]["data"] * facts["mesh"]["fsdp"]
    shared = f" (on the {facts['mesh']['model']} chips of a replica)" if facts["mesh"]["model"] > 1 else ""
    told = "" if facts["batch"] == config.train.batch_size else f"; the configuration says {config.train.batch_size:,}"
    half = 2 * facts["parameters"]  # in bf16
    lines = [
        f"Fits: {config_file()} on {facts['topology']}: {facts['chips']} x {facts['device_kind']}, mesh {mesh}",
        f"Batch             {facts['batch']:,} rows: {shards} x {rows}{shared} x {facts['accumulation']} microbatches"
        + told,
        f"Parameters        {facts['parameters']:,}: {half / 1e6:,.1f} MB in bf16",
        f"Memory a chip     {memory['peak'] / gib:.2f} of {chip.memory / gib:.0f} GiB: arguments "
        f"{memory['arguments'] / gib:.2f}, temporaries {memory['temporaries'] / gib:.2f}, program "
        f"{memory['program'] / gib:.2f}, outputs {memory['outputs'] / gib:.2f} (of them "
        f"{memory['aliased'] / gib:.2f} in the place of arguments)",
        f"FLOPs a row       model {facts['model_flops_per_row'] / 1e12:.4f} T, HLO "
        f"{facts['hlo_flops_per_row'] / 1e12:.4f} T: {facts['hlo_flops_per_row'] / facts['model_flops_per_row']:.3f} x",
        f"HBM traffic       {facts['memory_bytes_per_step'] / 1e9:.1f} GB a chip and step, "
        f"{facts['memory_bytes_per_step'] * shards / facts['batch'] / 1e9:.2f} GB a row",
        f"  layers unrolled {facts['unrolled_memory_bytes_per_row'] / 1e9:.2f} GB a row on one chip; XLA's count, "
        f"on-chip memory included: {facts['unrolled_xla_bytes_per_row'] / 1e9:.2f} GB",
    ]
    lines += _collective_lines(facts["collectives"], half)
    if facts["unread_loops"]:
        lines.append(f"  {facts['unread_loops']} loops have an unknown number of rounds, and count as one round each")
    binding = max(facts["bounds"], key=facts["bounds"].get)
    bound = facts["bounds"][binding]
    limits = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in facts["bounds"].items())
    mfu = facts["model_flops_per_row"] * facts["batch"] / facts["chips"] / bound / chip.flops
    lines.append(
        f"A step takes      at least {bound * 1e3:.1f} ms, bound by {binding} (ms: {limits}); so at most "
        f"{facts['batch'] / bound / facts['chips']:,.0f} rows a second and chip, MFU {mfu:.0%}"
    )
    for size, runs, name, origin in facts["largest"]:
        lines.append(f"  {size / 1e9:8.3f} GB in {runs:3d} x {name}: {origin}")
    return "\n".join(lines)


def _collective_lines(rows: list[dict[str, Any]], half: int) -> list[str]:
    """A line for each kind and one for their sum, beside the parameters' bytes in bf16."""
    total, sent = sum(row["bytes"] for row in rows), sum(row["sent"] for row in rows)
    waited = sum(row["count"] - row["asynchronous"] for row in rows)
    lines = [
        f"Collectives       {sum(row['count'] for row in rows)} a step, {total / 1e6:,.1f} MB: {total / half:.2f} x "
        f"the parameters in bf16; a chip sends {sent / half:.2f} x; {waited} of them not asynchronous"
    ]
    return lines + [
        f"  {row['kind']:18s}{row['count']:4d}, {row['bytes'] / 1e6:10,.1f} MB; asynchronous: {row['asynchronous']}, "
        f"{row['asynchronous_bytes'] / max(row['bytes'], 1):.0%} of the bytes"
        for row in rows
    ]


def largest_that_fits(config: Config, mesh: "Mesh", rows: int) -> tuple[int, Compiled]:
    """(rows, compiled step): the most rows on a chip that fit, of 1 to 8 and then multiples of 8. rows: where the
    search starts. Raises DoesNotFit where not even one row fits."""
    results: dict[int, Compiled | None] = {}

    def attempt(rung: int) -> bool:
        count = _rung_rows(rung)
        try:
            results[rung] = compile_step(with_rows(config, mesh, count)[0], mesh, f"with {count} rows a chip")
        except DoesNotFit as account:
            print(f"  {count} rows do not fit: {account}", file=sys.stderr)
            results[rung] = None
        return results[rung] is not None

    best = largest_rung(attempt, rows if rows <= 8 else 7 + rows // 8)
    found = results.get(best)
    if found is None:
        raise DoesNotFit("not even one row fits on a chip")
    return _rung_rows(best), found


def _rung_rows(rung: int) -> int:
    """1, 2, ... 8, 16, 24, ... rows for rung 1, 2, ..."""
    return rung if rung <= 8 else 8 * (rung - 7)


def largest_rung(fits: Callable[[int], bool], start: int) -> int:
    """The largest n >= 1 with `fits(n)`, or 0 where 1 does not fit. No n may fit above one that does not."""
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def main(config: Config, _: str) -> int:
    """Compiles and reports; returns the exit status, 1 where the step does not fit."""
    import jax

    from spanbert_jax.training import sharding

    jax.config.update("jax_platforms", "cpu")  # leaves a TPU of this machine free
    if config.task != "pretraining":
        raise UserError(f"config.task is {config.task!r}; only the step of 'pretraining' is compiled")
    devices = compile_only_devices(topology(TOPOLOGY.value))
    mesh = sharding.make_mesh(config.mesh, devices)
    chosen, rows = with_rows(config, mesh, ROWS.value)
    try:
        if FIT.value:
            rows, compiled = largest_that_fits(config, mesh, rows)
            chosen, _rows = with_rows(config, mesh, rows)
        else:
            what = f"{config.model.layers} layers for {TOPOLOGY.value}, {rows} rows a chip"
            compiled = compile_step(chosen, mesh, what)
    except DoesNotFit as account:
        advice = "fewer rows a chip (--rows-per-chip; the same batch with a larger --config.train.accumulation), "
        advice += "--config.compute.remat=dots or full, --config.mesh.fsdp or model above 1"
        print(f"Does not fit: {config_file()} on {TOPOLOGY.value} with {rows} rows a chip. {account}\nTry {advice}.")
        _write({"topology": TOPOLOGY.value, "rows_per_chip": rows, "fits": False, "account": str(account)})
        return 1
    facts = facts_of(chosen, mesh, rows, compiled) | {"fits": True}
    print(describe(facts, config))
    _write(facts)
    return 0


def _write(facts: dict[str, Any]) -> None:
    if JSON.value:
        with written_aside(Path(JSON.value)) as aside:
            aside.write_text(json.dumps(facts, indent=2) + "\n")


def table(arguments: list[str]) -> int:
    """Prints a Markdown table, from which docs/tpu.md is taken; a process with `arguments` compiles for each row. An
    argument --topology leaves only that one."""
    began, lines = time.monotonic(), []
    models: dict[str, list[str]] = {size: [f"--config=configs/{size}.py"] for size in ("base", "large")}
    for length, rows in _MODERN_LENGTHS.items():
        lengths = [f"--config.data.block_length={length}", f"--rows-per-chip={rows}"]
        models[f"modern base, {length:,}"] = ["--config=configs/modern_base.py", *lengths]
    asked = [argument.partition("=")[2] for argument in arguments if argument.startswith("--topology=")]
    for model, flags_of_model in models.items():
        for name in asked or TOPOLOGIES:
            print(f"[{(time.monotonic() - began) / 60:.0f} min] {model} on {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "facts.json"
                command = [sys.executable, __file__, *arguments, *flags_of_model]
                command += [f"--topology={name}", f"--json={file}"]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if not file.exists():
                    return run.returncode or 1
                lines.append(_table_row(model, json.loads(file.read_text())))
    head = ("model", "TPUs", "chips", "rows a chip", "memory", "HLO / model FLOPs", "HBM a row", "collectives", "step")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    print("\n".join(lines))
    return 0


def _table_row(model: str, facts: dict[str, Any]) -> str:
    from spanbert_jax.training import flops

    if not facts["fits"]:
        return f"| {model} | {facts['topology']} | | {facts['rows_per_chip']} | does not fit | | | | |"
    chip, bounds = flops.TPUS[facts["device_kind"]], facts["bounds"]
    binding = max(bounds, key=bounds.get)
    shards = facts["mesh"]["data"] * facts["mesh"]["fsdp"]
    cells = (
        model,
        facts["topology"],
        str(facts["chips"]),
        str(facts["rows_per_chip"]),
        f"{facts['memory']['peak'] / 2**30:.1f} of {chip.memory / 2**30:.0f} GiB",
        f"{facts['hlo_flops_per_row'] / facts['model_flops_per_row']:.3f}",
        f"{facts['memory_bytes_per_step'] * shards / facts['batch'] / 1e9:.2f} GB",
        f"{sum(row['bytes'] for row in facts['collectives']) / 2 / facts['parameters']:.2f} x",
        f"{bounds[binding] * 1e3:.1f} ms, {binding}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    others = [argument for argument in sys.argv[1:] if argument != "--table"]
    cli.run(lambda: table(others) if "--table" in sys.argv else run_app(main))
