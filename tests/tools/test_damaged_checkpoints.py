"""Every tool that opens a run: a damaged best checkpoint is skipped, and where all are damaged, one line says so."""

import shutil
from pathlib import Path

import pytest

from spanbert_jax.tasks.finetuning import Learnt
from tests.support import runs
from tests.support.damage import DAMAGE, damage
from tests.support.tuned import write_tuned

TEXTS = "label\tsentence\nno\ta b\nyes\tb a\n"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run with the checkpoints best/3 and checkpoints/3."""
    run = write_tuned(tmp_path_factory.mktemp("damaged") / "run", "sequence_classification", Learnt(("no", "yes")))
    shutil.copytree(run / "best", run / "checkpoints")
    return run


def arguments(tool: str, run: Path) -> list[object]:
    """Those of the tool's command line for the run, or for one of its checkpoints."""
    folder = run.parent
    (folder / "dev.tsv").write_text(TEXTS)
    output = ["--output", folder / f"{tool}.out"]
    return {
        "predict": ["--checkpoint", run, "--input", folder / "dev.tsv", *output],
        "evaluate": ["--checkpoint", run, "--data", folder / "dev.tsv"],
        "convert_to_pytorch": ["--checkpoint", run, *output],
        "export_serving": ["--checkpoint", run, "--format", "stablehlo", *output],
        "inspect_checkpoint": [run],
    }[tool]


TOOLS = ("predict", "evaluate", "convert_to_pytorch", "export_serving", "inspect_checkpoint")


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_finds_no_sound_checkpoint_ends_in_one_line_and_leaves_nothing(
    tool: str, kind: str, tuned: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    for folder in ("best", "checkpoints"):
        damage(run / folder / "3", *DAMAGE[kind])
    said = runs.tool(tool, *arguments(tool, run), expect=1).stderr
    assert said.startswith(f"error: {run}: no sound checkpoint there: {run}/best/3 is damaged (")
    assert f"; {run}/checkpoints/3 is damaged (" in said and said.count("\n") == 1
    said = runs.tool(tool, *arguments(tool, run / "checkpoints" / "3"), expect=1).stderr
    assert said.startswith(f"error: {run}/checkpoints/3: this checkpoint is damaged (") and said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "dev.tsv"}


def test_a_tool_that_skips_a_damaged_best_checkpoint_says_which_one_it_uses(tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    damage(run / "best" / "3", *DAMAGE["a cut array"])
    called = runs.tool("inspect_checkpoint", *arguments("inspect_checkpoint", run))
    assert called.stderr.startswith(f"warning: {run}/best/3 is damaged (") and called.stderr.count("\n") == 1
    assert called.stderr.endswith(f"); {run}/checkpoints/3 is used\n")
    assert called.stdout.startswith(f"{run}/checkpoints/3: a checkpoint of spanbert_jax, step 3")
