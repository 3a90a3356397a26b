"""tools/benchmark.py: its arithmetic, what its sides compute, and, as a user runs it, a tiny step."""

import dataclasses
import importlib.util
import json
import os
import pydoc_data.topics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from benchmarks import input, padding, peers, report, save, start, step, window
from benchmarks.batches import VOCAB, make_batch, make_config
from benchmarks.corpus import corpus_config
from benchmarks.measure import Options, Result, Side, SideFailed
from benchmarks.step import Variant
from spanbert_jax.batch import largest_budget, slots
from spanbert_jax.config import Config
from spanbert_jax.corpus.build import build_blocks, tokenizer_from_file
from spanbert_jax.errors import UserError
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.text.tokenizer import Tokenizer
from tests.support.runs import SMALL, write_corpus
from tools import benchmark

ROOT = Path(__file__).resolve().parents[2]
SPEC = {"size": "tiny", "precision": "fp32", "length": 64, "batch": 3, "dropout": "none", "attention": "auto"}
SPEC |= {"unroll": False}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the sides of a corpus take: blocks of the Python documentation's topics in WordPieces of one character."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text").mkdir()
    for number, text in enumerate(list(pydoc_data.topics.topics.values())[:8]):
        (folder / "text" / f"{number}.txt").write_text(text[:1500])
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    spec = {"files": str(folder / "text"), "vocab": str(folder / "vocab.txt"), "length": 64}
    spec["blocks"] = str(folder / "blocks")
    config = corpus_config(spec)
    tokenizer = tokenizer_from_file(config.tokenizer)
    assert tokenizer is not None
    config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, workers=1, held_out=0.1))
    build_blocks(config, tokenizer, folder / "blocks")
    return spec


def test_flops_and_mfu_are_those_of_the_formula() -> None:
    def spec(size: str) -> dict[str, Any]:
        return {**SPEC, "size": size, "length": 512}

    assert step.model_flops(spec("base")) == pytest.approx(0.3125e12, rel=1e-3)
    assert step.model_flops(spec("large")) == pytest.approx(1.0356e12, rel=1e-3)
    # 2 layers of width 128 over 64 pieces, 10 masked of 16 slots, by hand
    linear = 64 * 2 * (8 * 128**2 + 4 * 128 * 512)
    attention = 4 * 64**2 * 128 * 2
    mlm = 16 * 2 * (128**2 + 128 * VOCAB)
    sbo = 16 * 2 * ((2 * 128 + 200) * 128 + 128**2 + 128 * VOCAB)
    assert step.model_flops(SPEC) == 3 * (linear + attention + mlm + sbo)
    assert step.mfu(475.0, spec("large"), "NVIDIA H200", 1) == pytest.approx(475 * 1.0356 / 989, rel=1e-3)
    assert step.mfu(950.0, spec("large"), "NVIDIA H200", 2) == pytest.approx(475 * 1.0356 / 989, rel=1e-3)
    assert step.mfu(475.0, spec("large"), "cpu", 1) is None


def test_a_row_shows_ours_theirs_and_the_ratio() -> None:
    compared = Result("a", 30.0, "sequences/s", 20.0)
    assert compared.ratio == 1.5
    assert report.cells(compared) == ("a", "30 sequences/s", "20 sequences/s", "1.50x")
    assert report.cells(Result("b", 0.2, "%")) == ("b", "0.2%", "", "")
    assert [report.number(value) for value in (12_345.6, 123.44, 1.2345, 0.00123)] == [
        "12,346",
        "123.4",
        "1.23",
        "0.00123",
    ]


def test_the_share_of_what_padding_allows() -> None:
    """Padded: 800 of 1000 positions are pieces, in 10 s. In buckets: 800 of 850. Then 1000 / 850 is what is allowed."""
    padded = {"pieces": 800, "positions": 1000, "seconds": 10.0}
    assert padding.share_of_allowed({"pieces": 800, "positions": 850, "seconds": 8.5}, padded) == pytest.approx(1.0)
    assert padding.share_of_allowed({"pieces": 800, "positions": 850, "seconds": 10.0}, padded) == pytest.approx(0.85)


def test_a_comparison_takes_medians_over_rounds() -> None:
    spec = {**SPEC, "size": "base", "length": 512, "dropout": "both"}
    row = step.peer_result(spec, "transformers", [3.0, 9.0, 4.0], [2.0, 2.5, 1.0], "cpu", 2)
    assert (row.ours, row.theirs, row.ratio) == (4.0, 2.0, 2.0)


