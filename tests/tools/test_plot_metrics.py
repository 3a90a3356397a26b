"""tools/plot_metrics.py: the curves of a run."""

import json
from pathlib import Path

import pytest

from tests.support.file_limit import file_limit
from tools import plot_metrics


def write(path: Path, rows: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_head_is_drawn_by_its_accuracy_on_mask_beside_the_guesses(tmp_path: Path) -> None:
    held_out = {"held_out/toy_loss": 2.0, "held_out/toy_accuracy_mask": 0.25, "held_out/toy_accuracy": 0.9}
    guesses = {"held_out/toy_commonest_mask": 0.1, "held_out/toy_neighbours_mask": 0.15}
    write(
        tmp_path / "metrics.jsonl",
        [
            {"step": 1, "train/toy_loss": 3.0, "train/toy_accuracy_mask": 0.125},
            {"step": 2, **held_out, **guesses},
        ],
    )
    accuracy, loss = plot_metrics.draw(plot_metrics.read(tmp_path / "metrics.jsonl"), "a run").axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in accuracy.lines}
    assert drawn["TOY, train"] == [12.5] and drawn["TOY, held out"] == [25.0]
    assert drawn["always the commonest piece (TOY)"] == [10.0, 10.0]
    assert drawn["guess from the neighbours (TOY)"] == [15.0, 15.0]
    assert {line.get_label(): list(line.get_ydata()) for line in loss.lines} == {
        "TOY, train": [3.0],
        "TOY, held out": [2.0],
    }
    assert plot_metrics.main([f"--workdir={tmp_path}", f"--output={tmp_path}/curve.svg"]) == 0
    assert "</svg>" in (tmp_path / "curve.svg").read_text()


def test_damaged_lines_are_left_out_and_missing_metrics_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"--workdir={tmp_path}", f"--output={tmp_path}/curve.svg"]
    for damaged in (None, b"", b'{"st', b"\xff", b"[" * 100_000, b'[3]\n{"step": "1"}'):
        if damaged is not None:
            (tmp_path / "metrics.jsonl").write_bytes(damaged)
        assert plot_metrics.main(command) == 1
        said = capsys.readouterr().err
        assert "metrics.jsonl: no metrics there" in said and said.count("\n") == 1
    assert not (tmp_path / "curve.svg").exists()
    whole = b'{"step": 1, "train/a": 2.5, "note": "text"}\n'
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n" + whole + b'[1]\n{"st')
    assert plot_metrics.read(tmp_path / "metrics.jsonl") == {"step": ([1], [1]), "train/a": ([1], [2.5])}


def test_a_full_disk_and_an_unknown_kind_of_file_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "metrics.jsonl", [{"step": 1, "held_out/mlm_loss": 3.0, "held_out/mlm_accuracy_mask": 0.1}])
    assert plot_metrics.main([f"--workdir={tmp_path}", f"--output={tmp_path}/curve.mp3"]) == 1
    assert "name a .svg or .png file" in capsys.readouterr().err
    with file_limit(1024):
        assert plot_metrics.main([f"--workdir={tmp_path}", f"--output={tmp_path}/curve.svg"]) == 1
    assert f"{tmp_path}/curve.svg: cannot be written (File too large; " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
