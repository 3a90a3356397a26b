"""benchmarks/infilling.py: its measures by hand, and its rows on a small run."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import infilling
from spanbert_jax.convert.huggingface import Coverage
from spanbert_jax.model.pretraining_heads import DECODER, SBO, init_params, pretraining_model
from spanbert_jax.runs.held_out_spans import HeldOutSpan
from spanbert_jax.serving.decoding import Query
from spanbert_jax.serving.weights import open_weights
from tests.support.pretrained import write_pretrained
from tests.support.quick_keys import quick_key
from tests.support.runs import here


def span(pieces: int) -> HeldOutSpan:
    masked = tuple(range(2, 2 + pieces))
    return HeldOutSpan(Query([0] * 12, masked, masked), (1,) * pieces)


def test_measures_are_of_pieces_and_of_spans_by_length() -> None:
    spans = [span(1), span(2), span(2), span(5)]
    right = np.array([True, True, True, False, True, False, True, True, True, True])
    found = infilling.measured(infilling.Answers(right, np.arange(10.0)), spans)
    assert found["pieces"] == {"1": 100, "2": 75, "4, 5": 80, "all": 80}
    assert found["spans"] == {"1": 100, "2": 50, "4, 5": 0, "all": 50}
    assert found["nats"] == {"1": 0, "2": 2.5, "4, 5": 7, "all": 4.5}
    assert infilling.measured(infilling.Answers(right, None), spans)["nats"] == {}
    lines = infilling.table({"one": found}, spans).splitlines()
    assert lines[2] == "| spans of so many pieces | 1 | 2 | 0 | 1 | 0 | 4 |"
    assert lines[3] == "| one | 100.0 | 75.0 | - | 80.0 | - | 80.0 |"


def with_decoder(run: Path, workdir: Path) -> Path:
    """A checkpoint of the run's weights with a fresh decoder."""
    with open_weights(run) as weights:
        params = weights.load()[0]
    assert weights.metadata is not None
    model = dataclasses.replace(weights.config.model, decoder_layers=1)
    config = dataclasses.replace(weights.config, model=model)
    whole = pretraining_model(config, weights.tokenizer.vocab_size, "cpu", (SBO, DECODER))
    params |= {"decoder": jax.device_get(jax.jit(lambda: init_params(whole, quick_key(0))["decoder"])())}
    metadata = dataclasses.replace(weights.metadata, config=config)
    coverage = Coverage(tuple(params), (), ())
    write_pretrained(workdir, dataclasses.replace(weights, load=lambda: (params, coverage), metadata=metadata))
    return workdir


def test_every_method_is_measured_on_the_same_spans(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, data = with_decoder(finished[0], tmp_path / "run"), str(finished[0] / "data")
    arguments = ["--checkpoint", str(run), "--data", data, "--spans", "12", "--work", str(tmp_path)]
    printed = here(lambda: infilling.main(arguments)).stdout
    results = json.loads((tmp_path / "infilling.json").read_text())["results"]
    orders = ["left to right", "surest first", "beam of 5"]
    mixed = [f"mixture, {name}" for name in ("equal", *orders)]
    decoder = ["decoder", "decoder, open length"]
    assert list(results) == ["commonest piece", "visible neighbours", "MLM", "SBO", *mixed, *decoder]
    for name, of in results.items():
        assert ("all" in of["nats"]) == (name not in [f"mixture, {order}" for order in orders[1:]])
        assert 0 <= of["spans"]["all"] <= 100 and of["pieces"].keys() == of["spans"].keys()
    if "1" in results["MLM"]["nats"]:  # with one piece, there is one order
        together, chain = (results[f"mixture, {name}"] for name in ("equal", "left to right"))
        assert chain["nats"]["1"] == pytest.approx(together["nats"]["1"], abs=1e-4)
        assert chain["pieces"]["1"] == together["pieces"]["1"]
        # A fresh decoder is SBO, whose row of a single piece has one [MASK] too; and every end is a coin's.
        known, is_open = (results[name]["nats"]["1"] for name in decoder)
        assert known == pytest.approx(results["SBO"]["nats"]["1"], abs=1e-4)
        assert is_open == pytest.approx(known + np.log(2), abs=1e-4)
    assert (tmp_path / "infilling.md").read_text() in printed and (tmp_path / "infilling.svg").stat().st_size > 1000