def test_batches_mask_the_budget_in_spans_with_unmasked_boundaries() -> None:
    config = make_config({**SPEC, "length": 512})
    batch = make_batch(config, 0)
    assert all(np.array_equal(batch[name], make_batch(config, 0)[name]) for name in batch)
    assert not np.array_equal(batch["input_ids"], make_batch(config, 1)["input_ids"])
    budget = largest_budget(config)
    assert budget == 77 and batch["masked_positions"].shape == (3, slots(config)) == (3, 80)
    assert np.all(batch["masked_weights"].sum(1) == budget)
    assert np.array_equal(batch["masked_weights"], batch["span_weights"])
    for row in range(3):
        places = batch["masked_positions"][row, :budget]
        assert np.all(np.diff(places) > 0)
        for slot, place in enumerate(places):
            left, right = batch["span_left"][row, slot], batch["span_right"][row, slot]
            assert 0 <= left < place < right < 512
            assert left not in places and right not in places
            assert all(inside in places for inside in range(left + 1, right))
            assert batch["span_offset"][row, slot] == min(place - left - 1, config.masking.max_span_offset - 1)


def torch_weights(params: dict[str, Any], layers: int) -> dict[str, np.ndarray]:
    """Our parameters under the names of `peers.Best`."""
    weights = {"word.weight": params["embeddings"]["word"], "position": params["embeddings"]["position"]}
    weights |= {"token_type": params["embeddings"]["token_type"][0], "offset.weight": params["sbo"]["offset"]}
    weights["bias"] = np.stack([params["mlm"]["bias"], params["sbo"]["bias"]])[:, None]

    def norm(name: str, tree: dict[str, Any]) -> None:
        weights.update({f"{name}.weight": tree["scale"], f"{name}.bias": tree["bias"]})

    def linear(name: str, tree: dict[str, Any], outputs: int) -> None:
        weights.update({f"{name}.weight": tree["kernel"].reshape(-1, outputs).T, f"{name}.bias": tree["bias"].ravel()})

    embed = params["embeddings"]["position"].shape[1]
    norm("norm", params["embeddings"]["norm"])
    for index in range(layers):
        layer = jax.tree.map(lambda x, i=index: np.asarray(x)[i], params["encoder"])
        linear(f"layers.{index}.qkv", layer["attention"]["qkv"], 3 * embed)
        linear(f"layers.{index}.output", layer["attention"]["output"], embed)
        norm(f"layers.{index}.norm_1", layer["attention"]["norm"])
        linear(f"layers.{index}.up", layer["mlp"]["up"], layer["mlp"]["up"]["bias"].size)
        linear(f"layers.{index}.down", layer["mlp"]["down"], embed)
        norm(f"layers.{index}.norm_2", layer["mlp"]["norm"])
    for name, dense, place in (("mlm", "dense", 0), ("sbo", "dense_1", 0), ("sbo", "dense_2", 3)):
        linear(f"{name}.{place}", params[name][dense], embed)
        norm(f"{name}.{place + 2}", params[name]["norm" + dense.removeprefix("dense")])
    return weights


