"""benchmarks/ablation.py: the grid, LitBank's mentions, the lengths of masked spans, and the tables."""

import argparse
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from benchmarks import ablation, ablation_cell
from benchmarks.ablation import Cell, sentences_with_mentions
from benchmarks.ablation_cell import run_lengths
from benchmarks.ablation_grid import EXTENSIONS, GUESS, LENGTHS, STARTS, TASKS, count, recipes, rows_of
from benchmarks.cells import read_records
from benchmarks.finetuning_material import made_config
from benchmarks.measure import ROOT
from configs.tiny import get_config
from spanbert_jax.batch import KEPT, MASK
from spanbert_jax.config import ModelConfig, from_dict
from spanbert_jax.corpus.neighbours import Neighbours


@pytest.mark.parametrize("start", STARTS)
def test_every_recipe_is_a_configuration_of_the_same_steps_and_rows(start: str) -> None:
    named = {row.recipe for group in ablation.GROUPS for row in rows_of(start, group)}
    assert named <= set(recipes())
    configs = [made_config(STARTS[start].config, Cell(name, start, 1, 50).fields) for name in named]
    sizes = {(c.train.steps, c.train.batch_size, c.data.block_length, c.corpus.spans, c.model.embed) for c in configs}
    assert len(sizes) == 1


def test_the_finished_cells_beside_the_page_are_cells_of_the_grid() -> None:
    records = read_records(ROOT / "docs" / "ablation.jsonl")
    settings = [record["settings"] for record in records]
    cells = [Cell(one["recipe"], one["start"], one["seed"], one["steps"]) for one in settings]
    assert cells and len(set(cells)) == len(cells)
    assert [json.loads(json.dumps(cell.settings())) for cell in cells] == settings
    titles = [task.title for task in TASKS.values()]
    page = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")
    assert " | ".join(titles) in page


def test_a_control_has_as_many_parameters_as_its_extension() -> None:
    model = ModelConfig(**get_config().model.to_dict())
    bare = count(model, 4_096)
    references = {row.recipe: row.reference for row in rows_of("random", "extension")}
    for name, fields in EXTENSIONS.items():
        reference = references[name]
        assert reference is not None
        wider = recipes()[reference].fields.get("model.mlp", model.mlp)
        both = [count(dataclasses.replace(model, **one), 4_096) for one in (fields, {"mlp": wider})]
        assert both[0] == pytest.approx(both[1], rel=5e-3 if reference == "one_sbo" else 1e-3) and both[0] > bare


def test_mentions_of_a_sentence_may_nest_and_share_words() -> None:
    marks = ["(0|(1)", "_", "(2", "2)|0)", "_"]
    lines = [f"doc\t0\t{place}\tw{place}\t_\t_\t{mark}\t" for place, mark in enumerate(marks)]
    found = sentences_with_mentions("\n".join(["#begin document", *lines, "", lines[4], "#end document"]))
    assert found == [
        {
            "words": ["w0", "w1", "w2", "w3", "w4"],
            "entities": [[0, 1, "mention"], [0, 4, "mention"], [2, 4, "mention"]],
        },
        {"words": ["w4"], "entities": []},
    ]


def test_a_slot_s_span_is_as_long_as_its_run_of_positions() -> None:
    positions = np.array([[1, 2, 5, 7, 8, 9, 0, 0], [3, 4, 5, 6, 0, 0, 0, 0]])
    weights = (positions > 0).astype(np.float32)
    found = run_lengths({"masked_positions": positions, "masked_weights": weights})
    assert found[0, :6].tolist() == [2, 2, 1, 3, 3, 3] and found[1, :4].tolist() == [4] * 4


