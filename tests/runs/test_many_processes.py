"""A run of several real processes is the run of one, on every mesh; they stop together when one is asked to."""

import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.runs import processes
from tests.support import runs
from tests.support.damage import DAMAGE, damage

STEPS = {
    "data.lengths": 1,
    "optimizer.warmup_steps": 1,
    "train.steps": 4,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.checkpoint_every": 2,
    "train.eval_blocks": 16,
}
# What is damaged in checkpoint 4 of the runs that go on: the last process's part may be read by one process alone.
BROKEN = {"1x4x1": DAMAGE["cut metadata"], "1x2x2": ("state/ocdbt.process_3/d/*", True)}
MEASURED = ("train/mlm_loss", "train/sbo_loss", "train/mlm_accuracy", "held_out/mlm_loss", "held_out/sbo_loss")


@pytest.fixture(scope="module")
def one(topics: Path, finished: tuple[Path, str], once_a_session: Callable) -> Path:
    """The workdir of a finished run of one process with one device."""
    fields = {name.replace(".", "__"): value for name, value in STEPS.items()}
    fields |= {"corpus__files": topics, "data__dir": finished[0] / "data"}
    folder, _ = once_a_session("one-process", lambda folder: runs.call(folder / "one", **fields).stdout)
    return folder / "one"


def assert_equal_runs(workdir: Path, reference: Path, first: int = 0) -> None:
    """The metrics after step `first`: of every step's batch, and of the held-out blocks at steps 2 and 4."""
    for name in MEASURED:
        expected = {step: value for step, value in runs.metrics(reference, name).items() if step > first}
        found = {step: value for step, value in runs.metrics(workdir, name).items() if step > first}
        assert found == pytest.approx(expected, abs=1e-5), name
        assert len(expected) == (4 - first) // (1 if name.startswith("train") else 2)


@pytest.fixture(scope="module")
def on_meshes(one: Path, topics: Path, once_a_session: Callable) -> Path:
    """Runs "4x1x2" (data x fsdp x model) and so on. Four processes of two devices each build vocabulary and blocks of
    their own, divide the moments, and go on from their step 2 on another mesh. Two such processes go on from what one
    device wrote, in microbatches, and from what the four wrote; the newest checkpoint is damaged."""

    def train(folder: Path) -> None:
        def planned(mesh: tuple[int, int, int], go_on: Path | None = None, **more: Any) -> list[Any]:
            workdir = folder / "x".join(map(str, mesh))
            if go_on is not None:
                shutil.copytree(go_on, workdir)
                damage(workdir / "checkpoints" / "4", *BROKEN[workdir.name])
            where = dict(zip(("mesh.data", "mesh.fsdp", "mesh.model"), mesh, strict=True))
            text = {"corpus.files": str(topics), "data.dir": str(folder / "data")}
            return [str(workdir), STEPS | text | where | more]

        four = planned((4, 1, 2), **{"mesh.shard_optimizer": True})
        runs.run_together([four, [*planned((2, 4, 1)), {"go_on": [str(folder / "4x1x2"), 2]}]], 4, devices=2)
        two = [planned((1, 4, 1), go_on=one, **{"train.accumulation": 2})]
        runs.run_together([*two, planned((1, 2, 2), go_on=folder / "4x1x2")], 2, devices=2)

    return once_a_session("meshes", train)[0]


def test_four_processes_have_the_batches_and_losses_of_one_device(one: Path, on_meshes: Path) -> None:
    assert_equal_runs(on_meshes / "4x1x2", one)


def test_four_processes_go_on_from_four_processes_checkpoint_on_another_mesh(one: Path, on_meshes: Path) -> None:
    assert_equal_runs(on_meshes / "2x4x1", one, first=2)


@pytest.mark.parametrize("mesh", BROKEN)
def test_a_mesh_goes_on_from_another_ones_newest_sound_checkpoint(mesh: str, one: Path, on_meshes: Path) -> None:
    assert_equal_runs(on_meshes / mesh, one, first=2)
    assert {path.name for path in (on_meshes / mesh / "checkpoints").iterdir()} == {"2", "4", "4.damaged"}


def test_one_device_goes_on_from_four_processes_checkpoint(
    one: Path, topics: Path, on_meshes: Path, tmp_path: Path
) -> None:
    workdir = runs.half_way(on_meshes / "4x1x2", tmp_path / "run", step=2)
    fields = {name.replace(".", "__"): value for name, value in STEPS.items()}
    runs.call(workdir, corpus__files=topics, data__dir=on_meshes / "data", **fields)
    assert_equal_runs(workdir, one, first=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distributed", "--processes=2", "--process=1", "--wait=1"], "waits for process 0 at localhost:"),
        (["--process=1"], "--coordinator, --processes and --process need --distributed"),
    ],
)
def test_a_wait_in_vain_and_flags_without_their_switch_end_in_one_line(
    flags: list[str], message: str, tmp_path: Path
) -> None:
    address = f"--coordinator=localhost:{runs.free_port()}"
    command = [*runs.command(tmp_path / "run", corpus__files="none.txt"), address, *flags]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, env=runs.environment())
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and not (tmp_path / "run").exists()


def test_a_mistake_that_the_first_process_finds_ends_the_others_too(tmp_path: Path) -> None:
    two = runs.start_two(runs.command(tmp_path / "run", corpus__files="missing/*.txt"))
    printed = [process.communicate()[0] for process in two]
    assert [process.returncode for process in two] == [1, 1], printed
    assert "missing/*.txt" in printed[0]
    assert "error: process 0 could not prepare the data" in printed[1] and "Traceback" not in "".join(printed)


def test_a_run_of_two_survives_ctrl_c_and_the_loss_of_process_0_and_refuses_a_late_process(
    longer: tuple[Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, (uninterrupted, fields) = tmp_path / "stopped", longer
    two = runs.start_two(runs.command(workdir, **fields))
    runs.wait_for(workdir / "metrics.jsonl", two[0], "mlm_loss")
    two[1].send_signal(signal.SIGINT)
    printed = [process.communicate()[0] for process in two]
    assert [process.returncode for process in two] == [75, 75], printed
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert f"Stopped at step {saved} of 60" in printed[0] and 0 < saved < 60
    assert "Traceback" not in "".join(printed)

    windows = (workdir / "metrics.jsonl").read_text().count("train/mlm_loss")
    two = runs.start_two(runs.command(workdir, **fields))
    runs.wait_until(lambda: (workdir / "metrics.jsonl").read_text().count("train/mlm_loss") > windows, two[0])
    for name, value in runs.slurm(process=1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "BEGUN_SECONDS", 0)
    with pytest.raises(UserError, match="most likely the run has begun without process 1 of 2"):
        processes.start(None, None, None, 60, print, {})
    two[0].kill()
    printed_by_1 = two[1].communicate()[0]
    assert two[1].returncode == 75, printed_by_1
    (line,) = [line for line in printed_by_1.splitlines() if not line.startswith("[Gloo]")]
    assert re.fullmatch(r"process 0 of 2 \(.*\) was lost; every process ends; the same command goes on", line)

    runs.call(workdir, **fields)
    # Two processes sum gradients in another order; the rest of the run is the same.
    assert runs.metrics(workdir, "held_out/mlm_loss")[60] == pytest.approx(
        runs.metrics(uninterrupted, "held_out/mlm_loss")[60], abs=1e-3
    )
