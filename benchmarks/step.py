"""Sequences a second of the train step: alone, compared with PyTorch's, or over a sweep of ways to compute the step.

Invariant: "sequences" are full rows of `length` pieces with the paper's budget of masked pieces. Model FLOPs are those
of spanbert_jax/training/flops.py: the matrix products of the model's definition, 3 x forward, with heads on the
gathered positions. MFU divides them by the device's dense bf16 peak.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.table import Table

from benchmarks.batches import VOCAB, make_config
from benchmarks.measure import Options, Result, Side, SideFailed, alternate, median, need, started
from benchmarks.report import terminal
from benchmarks.worker import Json
from spanbert_jax.errors import UserError
from spanbert_jax.training.flops import peak_flops, pretraining_row_flops
from spanbert_jax.training.progress import Stage

PEERS = ("transformers", "pytorch")
ROWS = {  # on one device, the default of --batch
    "cpu": {"tiny": 8, "small": 8, "base": 4, "large": 2},
    "gpu": {"tiny": 512, "small": 512, "base": 256, "large": 128},
    "tpu": {"tiny": 128, "small": 128, "base": 32, "large": 16},
}
KERNELS = {"cpu": ("xla",), "gpu": ("triton", "cudnn", "xla"), "tpu": ("splash", "xla")}
FLAGS = {  # of XLA: a sweep tries each alone, then those that help together
    "cpu": (),
    "gpu": (
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_autotune_level=5",
    ),
    "tpu": ("--xla_tpu_scoped_vmem_limit_kib=65536", "--xla_tpu_scoped_vmem_limit_kib=98304"),
}
ROUND_SECONDS = 2.0  # least time of a side's round
_HELPS = 1.005  # a sweep takes a choice where its speed is above this factor


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to compute the step, with its measurements."""

    spec: Json
    flags: str = ""  # of XLA, which reads them when a process starts
    speed: float = 0.0  # the median, in sequences a second on all devices; 0 where the variant failed
    rounds: tuple[float, ...] = ()  # sequences a second of every round
    facts: Json = dataclasses.field(default_factory=dict)
    peak_bytes: int = 0
    failure: str = ""

    def changed(self, flags: str | None = None, **fields: Any) -> "Variant":
        """The variant with other fields, not measured yet."""
        return Variant({**self.spec, **fields}, self.flags if flags is None else flags)


Measure = Callable[[Variant], Variant]


def probe() -> Json:
    """The facts of benchmarks/probe.py, from another process: a process that has used a GPU keeps the GPU's memory."""
    with Stage("Looking for devices") as stage, Side("probe", {}, ()) as side:
        facts = side.ready(lambda: stage.update(None, "starting JAX")).facts
        stage.update(None, f"{facts['devices']} x {facts['device']}, jax {facts['jax']}")
        return facts


def model_flops(spec: Json) -> float:
    """Model FLOPs of training on one row."""
    config = make_config(spec)
    return pretraining_row_flops(config, VOCAB, config.data.block_length)


def mfu(speed: float, spec: Json, device: str, devices: int) -> float | None:
    """Model FLOP/s over the peak of all devices; None where the peak is not known."""
    peak = peak_flops(device)
    return speed * model_flops(spec) / (peak * devices) if peak else None


def environment(flags: str, platform: str) -> dict[str, str]:
    """Environment variables of our side's process. flags: XLA's, which follow those that the user's environment has."""
    variable = "LIBTPU_INIT_ARGS" if platform == "tpu" else "XLA_FLAGS"
    joined = f"{os.environ.get(variable, '')} {flags}".strip()  # of a flag that is given twice, XLA takes the last
    fixed = {"cpu": {"JAX_PLATFORMS": "cpu"}, "gpu": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}}
    return fixed.get(platform, {}) | ({variable: joined} if joined else {})


def steps_for(seconds: float) -> int:
    """How many steps make a round. seconds: of a step."""
    return max(1, math.ceil(ROUND_SECONDS / seconds))


def measure(variant: Variant, options: Options, platform: str, title: str) -> Variant:
    """The variant with its measurements, from a process of its own; `failure` says why a variant failed."""
    with Stage(title) as stage:
        try:
            with Side("train_side", variant.spec, options.cores, environment(variant.flags, platform)) as side:
                facts = side.ready(lambda: stage.update(None, "compiling")).facts
                first = side.ask({"steps": 2})["seconds"] / 2
                steps, rounds = steps_for(first), []
                for number in range(options.rounds):
                    stage.update(number / options.rounds, f"{steps} steps a round")
                    answer = side.ask({"steps": steps})
                    rounds.append(steps * variant.spec["batch"] * facts["devices"] / answer["seconds"])
        except (SideFailed, UserError) as failed:
            stage.update(None, f"failed: {failed}")
            return dataclasses.replace(variant, failure=str(failed))
        speed = median(rounds)
        stage.update(1.0, f"{speed:,.1f} sequences/s")
    return dataclasses.replace(variant, speed=speed, rounds=tuple(rounds), facts=facts, peak_bytes=answer["peak_bytes"])


