"""Pre-training, fine-tuning and export give the numbers of revision 2d19632; tests/recorded has their making.

Batches and vocabularies are equal to the bit. Floats are compared to four digits, since CPUs differ in the last ones.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spanbert_jax.config import Config, from_dict
from spanbert_jax.convert.export import Export, write_export
from spanbert_jax.corpus.blocks import open_blocks
from spanbert_jax.corpus.masked_batches import train_batches
from spanbert_jax.main import dispatch
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.tokenizer import load_tokenizer
from tests.support.runs import ROOT

RECORDED = ROOT / "tests" / "recorded"
THEN: dict[str, Any] = json.loads((RECORDED / "2d19632" / "numbers.json").read_text())
_FILES = ("corpus.files", "tokenizer.vocab_file", "data.train", "data.dev")


# What configs/tiny.py had then, beside its recorded fields.
TINY_THEN = {
    "model.init": "normal",
    "optimizer.name": "adamw",
    "optimizer.muon_rms": 0.2,
    "optimizer.beta2": 0.999,
    "optimizer.decay_scope": "all",
}


def configured(name: str, fields: dict[str, Any], **more: str) -> Config:
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config("bert") if name == "tiny" else module.get_config()
    fields = {**(TINY_THEN if name == "tiny" else {}), **fields}
    here = {key: str(RECORDED / value) if key in _FILES else value for key, value in fields.items()}
    config.update_from_flattened_dict(here | more)
    return from_dict(config.to_dict())


class Runs(NamedTuple):
    config: Config  # of pre-training
    pretrained: Path
    tuned: Path


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The recorded run and fine-tuning, once more."""
    folder = tmp_path_factory.mktemp("recorded")
    config = configured("tiny", THEN["pretraining"]["fields"])
    assert dispatch(config, str(folder / "pretrained"), "")
    tuned = configured("classify", THEN["finetuning"]["fields"], init_from=str(folder / "pretrained"))
    assert dispatch(tuned, str(folder / "tuned"), "")
    return Runs(config, folder / "pretrained", folder / "tuned")


def same_metrics(workdir: Path, then: list[dict[str, float]]) -> None:
    """Every recorded metric of every step is in metrics.jsonl with its value; new metrics may stand beside them."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in then]
    for found, recorded in zip(rows, then, strict=True):
        assert {name: found[name] for name in recorded} == pytest.approx(recorded, rel=1e-4)


def test_the_vocabulary_the_blocks_and_every_batch_with_its_masks_are_the_same_to_the_bit(now: Runs) -> None:
    then, data = THEN["pretraining"], now.pretrained / "data"
    tokenizer, blocks = load_tokenizer(data / "tokenizer"), open_blocks(data / "blocks", "train")
    assert tokenizer.fingerprint == then["tokenizer"] and blocks.metadata.fingerprint == then["blocks"]
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    steps = len(then["batches"])
    batches = train_batches(now.config, blocks, tokenizer, layout, 0, steps)
    for batch, recorded in zip(batches, then["batches"], strict=True):
        hashes = {name: hashlib.sha256(np.asarray(batch[name]).tobytes()).hexdigest()[:16] for name in recorded}
        assert hashes == recorded


def test_a_vocabulary_trained_on_the_same_text_is_the_same_to_the_bit() -> None:
    lines = [line for line in (RECORDED / "corpus.txt").read_text().splitlines() if line]
    assert train_sentencepiece(lines, "unigram", 400).fingerprint == THEN["pretraining"]["trained_vocabulary"]


def test_the_losses_and_evaluations_of_pre_training_are_the_same(now: Runs) -> None:
    same_metrics(now.pretrained, THEN["pretraining"]["metrics"])


def test_the_losses_the_evaluations_and_the_predictions_of_fine_tuning_are_the_same(now: Runs) -> None:
    same_metrics(now.tuned, THEN["finetuning"]["metrics"])
    answers = [json.loads(line) for line in (now.tuned / "predictions.jsonl").read_text().splitlines()]
    then = THEN["finetuning"]["predictions"]
    assert [(a["id"], a["label"]) for a in answers] == [(a["id"], a["label"]) for a in then]
    assert [a["score"] for a in answers] == pytest.approx([a["score"] for a in then], rel=1e-4)


def test_an_export_has_the_same_tensors(now: Runs, tmp_path: Path) -> None:
    with open_weights(now.pretrained) as weights:
        params, _ = weights.load()
    write_export(Export(params, weights.config.model, weights.tokenizer, (), {}, "x"), tmp_path, "float32", False)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: list(array.shape) for name, array in tensors.items()} == {
        n: s for n, (s, _) in THEN["export"].items()
    }
    # A key's bias adds the same to all scores of a query, so its gradient is 0 but for rounding, which AdamW scales up
    # to whole updates: its values are the CPU's.
    norms = {name: float(np.linalg.norm(array)) for name, array in tensors.items() if ".key.bias" not in name}
    then = {name: THEN["export"][name][1] for name in norms}
    assert len(then) == len(THEN["export"]) - now.config.model.layers
    assert norms == pytest.approx(then, rel=1e-4, abs=1e-5)
