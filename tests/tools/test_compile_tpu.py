"""tools/compile_tpu.py: a real step, compiled for a pod that is not there, against what is known of it otherwise.

What needs libtpu, the compiler, skips where requirements-tpu.txt is not installed.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spanbert_jax.config import Config, DataConfig, ModelConfig
from spanbert_jax.errors import UserError
from spanbert_jax.training import flops
from tools.compile_tpu import bounds_of, largest_rung
from tools.tpu import hlo_cost, tpu_topologies
from tools.tpu.layer_costs import kernel_flops, of_all_layers

ROOT = Path(__file__).resolve().parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed (requirements-tpu.txt)",
)

LAYERS, EMBED, MLP, LENGTH, VOCAB, PADDED_VOCAB, ROWS = 3, 128, 256, 128, 3000, 3072, 2
SMALL = [
    f"--config.model.layers={LAYERS}",
    f"--config.model.embed={EMBED}",
    "--config.model.heads=2",
    f"--config.model.mlp={MLP}",
    f"--config.model.max_length={LENGTH}",
    f"--config.data.block_length={LENGTH}",
    f"--vocab-size={VOCAB}",
]
# The numbers of BERT. A layer: Q, K, V and output, the two of the MLP, two LayerNorms. Then the tables, and the heads:
# MLM (dense, LayerNorm, bias) and SBO (15 offsets of 200, two dense, two LayerNorms, bias).
PER_LAYER = 4 * (EMBED**2 + EMBED) + 2 * EMBED * MLP + MLP + EMBED + 4 * EMBED
TABLES = (PADDED_VOCAB + LENGTH + 2) * EMBED + 2 * EMBED
MLM = EMBED**2 + 3 * EMBED + PADDED_VOCAB
SBO = 15 * 200 + (2 * EMBED + 200) * EMBED + EMBED**2 + 6 * EMBED + PADDED_VOCAB
PARAMETERS = LAYERS * PER_LAYER + TABLES + MLM + SBO


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user would; without the tests' cache, which would hide what is compiled."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "tools/compile_tpu.py", "--config", "configs/base.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_libtpu
def test_a_step_for_sixteen_chips_costs_what_the_model_needs(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    run = run_tool("--topology", "v5e-16", f"--rows-per-chip={ROWS}", f"--json={file}", *SMALL)
    assert run.returncode == 0, run.stdout + run.stderr
    facts: dict[str, Any] = json.loads(file.read_text())
    assert facts["fits"]
    assert facts["mesh"] == {"data": 16, "fsdp": 1, "model": 1}
    assert (facts["batch"], facts["chips"]) == (16 * ROWS, 16)
    assert facts["parameters"] == PARAMETERS
    state = 3 * 4 * PARAMETERS  # parameters and Adam's two moments in fp32, on every chip
    assert state <= facts["memory"]["arguments"] < 1.2 * state  # and the batch, and padding to tiles
    assert facts["memory"]["aliased"] > 0.99 * state  # the state is donated
    reduced = next(row for row in facts["collectives"] if row["kind"] == "all-reduce")
    # Every gradient crosses once, in fp32, but for rows that have none (the second token type's); and a few sums.
    assert reduced["bytes"] == pytest.approx(4 * PARAMETERS, rel=1e-3)
    assert reduced["sent"] == pytest.approx(2 * 15 / 16 * reduced["bytes"])
    # All gradients are reduced beside arithmetic: the step stands still for its counts and sums, 38 numbers.
    assert reduced["bytes"] - reduced["asynchronous_bytes"] == 4 * 38
    assert facts["unread_loops"] == 0
    assert 1.0 <= facts["hlo_flops_per_row"] / facts["model_flops_per_row"] < 1.2
    assert facts["memory_bytes_per_step"] >= 2 * state  # it is read and written
    for fact in ("Fits: configs/base.py on v5e-16: 16 x TPU v5 lite", f"{PARAMETERS:,}", "all-reduce", "bound by"):
        assert fact in run.stdout
    assert "the configuration says 2,048" in run.stdout
    assert "compiling 3 layers for v5e-16" in run.stderr
    assert len(run.stderr.splitlines()) == 3, run.stderr  # nothing but the progress


@needs_libtpu
def test_a_step_that_does_not_fit_says_by_how_much_and_what_to_change(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    run = run_tool("--topology", "v5e-1", "--rows-per-chip=65536", f"--json={file}", *SMALL)
    assert run.returncode == 1
    assert "Does not fit: configs/base.py on v5e-1 with 65536 rows a chip. " in run.stdout
    assert re.search(r"rows a chip\. .*\([0-9.]+G\) exceeds available HBM \(15\.75G\)", run.stdout)
    assert "--config.train.accumulation" in run.stdout
    assert "Traceback" not in run.stderr
    assert not json.loads(file.read_text())["fits"]


@needs_libtpu
def test_a_mesh_that_does_not_fit_is_a_mistake() -> None:
    run = run_tool("--topology", "v5e-16", "--config.mesh.model=3", *SMALL)
    assert run.returncode == 1
    assert "does not fit 16 devices" in run.stderr
    assert "Traceback" not in run.stderr


@needs_libtpu
@pytest.mark.parametrize("platforms", ["cpu", ""])
def test_libtpu_leaves_other_programs_of_a_machine_without_tpus_alone(platforms: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    if platforms:
        environment["JAX_PLATFORMS"] = platforms
    script = "import jax; print(jax.devices()[0].platform)"
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.stdout == "cpu\n"
    assert platforms == "" or run.stderr == ""


def test_an_unknown_topology_is_answered_with_the_known_ones() -> None:
    run = run_tool("--topology", "v9-4")
    assert run.returncode == 1
    assert run.stderr.startswith("error: topology 'v9-4' is not known; choose from v5e-1, v5e-16, v5e-256, 2xv5e-256")
    assert len(run.stderr.splitlines()) == 1


def test_a_missing_compiler_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-tpu\.txt"):
        tpu_topologies.compile_only_devices(tpu_topologies.topology("v5e-16"))


@needs_libtpu
@pytest.mark.parametrize(("name", "chips"), [("v4-32", 16), ("v5e-256", 256), ("2xv5e-256", 512), ("v5p-128", 64)])
def test_names_stand_for_as_many_chips_as_google_gives(name: str, chips: int) -> None:
    topology = tpu_topologies.topology(name)
    devices = tpu_topologies.compile_only_devices(topology)
    assert len(devices) == chips
    assert devices[0].device_kind in flops.TPUS
    (one,) = tpu_topologies.compile_only_devices(tpu_topologies.one_chip(topology))
    assert one.device_kind == devices[0].device_kind


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 9, 31])
@pytest.mark.parametrize("start", [1, 4, 9])
def test_bisection_finds_the_largest_that_fits_and_never_tries_twice(most: int, start: int) -> None:
    tried: list[int] = []

    def fits(rung: int) -> bool:
        tried.append(rung)
        return rung <= most

    assert largest_rung(fits, start) == most
    assert len(tried) == len(set(tried)) <= 11


@pytest.mark.parametrize(("kinds", "layers", "most"), [(1, 12, 2), (1, 1, 1), (3, 22, 4), (3, 2, 2), (3, 12, 4)])
def test_costs_of_all_layers_are_those_of_few_with_each_kind_as_often_as_it_stands(
    kinds: int, layers: int, most: int
) -> None:
    compiled = []

    def costs(count: int) -> dict[str, float]:
        compiled.append(count)
        return {"flops": 100.0 + sum(10.0 ** -(layer % kinds) for layer in range(count))}

    found = of_all_layers(costs, layers, kinds)
    assert max(compiled) <= most and len(compiled) <= 3
    assert found["flops"] == pytest.approx(costs(layers)["flops"])


_CALL = """\
  %{name}.{number} = bf16[1,4096,64]{{2,1,0}} custom-call(%x), target="tpu_custom_call", of={{kernel_metadata={{
"xprof_metadata":"{{}}"
}}}}, metadata={{op_name="jit(step)/jvp({scope})/pallas_call"}}"""


def test_flops_of_splash_count_the_blocks_within_a_window_and_the_products_of_separate_kernels() -> None:
    """A full layer of 2 and 5 products, and a windowed one of 2, 4 and 3, with 8 + 2 * 7 of the 8 * 8 blocks."""
    fwd, dkv, dq = (f"splash_mha_{name}_segmented_residuals" for name in ("fwd", "dkv", "dq"))
    calls = [(fwd, "splash"), (dkv, "splash"), *((name, "windowed_splash") for name in (fwd, dkv, dq))]
    lines = [_CALL.format(name=name, number=number, scope=scope) for number, (name, scope) in enumerate(calls)]
    program = hlo_cost.read_program("\n".join(["ENTRY %main (x: f32[]) -> f32[] {", *lines, "}"]))
    config = Config(
        model=ModelConfig(family="modern", embed=64, heads=1, window=64), data=DataConfig(block_length=4096)
    )
    assert kernel_flops(program, config, 3) == 2 * 3 * 64 * (7 * 4096**2 + 9 * 22 * 512**2)


def test_the_bound_of_a_step_is_that_of_its_slowest_resource() -> None:
    chip = flops.Chip(flops=100.0, memory=0, memory_bandwidth=10.0, link_bandwidth=5.0, network_bandwidth=1.0)
    facts = {
        "batch": 8,
        "chips": 4,
        "model_flops_per_row": 50.0,
        "hlo_flops_per_row": 60.0,
        "memory_bytes_per_step": 20.0,
        "collectives": [{"kind": "all-reduce", "sent": 30.0}, {"kind": "send", "sent": 3.0}],
    }
    assert bounds_of(facts, chip) == {"compute": 1.2, "memory": 2.0, "interconnect": 6.0, "network": 3.0}
