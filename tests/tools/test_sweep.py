"""A sweep shows results of one configuration alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import runs
from tools import sweep

GRID = ("--learning-rates", "1e-3", "--batch-sizes", "16")


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workdirs of the runs, each of which ends at once with its number as the metric."""
    done: list[str] = []

    def run(command: list[str]) -> int:
        place = Path(command[command.index("--workdir") + 1])
        place.mkdir(parents=True)
        done.append(place.name)
        (place / "results.json").write_text(json.dumps({"best": "f1", "trials": [{"f1": len(done)}]}))
        return 0

    monkeypatch.setattr(sweep, "run_to_its_end", run)
    return done


def test_another_configuration_or_flag_is_refused_and_a_larger_grid_goes_on(tmp_path: Path, made: list[str]) -> None:
    def sweep_of(config: str, *flags: str, seeds: str = "1", expect: int = 0) -> str:
        where = ("--config", config, "--workdir", tmp_path / "new" / "sweep", "--seeds", seeds)
        called = runs.tool("sweep", *where, *GRID, "--", *flags, expect=expect)
        assert called.stderr.count("\n") == expect
        return called.stderr or called.stdout

    assert " 1.00 " in sweep_of("configs/squad.py", "--config.init_from=a", "--config.trials=2")
    assert " 1.50 " in sweep_of("configs/squad.py", "--config.init_from=a", "--config.trials=2", seeds="1,2")
    assert made == ["rate_1e-3-batch_16-seed_1", "rate_1e-3-batch_16-seed_2"]
    place = f"error: {tmp_path}/new/sweep/sweep.json: "
    for flags, before, now in (
        (("configs/squad2.py", "--config.init_from=a"), "--config=configs/squad.py", "--config=configs/squad2.py"),
        (("configs/squad.py", "--config.init_from=b"), "--config.init_from=a", "--config.init_from=b"),
    ):
        said = sweep_of(*flags, "--config.trials=2", seeds="1,2,3", expect=1)
        assert said.startswith(f"{place}the runs there have {before}, and this command has {now}; give ")
    said = sweep_of("configs/squad.py", "--config.init_from=a", expect=1)
    assert said.startswith(f"{place}the runs there have --config.trials=2, and this command has ")
    assert len(made) == 2


def test_a_sweep_of_an_earlier_version_goes_on(tmp_path: Path, made: list[str]) -> None:
    (tmp_path / "rate_1e-3-batch_16-seed_1").mkdir()
    (tmp_path / "rate_1e-3-batch_16-seed_1" / "results.json").write_text('{"best": "f1", "trials": [{"f1": 7}]}')
    where = ("--config", "configs/squad.py", "--workdir", tmp_path, "--seeds", "1,2")
    assert " 4.00 " in runs.tool("sweep", *where, *GRID).stdout
    assert made == ["rate_1e-3-batch_16-seed_2"] and not (tmp_path / "sweep.json").exists()


def test_a_flag_of_the_sweep_itself_and_a_run_without_results_are_one_line(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--config", "configs/tiny.py", "--workdir", tmp_path, *GRID)
    said = runs.tool("sweep", *where, "--", "--workdir=elsewhere", expect=1).stderr
    assert (
        said == "error: --workdir=elsewhere stands after --, and each run gets it from the sweep; give it before --\n"
    )
    assert not made
    monkeypatch.setattr(sweep, "run_to_its_end", lambda _: 0)
    said = runs.tool("sweep", *where, expect=1).stderr
    assert said.endswith(": the run left no results.json; give a --config that fine-tunes a task\n")
    assert said.count("\n") == 1


def test_a_mean_of_nan_is_not_the_best() -> None:
    table = sweep.table_of({("1e-3", "16"): [np.nan, 80.0], ("2e-3", "16"): [60.0, 61.0]}, "pearson")
    assert [row.style for row in table.rows] == [None, "bold"]


def test_a_damaged_list_of_flags_is_told(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    called = runs.tool("sweep", "--config", "configs/squad.py", "--workdir", tmp_path, *GRID, expect=1)
    assert called.stderr.startswith(f"error: {tmp_path}/sweep.json is damaged (") and called.stderr.count("\n") == 1
