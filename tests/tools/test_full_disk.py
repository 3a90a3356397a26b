"""A full disk in what the tools write is one line with the path and the free space, and leaves nothing behind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spanbert_jax.convert.export import Export, write_export
from spanbert_jax.errors import UserError
from spanbert_jax.serving.prediction_files import write_for_scorer, write_jsonl
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from tests.support.file_limit import file_limit
from tests.support.pretrained import params_of, random_weights, write_pretrained
from tools import convert_from_pytorch, convert_to_pytorch, export_serving

TOKENIZER = Tokenizer("wordpiece", "\n".join([*SPECIALS, *"abcdefgh"]).encode())


def test_a_full_disk_in_a_conversion_or_an_export_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output, weights = tmp_path / "run", tmp_path / "out", random_weights(TOKENIZER)
    write_pretrained(run, weights)

    def tried(main: Any, *arguments: object) -> None:
        with file_limit(3000):
            assert main([*map(str, arguments), f"--output={output}"]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {output}: cannot be written (File too large; ") and said.count("\n") == 1
        assert f"GB are free in {tmp_path}); make room and start again" in said
        assert not output.exists() and not list(tmp_path.glob(".*"))

    tried(convert_to_pytorch.main, f"--checkpoint={run}")
    tried(export_serving.main, f"--checkpoint={run}", "--format=stablehlo")
    (tmp_path / "published").mkdir()
    export = Export(params_of(weights), weights.config.model, TOKENIZER, (), {}, "published", "pretraining")
    write_export(export, tmp_path / "published", "float32", False)
    tried(convert_from_pytorch.main, f"--input={tmp_path}/published")


def test_a_full_disk_in_a_file_of_predictions_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def write(examples: Any, predictions: Any, folder: Path) -> Path:
        (folder / "scorer.txt").write_text("x" * 2000)
        return folder / "scorer.txt"

    task: Any = SimpleNamespace(write=write)
    for name, work in (
        ("a.jsonl", lambda path: write_jsonl([{"id": "x" * 2000}], path)),
        ("b.txt", lambda path: write_for_scorer(task, [], [], path.parent, path.name)),
        ("", lambda path: write_for_scorer(task, [], [], path)),
    ):
        with (
            file_limit(1000),
            pytest.raises(UserError, match=rf"{name}: cannot be written \(File too large; .* are free"),
        ):
            work(tmp_path / name)
    assert not list(tmp_path.iterdir())