def sweep(first: Variant, platform: str, free: Iterable[str], run: Measure, deadline: float) -> list[Variant]:
    """Tries the choices that are `free` ("attention", "batch", "unroll", "flags"), one after the other, each with the
    best of those before. Scanned layers come first, since they compile in a fraction of the time. Starts nothing new
    after the deadline, a time of time.monotonic. Returns all measured variants."""
    tried: list[Variant] = []
    best = first

    def attempt(variants: Iterable[Variant]) -> None:
        nonlocal best
        for variant in variants:
            if time.monotonic() > deadline:
                return
            measured = run(variant)
            tried.append(measured)
            if measured.speed > best.speed * _HELPS:
                best = measured

    kernels = KERNELS[platform] if "attention" in free else (first.spec["attention"],)
    attempt(first.changed(attention=kernel) for kernel in kernels)
    if not best.speed:
        return tried
    if "batch" in free:
        for factor in (2.0, 0.5):
            before, rows = best, best.spec["batch"]
            while rows * factor >= 1 and time.monotonic() < deadline:
                rows = int(rows * factor)
                attempt([best.changed(batch=rows)])
                if best.spec["batch"] != rows:
                    break
            if best is not before:
                break
    if "unroll" in free:
        attempt([best.changed(unroll=not best.spec["unroll"])])
    if "flags" in free:
        base = best
        attempt(base.changed(flags=f"{base.flags} {flag}".strip()) for flag in FLAGS[platform])
        helping = [v.flags for v in tried if v.flags != base.flags and v.speed > base.speed * _HELPS]
        if len(helping) > 1:
            attempt([base.changed(flags=" ".join(dict.fromkeys(" ".join(helping).split())))])
    return tried