def test_the_pytorch_peer_computes_our_losses() -> None:
    config = make_config(SPEC)
    model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
    params = jax.tree.map(np.asarray, jax.jit(lambda key: pretraining_heads.init_params(model, key))(jax.random.key(0)))
    goal = objective(model, 0)
    batch = make_batch(config, 0)
    sums = jax.jit(lambda params, batch: goal.loss(params, batch, goal.totals(batch), None, None)[1])(params, batch)
    peer = peers.Best(config)
    state = {name: torch.tensor(np.array(value)) for name, value in torch_weights(params, 2).items()}
    peer.load_state_dict(state)  # strictly: every weight, of the same shape
    with torch.no_grad():
        theirs = peer(peers.flat(config, 0, torch.device("cpu"))).item()
    ours = sum(float(sums[f"{name}_loss"] / sums[f"{name}_count"]) for name in ("mlm", "sbo"))
    # Ours never scores the rows that pad the vocabulary; theirs has them, with weight 0 here, among the others.
    unpadded = np.log(-(-VOCAB // 128) * 128 / VOCAB)
    assert theirs == pytest.approx(ours + 2 * unpadded, abs=2e-3)


def test_computed_memory_counts_the_parameters_of_bert_base() -> None:
    parts = start.computed_bytes(Config(), 4, VOCAB)
    assert parts["optimizer"] == 2 * parts["parameters"] and 430e6 < parts["parameters"] < 450e6


def fake(speeds: dict[str, float], calls: list[Variant]) -> step.Measure:
    """A machine on which each choice multiplies the speed; "fail" in a name's place of 0."""

    def run(variant: Variant) -> Variant:
        calls.append(variant)
        speed = 100.0
        for name, factor in speeds.items():
            field, _, value = name.partition("=")
            if value in (variant.flags.split() if field == "flags" else [str(variant.spec[field])]):
                speed *= factor
        return dataclasses.replace(variant, speed=speed, failure="" if speed else "out of memory")

    return run


def test_a_sweep_takes_the_best_of_each_choice_and_joins_the_flags_that_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step.FLAGS, "gpu", ("--a", "--b", "--c"))
    speeds = {"attention=triton": 0.9, "attention=xla": 0.5, "unroll=True": 1.25, "batch=32": 1.2, "batch=16": 0.0}
    speeds |= {"flags=--a": 1.1, "flags=--b": 0.8, "flags=--c": 1.05}
    calls: list[Variant] = []
    first = Variant({**SPEC, "batch": 64, "dropout": "hidden"})
    free = ["attention", "unroll", "batch", "flags"]
    tried = step.sweep(first, "gpu", free, fake(speeds, calls), time.monotonic() + 60)
    best = step.fastest(tried)
    assert (best.spec["attention"], best.spec["unroll"], best.spec["batch"]) == ("cudnn", True, 32)
    assert best.flags == "--a --c" and best.speed == pytest.approx(100 * 1.2 * 1.25 * 1.1 * 1.05)
    assert [variant.spec["batch"] for variant in calls[3:6]] == [128, 32, 16]
    assert tried[5].failure and not tried[5].speed


def test_a_sweep_changes_nothing_that_was_asked_for_and_stops_in_time() -> None:
    calls: list[Variant] = []
    first = Variant({**SPEC, "attention": "xla"}, "--x")
    tried = step.sweep(first, "gpu", [], fake({}, calls), time.monotonic() + 60)
    assert [(v.spec, v.flags) for v in tried] == [(first.spec, "--x")]
    assert step.sweep(first, "gpu", ["batch"], fake({}, calls), time.monotonic() - 1) == []
    with pytest.raises(UserError, match=r"no variant .* out of memory"):
        step.fastest(step.sweep(first, "gpu", ["batch"], fake({"size=tiny": 0.0}, calls), time.monotonic() + 60))


# The tool's command line, with rounds of a twentieth of a second.
QUICK = """
import sys
from benchmarks import step
from tools import benchmark
step.ROUND_SECONDS = 0.05
sys.exit(benchmark.main())
"""


def test_a_variant_s_flags_follow_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    assert step.environment("--xla_a=1", "gpu")["XLA_FLAGS"] == "--xla_dump_to=here --xla_a=1"
    assert step.environment("", "gpu")["XLA_FLAGS"] == "--xla_dump_to=here"
    assert step.environment("--xla_a=1", "cpu")["XLA_FLAGS"] == "--xla_dump_to=here --xla_a=1"
    assert step.environment("--xla_a=1", "tpu") == {"LIBTPU_INIT_ARGS": "--xla_a=1"}
    monkeypatch.delenv("XLA_FLAGS")
    assert step.environment("", "cpu") == {"JAX_PLATFORMS": "cpu"}


def test_a_step_runs_without_tensorflow_and_writes_what_it_measured(tmp_path: Path) -> None:
    for name in ("tensorflow", "tensorflow_datasets", "array_record", "ml_collections", "torch", "transformers"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    files = [f"--json={tmp_path}/step.json", f"--markdown={tmp_path}/step.md"]
    command = [sys.executable, "-c", QUICK, "step", "--size=tiny", "--length=32", "--batch=2", "--rounds=2", *files]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "step.json").read_text())["results"]
    assert row["ours"] > 0 and row["details"]["facts"]["platform"] == "cpu"
    flops = step.model_flops({**SPEC, "length": 32})
    assert row["details"]["model_flops"] == flops and f"{flops / 1e12:.4f} TFLOP a row" in done.stdout
    assert "train step, 2 x 128" in done.stdout and "MFU" not in row["counted"]  # no peak of a CPU is known
    assert (tmp_path / "step.md").read_text().startswith("| what | ours |")