def test_the_guess_of_a_length_is_the_mean_over_the_pieces_of_spans_of_this_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A span of each length, of which one piece was kept."""
    rng = np.random.default_rng(0)
    ends = np.cumsum([1 + first for first, _ in LENGTHS])  # a visible piece lies before each span
    places = np.concatenate([np.arange(end - first, end) for (first, _), end in zip(LENGTHS, ends, strict=True)])
    batch = {
        "input_ids": rng.integers(5, 20, (1, ends[-1] + 1)),
        "masked_positions": places[None],
        "masked_ids": rng.integers(5, 20, (1, len(places))),
        "masked_weights": np.ones((1, len(places)), np.float32),
        "replacement": np.where(places == 4, KEPT, MASK)[None],
    }
    neighbours = Neighbours(scipy.sparse.csr_array(rng.integers(0, 9, (20, 20))), rng.integers(1, 9, 20))
    for name, value in {"load_tokenizer": None, "open_blocks": None, "count_neighbours": neighbours}.items():
        monkeypatch.setattr(ablation_cell, name, lambda *_, value=value: value)
    monkeypatch.setattr(ablation_cell, "local_eval_batches", lambda *_: [batch])
    found = ablation_cell.guessed(from_dict(get_config().to_dict()), Path("blocks"))
    lengths: list[list[tuple[float, bool]]] = []  # (nats, right) of each piece
    for (first, _), end in zip(LENGTHS, ends, strict=True):
        lengths.append([])
        for place in set(range(end - first, end)) - {4}:
            left = batch["input_ids"][0, place - 1] if place == end - first else -1
            right = batch["input_ids"][0, place + 1] if place == end - 1 else -1
            piece = batch["masked_ids"][0, list(places).index(place)]
            guess = neighbours.guess(np.array([left]), np.array([right]), np.array([piece]))
            lengths[-1].append((-np.log(guess.probability[0]), guess.right[0]))
    for place, of in enumerate([[one for length in lengths for one in length], *lengths]):
        nats, right = np.mean(of, axis=0)
        assert found["loss"][place] == pytest.approx(nats) and found["accuracy"][place] == pytest.approx(100 * right)
        assert found["pieces"][place] == len(of)


def test_differences_within_noise_are_marked_and_a_stopped_grid_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Cell] = []

    def train(cell: Cell, *_: Any) -> dict[str, Any]:
        trained.append(cell)
        if cell.recipe == GUESS:
            values = [6.0] * (1 + len(LENGTHS))
            return {"loss": values, "accuracy": values, "metrics": {}, "guess": {}, "cpu_seconds": 1.0}
        better = 1.0 if cell.recipe == "one" else 0.0
        noise = {"spans": (-1.0) ** cell.seed, "one": float(cell.seed)}.get(cell.recipe, 0.0)
        values = [5.0 + cell.seed + better] + [4.0] * len(LENGTHS)
        metrics = dict.fromkeys(TASKS, 50.0 + cell.seed + noise)
        return {
            "loss": values,
            "accuracy": values,
            "metrics": metrics,
            "guess": dict.fromkeys(TASKS, 1.0),
            "cpu_seconds": 1.0,
        }

    for name in ("build", "litbank"):
        monkeypatch.setattr(ablation, name, lambda *_: None)
    monkeypatch.setattr(ablation, "train", train)
    (tmp_path / "data" / "litbank").mkdir(parents=True)
    arguments = ["--groups", "objective", "--starts", "random", "--cores", "1", "--seeds", "1,2,3"]
    arguments += ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
    for _ in range(2):
        assert ablation.main(arguments) == 0
    assert len(trained) == len(set(trained)) == 10  # three recipes with three seeds, and the guess
    lines = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    spans, one, one_sbo = (
        next(line for line in lines if line[1].startswith(f"{name}:")) for name in ("spans", "one", "one_sbo")
    )
    assert one[2] == "8.000 ± 1.000 (+1.000)" and one_sbo[2] == "7.000 ± 1.000"
    assert spans[4] == "51.7 ± 1.5 (~-0.3)"
    assert one[4] == "54.0 ± 2.0 (~+2.0)"  # 3.5 standard errors, of three seeds
    assert lines[-1][1:5] == ["without a model", "6.000", "6.0", "1.0"]
    assert (tmp_path / "work" / "ablation-random.svg").exists()


def test_recipes_of_pairs_have_blocks_of_single_sequences_too_for_the_held_out_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--workdir") + 1]).mkdir()
        (built,) = (flag.partition("=")[2] for flag in command if flag.startswith("--config.data.dir="))
        assert ("--config.corpus.pairs=True" in command) == built.endswith("pairs")
        (Path(built) / "blocks").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablation.subprocess, "run", run)
    cells = [Cell(row.recipe, "random", 1, 50) for row in rows_of("random", "masking")]
    ablation.build(cells, argparse.Namespace(data=tmp_path / "data", work=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data-random-one", "data-random-pairs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "heads"], "--groups: 'heads' is unknown; known are masking"),
        (["--seeds", "a"], "--seeds a: expected numbers"),
        (["--data", "nowhere"], "nowhere: no labelled data there; name its directory with --data"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(arguments) == 1
    assert message in capsys.readouterr().err
