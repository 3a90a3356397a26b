"""benchmarks/finetuning_peer.py: both sides take the same steps, and cells are made once and put in a table."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import finetuning_material, finetuning_peer, finetuning_side, finetuning_torch
from benchmarks.finetuning_material import Material
from benchmarks.finetuning_peer import TASKS, Cell
from tests.support.published import LETTERS, write_vocabulary
from tests.support.synthetic import VOCAB

COUNT = 11  # examples, so that an epoch of batches of 4 has an empty row
SMALL = {
    "data.block_length": 32,
    "data.lengths": 1,
    "model.dropout": 0.0,
    "model.attention_dropout": 0.0,
    "optimizer.learning_rate": 1e-3,
    "optimizer.bias_correction": True,
    "corpus.workers": 1,
    "train.batch_size": 4,
    "finetuning.epochs": 2.0,
    "tagging.max_width": 3,
    "question_answering.stride": 8,
    "question_answering.max_question": 8,
}


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a BERT of two layers, whose random weights give attention that is far from even."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("init")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    model = BertModel(BertConfig(vocab_size=VOCAB, max_position_embeddings=32, initializer_range=0.3, **sizes))
    model.save_pretrained(folder)
    write_vocabulary(folder / "vocab.txt")
    return folder


def words(rng: np.random.Generator, most: int) -> list[str]:
    return ["".join(rng.choice(list(LETTERS), rng.integers(1, 4))) for _ in range(rng.integers(3, most + 1))]


def write_data(kind: str, path: Path) -> None:
    """Examples of different lengths, each with an answer, a tag or a label."""
    rng = np.random.default_rng(7)
    if kind == "squad":
        paragraphs = []
        for number in range(COUNT):
            text = words(rng, 20)
            answer = {"text": text[1], "answer_start": len(text[0]) + 1}
            question = {"id": str(number), "question": " ".join(words(rng, 3)), "answers": [answer]}
            paragraphs.append({"context": " ".join(text), "qas": [question]})
        path.write_text(json.dumps({"version": "1.1", "data": [{"title": "a", "paragraphs": paragraphs}]}))
    elif kind == "ner":
        sentences = [
            [f"{word}\t{rng.choice(['O', 'O', 'B-X', 'B-Y'])}" for word in words(rng, 9)] for _ in range(COUNT)
        ]
        path.write_text("\n\n".join("\n".join(lines) for lines in sentences) + "\n")
    else:
        lines = [f"{' '.join(words(rng, 9))}\t{number % 2}" for number in range(COUNT)]
        path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n")


KINDS = {
    "sequence": ("glue:sst2", {}),
    "token": ("ner", {}),
    "span": ("ner", {"tagging.head": "span"}),
    "question": ("squad", {}),
}


# A softmax does not change where all its inputs shift by as much. The gradient of these is rounding alone, of which
# Adam makes steps of any size.
SHIFTS = ("attention.self.key.bias", "qa_outputs.bias")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's threads would wait in loops for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spec_of(kind: str, init: Path, folder: Path) -> dict[str, Any]:
    config, fields = KINDS[kind]
    data = folder / f"{kind}.{'json' if kind == 'question' else 'tsv'}"
    write_data(config, data)
    everything = {"train": str(data), "dev": str(data), "train_examples": None, "dev_examples": None}
    return {"config": config, "fields": {**SMALL, **fields}, "init": str(init), "seed": 3, **everything}


def changed(material: Material, section: str, **fields: Any) -> Material:
    config = material.config
    part = dataclasses.replace(getattr(config, section), **fields)
    return material._replace(config=dataclasses.replace(config, **{section: part}))


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_take_the_same_steps(kind: str, init: Path, tmp_path: Path) -> None:
    material = finetuning_material.prepare(spec_of(kind, init, tmp_path))
    ours, theirs = finetuning_side.train(material), finetuning_torch.train(material)
    assert len(ours.losses) == len(theirs.losses) == material.config.train.steps >= 6
    np.testing.assert_allclose(ours.losses[0], theirs.losses[0], atol=1e-5)
    np.testing.assert_allclose(ours.losses, theirs.losses, atol=1e-4)
    before, after = (finetuning_torch.tensors(material, params) for params in (material.params, ours.weights))
    state = theirs.weights.state_dict()
    assert after.keys() == state.keys()
    for name, tensor in after.items():
        if not name.endswith(SHIFTS):
            np.testing.assert_allclose(state[name].numpy(), tensor, rtol=0, atol=2e-5, err_msg=name)
    assert max(float(np.max(np.abs(after[name] - before[name]))) for name in after) > 2e-3
    scores = [finetuning_side.results(material, trained) for trained in (ours, theirs)]
    assert scores[0]["metrics"] == pytest.approx(scores[1]["metrics"]) and scores[0]["guess"] == scores[1]["guess"]
    assert ours.compile_seconds > 0 == theirs.compile_seconds


def test_the_comparison_notices_dropout_and_weight_decay(init: Path, tmp_path: Path) -> None:
    """A guard on the test above: the torch side follows these fields."""
    material = finetuning_material.prepare(spec_of("token", init, tmp_path))
    plain, again, dropping, decaying = (
        finetuning_torch.train(one)
        for one in (
            material,
            material,
            changed(material, "model", dropout=0.5),
            changed(material, "optimizer", weight_decay=5.0),
        )
    )
    assert plain.losses == again.losses
    assert abs(plain.losses[0] - dropping.losses[0]) > 1e-2
    assert plain.losses[0] == decaying.losses[0] and abs(plain.losses[-1] - decaying.losses[-1]) > 1e-4


def test_a_cell_answers_with_its_numbers(init: Path, tmp_path: Path) -> None:
    _, run = finetuning_side.start({**spec_of("sequence", init, tmp_path), "side": "theirs", "train_examples": 8})
    answer = run({})
    assert json.loads(json.dumps(answer)) == answer and answer["steps"] == 4 and answer["best"] == "score"
    assert 0 <= answer["metrics"]["score"] <= 100 and answer["cpu_seconds"]["process"] > answer["cpu_seconds"]["steps"]


def test_examples_are_spread_over_the_file() -> None:
    assert finetuning_material.spread(range(100), 4) == [0, 33, 66, 99]
    assert finetuning_material.spread(range(3), 4) == finetuning_material.spread(range(3), None) == [0, 1, 2]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_torch_s_optimizer(name: str) -> None:
    spec = {**Cell(name, "ours", 5, "weights").settings(), "train": "a", "dev": "b"}
    config = finetuning_material.config_of(spec)
    wanted = config.optimizer
    assert wanted.bias_correction and (wanted.decay_scope, wanted.decay_from) == ("matrices", "warmup_end")
    assert wanted.eps_placement == "corrected" and wanted.gradient_divisor == 1 and wanted.clip_norm > 0
    assert config.train.seed == 5 and config.init_from == "weights" and config.finetuning.epochs == TASKS[name].epochs


def record_of(cell: Cell, metric: float, seconds: float) -> dict[str, Any]:
    cpu = {"compile": 20.0 if cell.side == "ours" else 0.0, "steps": seconds, "evaluation": 1.0, "process": seconds}
    found = {"best": "score", "metrics": {"score": metric}, "guess": {"score": 50.9}, "steps": 100}
    return {"settings": cell.settings(), **found, "cpu_seconds": cpu}


def test_the_table_has_means_deviations_and_ratios_over_seeds() -> None:
    records = [
        record_of(Cell("sst2", side, seed, weights), metric, seconds)
        for side, seed, weights, metric, seconds in (
            ("ours", 1, "a/minilm", 86.0, 60.0),
            ("theirs", 1, "a/minilm", 85.0, 120.0),
            ("ours", 2, "a/minilm", 88.0, 100.0),
            ("ours", 1, "a/continued", 87.5, 1.0),
        )
    ]
    head, _, row = finetuning_peer.table(records).splitlines()[:3]
    names = ["this project, from minilm", "transformers + torch, from minilm", "this project, from continued"]
    assert [cell.strip() for cell in head.split("|")][4:7] == names
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3:7] == ["50.9", "87.0 ± 1.4", "85.0", "87.5"]
    assert cells[7:9] == ["0.80, 1.20, 0.67", "100, 120, 0.83"]


def test_a_finished_cell_is_not_made_again(init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Cell] = []

    def fake(cell: Cell, *_: Any) -> dict[str, Any]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(cell)
        return record_of(cell, 80.0 + cell.seed, 10.0)

    monkeypatch.setattr(finetuning_peer, "measure", fake)
    arguments = ["--tasks=sst2,rte", "--seeds=1,2", f"--data={tmp_path}", f"--init={init}", f"--work={tmp_path}/work"]
    assert finetuning_peer.main(arguments) == 75
    assert [(cell.task, cell.side) for cell in made] == [("sst2", "ours"), ("sst2", "theirs"), ("rte", "ours")]
    first, made[:] = made[:], []
    assert finetuning_peer.main([*arguments[:1], "--seeds=1", *arguments[2:]]) == 0
    assert [(cell.task, cell.side) for cell in made] == [("rte", "theirs")]
    table = (tmp_path / "work/table.md").read_text()
    assert table.count("| 81.0 | 81.0 |") == 2
    made.clear()
    monkeypatch.setitem(TASKS, "sst2", TASKS["sst2"]._replace(epochs=9.0))
    assert finetuning_peer.main(["--tasks=sst2", "--sides=ours", "--seeds=1", *arguments[2:]]) == 0
    assert made == first[:1] and "9 = 100 steps" in (tmp_path / "work/table.md").read_text()


def test_mistakes_are_one_line(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert finetuning_peer.main([f"--work={tmp_path}", *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "'sst3' is unknown; known are sst2, rte" in error("--tasks=sst2,sst3")
    assert "--sides: 'both' is unknown" in error("--sides=both")
    assert "--seeds 1,x: expected numbers" in error("--seeds=1,x")
    assert "no such directory" in error(f"--data={tmp_path}/none") and "--init" in error(f"--init={tmp_path}/none")
    (tmp_path / "cells.jsonl").write_text('{"settings": {"task"\n')
    assert "cells.jsonl, line 1" in error(f"--data={tmp_path}", f"--init={init}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "torch is missing" in error() and "requirements-torch.txt" in error()