def test_a_step_beside_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(step, "ROUND_SECONDS", 0.05)
    arguments = ["step", "--size=tiny", "--length=32", "--batch=2", "--rounds=2", "--cores=1"]
    assert benchmark.main([*arguments, "--peer=pytorch", f"--json={tmp_path}/f.json"]) == 0
    (row,) = json.loads((tmp_path / "f.json").read_text())["results"]
    assert row["what"].split()[-1] == "pytorch"
    assert len(row["values"]["ours"]) == len(row["values"]["theirs"]) == 2
    assert row["ratio"] == pytest.approx(np.median(row["values"]["ours"]) / np.median(row["values"]["theirs"]))
    assert "1 threads each" in capsys.readouterr().out


def test_transformers_side_learns_the_masked_pieces_of_our_batches() -> None:
    spec = {**SPEC, "length": 32, "batch": 2, "peer": "transformers", "compile": False}
    config = make_config(spec)
    _, batches = peers.transformers_side(config, torch.device("cpu"))
    for seed, batch in enumerate(batches):
        ours, labels = make_batch(config, seed), batch["labels"].numpy()
        np.testing.assert_array_equal(batch["input_ids"], ours["input_ids"])
        rows, slots = np.nonzero(ours["masked_weights"])
        np.testing.assert_array_equal(
            labels[rows, ours["masked_positions"][rows, slots]], ours["masked_ids"][rows, slots]
        )
        assert (labels != -100).sum() == len(rows)
    _, ask = peers.start(spec)
    first, _, again = (ask({"steps": steps}) for steps in (1, 4, 1))
    assert again["seconds"] > 0 and again["loss"] < first["loss"] == pytest.approx(np.log(VOCAB), rel=0.03)


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def error(*arguments: str) -> str:
        assert benchmark.main(list(arguments)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0]

    nowhere = f"--text={tmp_path}/nowhere"
    for subject in ("corpus", "padding"):
        assert "nowhere: no text there" in error(subject, nowhere) and "--text" in error(subject, nowhere)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("A text.\n")
    assert "--vocab" in error("corpus", f"--text={tmp_path}/text", f"--vocab={tmp_path}/none.txt")
    assert "this process may use" in error("step", "--cores=10000")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert "torch is missing" in error("input") and "requirements-torch.txt" in error("input")
    with pytest.raises(UserError, match="--plot: no result"):
        report.plot([Result("a", 1.0, "s")], tmp_path / "a.svg")
    with pytest.raises(UserError, match="cannot be written"):
        report.write(tmp_path / "no" / "a.md", "")


def test_a_side_that_fails_or_is_mistaken_says_so() -> None:
    with Side("train_side", {"dropout": "none"}, ()) as side, pytest.raises(SideFailed, match="KeyError: 'batch'"):
        side.ready()
    spec = {**SPEC, "attention": "cudnn", "precision": "bf16", "length": 32}
    with Side("train_side", spec, (), {"JAX_PLATFORMS": "cpu"}) as side, pytest.raises(UserError, match="cudnn"):
        side.ready()


def test_every_comparison_is_drawn_and_all_files_have_the_numbers(tmp_path: Path) -> None:
    rows = [Result("a", 3.0, "s", 2.0), Result("b", 0.2, "%"), Result("c", 1.0, "s", 4.0)]
    report.save(rows, tmp_path / "a.json", tmp_path / "a.svg", tmp_path / "a.md")
    drawn = (tmp_path / "a.svg").read_text()
    assert "<!-- 1.50x   3 s, 2 s -->" in drawn and "<!-- 0.25x   1 s, 4 s -->" in drawn and "<!-- b -->" not in drawn
    assert [row["ratio"] for row in json.loads((tmp_path / "a.json").read_text())["results"]] == [1.5, None, 0.25]
    assert "| a | 3 s | 2 s | 1.50x |" in (tmp_path / "a.md").read_text().splitlines()
    with pytest.raises(UserError, match="compares two sides"):
        report.plot(rows[1:2], tmp_path / "b.svg")


