"""A run of two real processes is the run of one, and both stop when one of them is asked to."""

import signal
from pathlib import Path

import pytest

from tests.tasks import runs


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(corpus, workdir of a finished run of one process)."""
    folder = tmp_path_factory.mktemp("processes")
    runs.write_corpus(folder / "topics.txt")
    runs.run(folder / "one", corpus__files=folder / "topics.txt")
    return folder / "topics.txt", folder / "one"


def test_two_processes_have_the_losses_of_one(one: tuple[Path, Path], tmp_path: Path) -> None:
    """The first builds the vocabulary and the blocks, the other waits; each reads its own rows."""
    processes = runs.start_two(tmp_path / "two", corpus__files=one[0])
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    for name in ("train/mlm_loss", "train/sbo_loss", "train/gradient_norm", "held_out/mlm_loss", "held_out/sbo_loss"):
        assert runs.metrics(tmp_path / "two", name) == pytest.approx(runs.metrics(one[1], name), abs=1e-5)


def test_a_mistake_that_the_first_process_finds_ends_the_others_too(tmp_path: Path) -> None:
    processes = runs.start_two(tmp_path / "run", corpus__files="missing/*.txt")
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], printed
    assert "missing/*.txt" in printed[0]
    assert "error: process 0 could not prepare the data" in printed[1] and "Traceback" not in "".join(printed)


def test_a_signal_to_one_process_stops_both_at_one_checkpoint_that_one_process_goes_on_from(
    one: tuple[Path, Path], tmp_path: Path
) -> None:
    workdir = tmp_path / "stopped"
    fields = {"corpus__files": one[0], "data__dir": one[1] / "data", "train__steps": 300}
    fields |= {"train__checkpoint_every": 1000, "train__eval_every": 1000, "train__log_every": 25}
    processes = runs.start_two(workdir, **fields)
    runs.wait_for(workdir / "metrics.jsonl", processes[0], "mlm_loss")
    processes[1].send_signal(signal.SIGTERM)
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], printed
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert f"Stopped at step {saved} of 300" in printed[0] and 0 < saved < 300
    runs.run(workdir, **fields)
    reference = tmp_path / "reference"
    runs.run(reference, **fields)
    # Two processes sum gradients in another order; the rest of the run is the same.
    assert runs.metrics(workdir, "held_out/mlm_loss")[300] == pytest.approx(
        runs.metrics(reference, "held_out/mlm_loss")[300], abs=1e-3
    )
