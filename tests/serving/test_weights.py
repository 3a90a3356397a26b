"""Weights as they are opened: everything that describes them, and nothing of the machine that trained them."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from spanbert_jax.config import ComputeConfig
from spanbert_jax.errors import UserError
from spanbert_jax.serving.weights import open_weights, training_of
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from spanbert_jax.training.checkpoint import BEST, CHECKPOINTS, TOKENIZER, write_params
from spanbert_jax.training.metadata import Metadata
from tests.support.pretrained import random_weights, write_pretrained
from tests.support.published import write_vocabulary
from tests.support.random_params import filled, shapes
from tests.support.synthetic import small_config

TOKENIZER_OF_RUN = Tokenizer("wordpiece", "\n".join([*SPECIALS, "a", "##b", ""]).encode())


def write_run(workdir: Path) -> Path:
    """A run of a machine with other kernels, kept at step 4 as its best and at step 9."""
    config = dataclasses.replace(small_config(), compute=ComputeConfig(attention="splash", pointwise="triton"))
    metadata = Metadata(task="any", step=4, config=config, labels=("no", "yes"), evaluation={"held_out/f1": 0.5})
    TOKENIZER_OF_RUN.save(workdir / TOKENIZER)
    for folder, step in ((BEST, 4), (CHECKPOINTS, 9)):
        params = {"embeddings": np.full(3, step, np.float32), "sbo": {"offset": np.zeros((5, 7), np.float32)}}
        write_params(epath.Path(workdir / folder), params, dataclasses.replace(metadata, step=step))
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def test_a_run_opens_at_its_best_step_with_all_that_describes_it(run: Path) -> None:
    with open_weights(run) as weights:
        params, coverage = weights.load()
    assert params["embeddings"].tolist() == [4, 4, 4] and weights.step == 4
    assert weights.source == str(run / "best" / "4") and weights.labels == ("no", "yes")
    assert weights.span_boundary == (5, 7) and coverage.missing == ("mlm",)
    assert weights.tokenizer.fingerprint == TOKENIZER_OF_RUN.fingerprint
    assert weights.metadata is not None and weights.metadata.evaluation == {"held_out/f1": 0.5}
    with open_weights(run / "checkpoints" / "9") as weights:
        assert weights.load()[0]["embeddings"].tolist() == [9, 9, 9]


def test_a_head_that_was_never_trained_is_no_part_of_the_weights(tmp_path: Path) -> None:
    write_pretrained(tmp_path, random_weights(TOKENIZER_OF_RUN))
    with open_weights(tmp_path) as weights:
        assert {"mlm", "sbo"} <= set(weights.load()[0]) and weights.span_boundary is not None
    without = dataclasses.replace(small_config().train, sbo_weight=0.0)
    drawn = random_weights(TOKENIZER_OF_RUN)
    assert drawn.metadata is not None
    config = dataclasses.replace(drawn.config, train=without)
    drawn = dataclasses.replace(drawn, config=config, metadata=dataclasses.replace(drawn.metadata, config=config))
    write_pretrained(tmp_path / "mlm", drawn)
    with open_weights(tmp_path / "mlm") as weights:
        params, coverage = weights.load()
    assert "mlm" in params and "sbo" not in params and coverage.missing == ("sbo",) and weights.span_boundary is None


def test_kernels_named_for_another_machine_are_chosen_anew(run: Path) -> None:
    with open_weights(run) as weights:
        assert weights.config.compute.attention == weights.config.compute.pointwise == "auto"
        assert weights.config.model == small_config().model


def test_an_export_says_what_was_measured_at_its_step(run: Path) -> None:
    with open_weights(run) as weights:
        assert training_of(weights)["evaluation"] == {"held_out/f1": 0.5}
    damaged = b'{"step": 3, "held_out/f1": 0.1}\n\0\0}\n\xff}\n[4]\n{"a": 4}\n{"step": 4, "held_out/f1": 0.6}\n{"st'
    (run / "metrics.jsonl").write_bytes(damaged)
    with open_weights(run) as weights:
        known = training_of(weights)
    assert known["evaluation"] == {"held_out/f1": 0.6} and known["step"] == 4
    assert known["config"]["compute.attention"] == "splash"  # the run's own, for the record


def test_a_folder_without_weights_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights there"), open_weights(tmp_path):
        pass


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("layers", 10**6, "describes a model with (1000000, "),
        ("max_length", 10**9, "embeddings/position has shape (32, 24)"),
        ("embed", 48, "has shape"),
        ("heads", 0, "no model has the sizes in its metadata"),
    ],
)
def test_a_run_whose_metadata_describes_another_model_is_refused_with_the_array(
    field: str, value: int, part: str, tmp_path: Path
) -> None:
    """As a stranger may write it: such sizes would take gigabytes, or end in a traceback of Flax."""
    config = small_config()
    model = dataclasses.replace(config.model, **{field: value})
    metadata = Metadata(task="any", step=4, config=dataclasses.replace(config, model=model))
    Tokenizer("wordpiece", write_vocabulary(tmp_path / "vocab.txt").read_bytes()).save(tmp_path / TOKENIZER)
    params = filled(shapes({}), lambda shape: np.ones(shape, np.float32))
    write_params(epath.Path(tmp_path / CHECKPOINTS), params, metadata)
    with pytest.raises(UserError, match=re.escape(part)) as error, open_weights(tmp_path):
        pass
    assert str(error.value).startswith(str(tmp_path / CHECKPOINTS / "4")) and len(str(error.value)) < 600