def test_the_collator_gets_blocks_whose_words_it_sees(blocks: dict[str, Any]) -> None:
    """Words are masked whole: the offsets that are made for transformers' collator say where they begin."""
    from transformers import DataCollatorForLanguageModeling

    tokenizer = tokenizer_from_file(corpus_config(blocks).tokenizer)
    assert tokenizer is not None
    pieces = tokenizer.tokenize_batch(["whole words are masked, one after another"])[0]
    feature = input.feature_of(list(pieces), tokenizer, 64)
    assert {len(value) for value in feature.values()} == {64}
    collate = DataCollatorForLanguageModeling(
        input.stand_in(tokenizer),
        whole_word_mask=True,
        mlm_probability=0.5,
        mask_replace_prob=1,
        random_replace_prob=0,
        seed=0,
    )
    batch = collate([feature] * 8)
    masked = (batch["labels"] != -100).numpy()
    words = np.cumsum(starts_of(tokenizer, pieces))
    assert masked.any() and not masked[:, 0].any() and not masked[:, len(pieces) + 1 :].any()
    for row in masked[:, 1 : len(pieces) + 1]:
        assert all(len(set(row[words == word])) == 1 for word in set(words))


def starts_of(tokenizer: Tokenizer, pieces: Any) -> np.ndarray:
    from spanbert_jax.text.tokenizer import word_starts

    return word_starts(tokenizer, pieces)


def test_sides_of_the_input_count_every_block(blocks: dict[str, Any]) -> None:
    for name in ("ours", "theirs"):
        _, ask = input.start({**blocks, "side": name, "count": 70})
        answer = ask({})
        assert answer["seconds"] > 0
        assert answer["blocks"] == 70 if name == "theirs" else answer["blocks"] >= 70


def test_sides_of_padding_count_pieces_and_positions(blocks: dict[str, Any]) -> None:
    found = {}
    for count in (1, 2):
        facts, ask = padding.start({**SPEC, **blocks, "batch": 2, "batches": 6, "lengths": count})
        found[count] = facts
        answer = ask({})
        assert 0 < answer["pieces"] < answer["positions"] <= 6 * 2 * 64 and answer["seconds"] > 0
    assert found[1]["shapes"] == [(2, 64)] and len(found[2]["shapes"]) == 2
    assert found[1]["blocks"] == found[2]["blocks"]  # an epoch, whatever the shapes
    assert 0 <= found[2]["padding"] < found[1]["padding"] < 1


def test_both_forms_of_a_window_are_timed_and_the_banded_one_needs_less_memory() -> None:
    spec = {"lengths": [96, 256], "rows": 1, "heads": 2, "head_dim": 8, "window": 8, "seconds": 0}
    sizes = {}
    for form in ("banded", "dense"):
        facts, ask = window.start({**spec, "form": form})
        assert len(ask({})["speeds"]) == 2 and min(ask({})["speeds"]) > 0
        sizes[form] = facts["bytes"][1]
    assert 0 < 2 * sizes["banded"] < sizes["dense"]


def test_a_save_is_timed_and_leaves_nothing(tmp_path: Path) -> None:
    _, ask = save.start({**SPEC, "length": 32, "batch": 2, "dropout": "both", "work": str(tmp_path)})
    answer = ask({})
    assert 0 < answer["still"] <= answer["written"] and answer["step"] > 0 and answer["bytes"] > 10**7
    assert not list(tmp_path.iterdir())


def test_a_run_is_timed_to_its_first_step_and_weighed(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.txt", topics=20)
    options = Options(1, tuple(sorted(os.sched_getaffinity(0))), tmp_path, tmp_path, tmp_path)
    fields = {**SMALL, "corpus.files": tmp_path / "corpus.txt", "train.steps": 5, "train.eval_every": 5}
    fields["data.lengths"] = 1
    run = start.Run("tiny", tmp_path / "run", fields, options)
    try:
        seconds = run.until("train/learning_rate", 1, lambda: None)
        peak = run.finish(lambda: None)
    finally:
        run.close()
    assert seconds > 0 and 10**8 < peak < 10**10
    assert all(0 <= share <= 1 for share in run.metrics("train/input_wait"))
    assert any((tmp_path / "jax_cache").iterdir())
    bad = start.Run("tiny", tmp_path / "bad", {"train.steps": 0}, options)
    try:
        with pytest.raises(UserError, match=r"ended with status 1: error: config.train.steps"):
            bad.until("train/learning_rate", 1, lambda: None)
    finally:
        bad.close()


def test_articles_are_cut(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one two three four\nfive\n")
    padding.cut_articles(tmp_path / "in", tmp_path / "out" / "cut.jsonl", 3)
    assert json.loads((tmp_path / "out" / "cut.jsonl").read_text()) == {"text": "one two three"}
