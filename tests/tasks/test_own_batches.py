"""A task may bring its own batches and its own section of the configuration (tests/support/toy_task.py)."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import spanbert_jax
from spanbert_jax import cli
from spanbert_jax.config import default_config
from spanbert_jax.runs import finetuning
from spanbert_jax.serving.engine import Engine
from spanbert_jax.serving.scheduler import Limits
from tests.support import runs, toy_task

WORDS = [f"w{i}" for i in range(12)]
VALUES: dict[str, object] = {
    "task": "toy",
    "model.layers": 1,
    "model.embed": 32,
    "model.heads": 2,
    "model.mlp": 64,
    "model.max_length": 8,
    "model.init_std": 0.1,
    "data.block_length": 8,
    "tokenizer.kind": "wordpiece",
    "corpus.workers": 1,
    "optimizer.learning_rate": 1e-2,
    "train.batch_size": 16,
    "train.accumulation": 2,
    "train.log_every": 10,
    "train.checkpoint_every": 10,
    "finetuning.epochs": 5,
    "finetuning.eval_every_epochs": 2.5,
}


@pytest.fixture
def fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The configuration of a small run: one segment of w0 makes a document's label "yes"."""
    toy_task.install(monkeypatch)
    rng = random.Random(0)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    for name, count in (("train", 128), ("dev", 30)):
        lines = []
        for number in range(count):
            segments = [rng.choices(WORDS[1:], k=4) for _ in range(3)]
            if number % 2:
                segments[rng.randrange(3)] = ["w0"] * 4
            lines.append(f"{'yes' if number % 2 else 'no'}\t{' | '.join(map(' '.join, segments))}\n")
        (tmp_path / name).write_text("".join(lines))
    files = {"data.train": tmp_path / "train", "data.dev": tmp_path / "dev"}
    return VALUES | files | {"tokenizer.vocab_file": tmp_path / "vocab.txt"}


def call(workdir: Path, fields: dict[str, object], expect: int = 0) -> runs.Called:
    return runs.call_config(default_config(), workdir, [], expect, **fields)


def test_documents_of_segments_are_learnt_evaluated_and_gone_on_with(
    fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(tmp_path / "whole", fields)
    (trial,) = json.loads((tmp_path / "whole" / "results.json").read_text())["trials"]
    assert trial["accuracy"] > 80  # a guess has 50
    last = max(int(path.name) for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert last == 40
    # Files, Python callers and requests get the predictions that the run itself made.
    expected = [json.loads(line) for line in (tmp_path / "whole" / "predictions.jsonl").read_text().splitlines()]
    said = runs.tool("predict", "--checkpoint", tmp_path / "whole", "--input", fields["data.dev"])
    assert [json.loads(line) for line in said.stdout.splitlines()] == expected
    loaded = spanbert_jax.load(tmp_path / "whole")
    documents = [line.split("\t")[1] for line in Path(str(fields["data.dev"])).read_text().splitlines()]
    assert loaded.predict(documents) == expected
    model = loaded.served("toy", 8).task
    assert model is not None and len(model.table) == 1
    model.prepare(model.table[0])
    with contextlib.closing(Engine([model], Limits())) as engine:
        answered = engine.submit(model, documents, 60).result(60)
    assert [one.prediction for one in answered.answers] == expected
    # The same run from its checkpoint of half the steps.
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    for step in (30, 40):
        shutil.rmtree(tmp_path / "half" / "checkpoints" / str(step), ignore_errors=True)
    (tmp_path / "half" / "results.json").unlink()
    steps = []
    batch = toy_task.DocumentBatches.batch
    monkeypatch.setattr(toy_task.DocumentBatches, "batch", lambda self, step: steps.append(step) or batch(self, step))
    call(tmp_path / "half", fields)
    assert steps[0] == 20
    whole, half = (runs.params(tmp_path / name, last) for name in ("whole", "half"))
    assert all(np.array_equal(whole[name], half[name]) for name in whole)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_value_of_the_tasks_own_section_makes_rows_anew(
    fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    featurise = toy_task.DocumentRows.__call__

    def counted(self: toy_task.DocumentRows, examples: list[toy_task.Document]) -> list[list[dict[str, object]]]:
        made.append(self.segments)
        return featurise(self, examples)

    monkeypatch.setattr(toy_task.DocumentRows, "__call__", counted)
    monkeypatch.setattr(finetuning, "claim_workdir", stop)
    for segments, expected in ((3, {3}), (3, set()), (2, {2})):
        made.clear()
        call(tmp_path / "run", fields | {"toy.segments": segments}, cli.STOPPED_EARLY)
        assert set(made) == expected
