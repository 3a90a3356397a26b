"""Checkpoints of earlier versions open and compute what they did then; tests/recorded/README.md has their making."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from spanbert_jax.errors import UserError
from spanbert_jax.runs import start_from
from spanbert_jax.serving.answers import open_answerer
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.training.workdir import open_workdir, read_config
from tests.support.runs import ROOT
from tests.support.synthetic import small_config

RECORDED = ROOT / "tests" / "recorded"
REVISIONS = ("92bcfaa", "2d19632")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("model", ["pretrained", "classifier"])
def test_hidden_states_and_the_head_s_logits_are_those_of_the_version_that_wrote_them(
    model: str, revision: str
) -> None:
    run = RECORDED / revision / model
    then = read(run / "computed.json")
    with open_weights(run) as weights:
        params, _ = weights.load()
    made = functions(weights.config, params, weights.tokenizer.vocab_size, len(weights.labels))
    ids, lengths = np.array(then["input_ids"], np.int32), np.array([12, 7], np.int32)
    inside = np.arange(12) < lengths[:, None]
    compiled = (jax.jit(made[name]) for name in ("encode", "predict"))
    hidden, head = (np.asarray(function(params, ids, lengths, np.zeros_like(ids))) for function in compiled)
    np.testing.assert_allclose(hidden[inside], np.array(then["encode"])[inside], rtol=0, atol=1e-5)
    if model == "pretrained":  # of MLM: the highest logit of each position
        head, expected = head.max(-1)[inside], np.array(then["predict"])[inside]
    else:
        expected = np.array(then["predict"])
    np.testing.assert_allclose(head, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_classifier_gives_every_text_the_label_and_the_score_it_gave_then(revision: str) -> None:
    run = RECORDED / revision / "classifier"
    then = read(run / "predictions.json")
    with open_weights(run) as weights:
        _, now = open_answerer(weights).answer_source(str(RECORDED / "dev.jsonl"), "predict", False)
    assert len({answer["label"] for answer in then}) == 2
    assert [(answer["id"], answer["label"]) for answer in now] == [(a["id"], a["label"]) for a in then]
    scores = ([answer["score"] for answer in answers] for answers in (now, then))
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)


def test_fields_that_were_renamed_since_have_their_values_under_the_new_names() -> None:
    run = RECORDED / "92bcfaa"
    assert read(run / "classifier" / "config.json")["finetuning"]["lengths"] == 2
    tuned, pretrained = (read_config(epath.Path(run / name / "config.json")) for name in ("classifier", "pretrained"))
    assert (tuned.data.lengths, pretrained.data.lengths) == (2, 1)
    with open_weights(run / "classifier") as weights:
        assert weights.config.data.lengths == 2


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_workdir_of_an_earlier_version_goes_on_with_the_same_configuration(revision: str, tmp_path: Path) -> None:
    shutil.copy(RECORDED / revision / "pretrained" / "config.json", tmp_path)
    open_workdir(read_config(epath.Path(tmp_path / "config.json")), str(tmp_path))


def test_a_workdir_with_another_value_of_a_renamed_field_says_how_to_go_on(tmp_path: Path) -> None:
    shutil.copy(RECORDED / "92bcfaa" / "pretrained" / "config.json", tmp_path)
    saved = read_config(epath.Path(tmp_path / "config.json"))
    today = dataclasses.replace(saved, data=dataclasses.replace(saved.data, lengths=8))
    with pytest.raises(
        UserError, match=r"config\.data\.lengths is 1 there and 8 now; set it as it is there, or choose"
    ):
        open_workdir(today, str(tmp_path))


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_run_starts_from_a_checkpoint_of_an_earlier_version(revision: str, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config(), init_from=str(RECORDED / revision / "pretrained"))
    with start_from.StartingWeights(config) as start:
        adopted = start_from.adopt(config, epath.Path(tmp_path), start)
    assert (adopted.model.layers, adopted.model.embed, adopted.tokenizer.kind) == (2, 16, "wordpiece")