def with_attention_dropout(best: Variant, run: Measure) -> list[Variant]:
    """Measures the paper's model: the best variant with attention dropout too; if that fails, also with half the
    rows."""
    found = [run(best.changed(dropout="both", attention="auto"))]
    if found[0].failure:
        found.append(run(best.changed(dropout="both", attention="auto", batch=max(best.spec["batch"] // 2, 1))))
    return found


def fastest(variants: Iterable[Variant]) -> Variant:
    """The variant with the most sequences a second; raises UserError where all failed."""
    found = max(variants, key=lambda variant: variant.speed)
    if not found.speed:
        raise UserError(f"no variant of the step could be measured; the first failed with: {found.failure}")
    return found


def variants_table(variants: list[Variant]) -> Table:
    """A table of all measured variants, the fastest first."""
    columns = ("rows", "attention", "layers", "dropout", "XLA flags", "sequences/s", "MFU", "memory", "compiled in")
    table = Table(*columns, box=None)
    for variant in sorted(variants, key=lambda variant: -variant.speed):
        spec, facts = variant.spec, variant.facts
        share = mfu(variant.speed, spec, facts.get("device", ""), facts.get("devices", 1))
        outcome = (
            (
                f"{variant.speed:,.1f}",
                f"{share:.1%}" if share else "-",
                f"{variant.peak_bytes / 1e9:.1f} GB",
                f"{facts['compile_seconds']:.0f} s",
            )
            if variant.speed
            else ("failed", "", "", "")
        )
        layers = "unrolled" if spec["unroll"] else "scanned"
        table.add_row(str(spec["batch"]), spec["attention"], layers, spec["dropout"], variant.flags, *outcome)
    return table


def step_result(variant: Variant, what: str) -> Result:
    """The table's row for one variant. what: the row's name."""
    spec, facts = variant.spec, variant.facts
    devices, flops = facts["devices"], model_flops(spec)
    share = mfu(variant.speed, spec, facts["device"], devices)
    counted = (
        f"{devices} x {facts['device']}, {spec['batch']} rows of {spec['length']} a device, {spec['precision']}, "
        f"dropout {spec['dropout']}, attention {spec['attention']}; {flops / 1e12:.4f} TFLOP a row, so "
        f"{variant.speed * flops / 1e12:,.3f} TFLOP/s" + (f", MFU {share:.1%} of the bf16 peak" if share else "")
    )
    details = {**dataclasses.asdict(variant), "model_flops": flops, "mfu": share}
    return Result(what, variant.speed, "sequences/s", counted=counted, details=details)


def name_of(spec: Json) -> str:
    """The model's name: "BERT-base" or "4 x 256"."""
    model = make_config(spec).model
    return f"BERT-{spec['size']}" if spec["size"] in ("base", "large") else f"{model.layers} x {model.embed}"


def compare(variant: Variant, peers: list[str], options: Options, facts: Json) -> list[Result]:
    """Rows that compare our step with PyTorch's on the same batches.

    On CPU all sides live at once and take turns, round by round. On a GPU one side fills the memory, so each peer lives
    alone and runs its rounds one after another, and our rounds are those of `variant`. A peer that runs out of memory
    gets a half, then a quarter of the rows.

    Raises UserError where torch or transformers is missing, or there are several devices or a TPU.
    """
    for module in ("torch", "transformers"):
        need(module)
    spec, platform = variant.spec, facts["platform"]
    if platform not in ("cpu", "gpu") or facts["devices"] > 1:
        raise UserError(
            f"--peer compares on CPU or on one NVIDIA GPU, not on {facts['devices']} x {facts['device']}; "
            "CUDA_VISIBLE_DEVICES=0 leaves one GPU"
        )
    title = f"{name_of(spec)} beside {', '.join(peers)}"

    def rounds(specs: dict[str, Json]) -> dict[str, list[float]]:
        """Sequences a second of every side in every round."""
        with contextlib.ExitStack() as stack:
            sides = {}
            for name, one in specs.items():
                module, env = ("train_side", environment(variant.flags, platform)) if name == "ours" else ("peers", {})
                sides[name] = stack.enter_context(Side(module, one, options.cores, env))
            started(sides, f"{title}: starting")
            request = {"steps": steps_for(min(side.ask({"steps": 1})["seconds"] for side in sides.values()))}
            answers = alternate(sides, options.rounds, request, title)
        done = {name: one["batch"] * request["steps"] for name, one in specs.items()}
        return {name: [done[name] / answer["seconds"] for answer in found] for name, found in answers.items()}

    specs = {peer: {**spec, "peer": peer, "compile": platform != "cpu"} for peer in peers}
    speeds = rounds({"ours": spec, **specs}) if platform == "cpu" else {"ours": list(variant.rounds)}
    for name in specs if platform != "cpu" else ():
        for divisor in (1, 2, 4):
            one = {**specs[name], "batch": max(spec["batch"] // divisor, 1)}
            try:
                speeds |= rounds({name: one})
                specs[name] = one
                break
            except SideFailed:
                if divisor == 4:
                    raise
    return [
        peer_result(specs[peer], peer, speeds["ours"], speeds[peer], platform, len(options.cores)) for peer in peers
    ]


def peer_result(spec: Json, peer: str, ours: list[float], theirs: list[float], platform: str, cores: int) -> Result:
    """The row of a comparison. spec: the peer's. ours, theirs: sequences a second of every round."""
    less = "which computes no SBO" if peer == "transformers" else "with gathered positions, SDPA and SBO"
    where = f"{cores} threads each" if platform == "cpu" else "torch.compile"
    counted = (
        f"same rows of {spec['length']} and masked pieces, dropout {spec['dropout']}, {spec['precision']}, "
        f"{where}, fused AdamW, gradient clipped; theirs: {peer}, {less}, batch {spec['batch']}"
    )
    values = {"ours": ours, "theirs": theirs}
    return Result(
        f"train step, {name_of(spec)}, over {peer}",
        median(ours),
        "sequences/s",
        median(theirs),
        counted=counted,
        values=values,
        details={"spec": spec, "platform": platform},
    )


def run(spec: Json, free: list[str], flags: str, peers: list[str], minutes: float, options: Options) -> list[Result]:
    """The subject `step`.

    spec: as for `make_config`; the platform decides fields that are None or missing. free: the choices of a sweep.
    flags: XLA's, for our side. minutes: after which a sweep starts nothing new.
    """
    facts = probe()
    platform = facts["platform"]
    defaults = {
        "precision": "fp32" if platform == "cpu" else "bf16",
        "batch": ROWS[platform][spec["size"]],
        "unroll": False,
        "dropout": "both" if platform == "cpu" else "hidden",
        "attention": "auto",
    }
    both = spec.get("dropout") is None and platform != "cpu"
    spec = {**defaults, **{name: value for name, value in spec.items() if value is not None}}
    first = Variant(spec, flags)
    console = terminal()
    if platform == "cpu":
        if peers:
            return compare(first, peers, options, facts)
        return [step_result(fastest([measure(first, options, platform, "Train step")]), f"train step, {name_of(spec)}")]

    def timed(variant: Variant) -> Variant:
        spec, layers = variant.spec, "unrolled" if variant.spec["unroll"] else "scanned"
        title = f"{spec['batch']} rows, {spec['attention']}, {layers}, dropout {spec['dropout']} {variant.flags}"
        return measure(variant, options, platform, title)

    deadline = time.monotonic() + 60 * minutes
    tried = sweep(first, platform, free, timed, deadline)
    best = fastest(tried)
    results = [step_result(best, f"train step, {name_of(spec)}")]
    if both:
        paper = with_attention_dropout(best, timed)
        tried += paper
        results += [paper_result(fastest(paper), best)] if any(variant.speed for variant in paper) else []
    console.print(variants_table(tried))
    try:
        return results + (compare(best, peers, options, facts) if peers else [])
    except SideFailed as failed:  # the results measured before are worth more than an error
        console.print(f"beside {', '.join(peers)}: left out: {failed}", markup=False)
        return results


def paper_result(paper: Variant, best: Variant) -> Result:
    """The result that compares the step with attention dropout (ours) with the step without (theirs)."""
    result = step_result(paper, f"train step, {name_of(paper.spec)}, attention dropout too (the paper's), over without")
    return dataclasses.replace(result, theirs=best.speed)
