"""benchmarks/learning.py: recipes are configurations, a stopped benchmark goes on, and the table has its columns."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import learning
from benchmarks.learning import RECIPES, Cell, affordable, fields_of
from configs.tiny import get_config
from spanbert_jax.config import from_dict
from spanbert_jax.config_check import check
from spanbert_jax.errors import UserError


def record(cell: Cell, loss: float, seconds: float) -> dict[str, Any]:
    """A line of cells.jsonl."""
    metrics = {
        "mlm_loss_mask": loss,
        "mlm_accuracy_mask": 0.1,
        "sbo_accuracy_mask": 0.125,
        "mlm_commonest_mask": 0.0625,
        "sbo_commonest_mask": 0.0625,
        "mlm_neighbours_mask": 0.09,
        "mlm_neighbours_loss_mask": 5.75,
        "sbo_neighbours_mask": 0.08,
    }
    return {"settings": cell.settings(), "metrics": metrics, "cpu_seconds": seconds}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_configuration_and_says_all_that_another_may_change(name: str) -> None:
    config = get_config()
    config.update_from_flattened_dict(fields_of(name, 600))
    check(from_dict(config.to_dict()))
    assert set(fields_of(name, 600)) == set(fields_of("bert", 600))
    assert RECIPES[name].of is None or fields_of(name, 600) != fields_of(str(RECIPES[name].of), 600)


def test_a_recipe_gets_the_steps_that_the_first_ones_cpu_seconds_pay_for() -> None:
    seconds = {"bert": (90, 110), "rotary": (101, 103), "modern": (120, 130)}
    records = {
        (cell := Cell(name, seed, 1000)): record(cell, 6.0, both[seed - 1])
        for name, both in seconds.items()
        for seed in (1, 2)
    }
    assert affordable("bert", records, [1, 2], 1000, "bert") == 1000
    assert affordable("rotary", records, [1, 2], 1000, "bert") == 1000  # within 3%
    assert affordable("modern", records, [1, 2], 1000, "bert") == 800


def test_a_benchmark_that_was_stopped_trains_only_what_is_left_and_ends_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Cell] = []

    def train(cell: Cell, *_: Any) -> dict[str, Any]:
        trained.append(cell)
        if len(trained) == 3:
            raise UserError("stopped")
        faster = cell.recipe == "bert"
        return record(cell, 6.0 if faster else 5.5 + cell.seed / 10, cell.steps / (10 if faster else 8))

    monkeypatch.setattr(learning, "train", train)
    arguments = [
        "--recipes",
        "bert,bert_adamw",
        "--seeds",
        "1,2",
        "--steps",
        "100",
        "--work",
        str(tmp_path),
        "--cores",
        "1",
    ]
    assert learning.main(arguments) == 1
    assert learning.main(arguments) == 0
    assert len(trained) == 7  # four cells, one of them twice, and two with fewer steps
    assert {cell.steps for cell in trained if cell.recipe == "bert_adamw"} == {100, 80}
    printed = capsys.readouterr().out
    assert (tmp_path / "learning.svg").exists() and (tmp_path / "table.md").read_text() in printed
    lines = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if line.startswith("|")]
    (row,) = [line for line in lines if line[1].startswith("bert_adamw:")]
    assert row[2] == "5.650 ± 0.071" and row[6] == "+0.350 (bert)" and row[7] == "80"
    (guess,) = [line for line in lines if "visible neighbours" in line[1]]
    assert guess[2:5] == ["5.750", "9.0", "8.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--recipes", "gpt"], "'gpt' is unknown; known are bert"), (["--seeds", "a"], "--seeds a: expected numbers")],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert learning.main(arguments) == 1
    assert message in capsys.readouterr().err
