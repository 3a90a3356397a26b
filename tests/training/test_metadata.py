"""What a checkpoint says of itself: every field comes back, and what cannot be opened names its writer and the cure."""

import dataclasses
import json
from typing import Any

import pytest

import spanbert_jax
from spanbert_jax.config import flatten
from spanbert_jax.errors import UserError
from spanbert_jax.training.metadata import FORMAT, Metadata, config_from_json, config_to_json, from_json
from tests.support.synthetic import small_config

FULL = Metadata(
    task="text",
    step=7,
    config=small_config(),
    vocab_size=131,
    tokenizer_fingerprint="a",
    data_fingerprint="b",
    labels=("x", "y"),
    special={"SUBJ": 5},
    nested=True,
    words={"apart": "-"},
    evaluation={"held_out/f1": 3.5},
    window={"loss": 0.1 + 0.2, "steps": 3.0},
    evaluation_is_due=True,
    imported_from="elsewhere",
    left_alone=("pooler",),
)


def test_every_field_comes_back() -> None:
    empty = [field.name for field in dataclasses.fields(FULL) if not getattr(FULL, field.name)]
    assert not empty  # a new field is added to FULL
    assert from_json(json.loads(json.dumps(FULL.to_json())), "run") == FULL
    assert config_from_json(config_to_json(FULL.config), "config.json") == FULL.config


def test_an_untyped_checkpoint_of_an_earlier_version_opens() -> None:
    old = {"task": "pretraining", "step": 3, "config": flatten(small_config()), "tokenizer_fingerprint": "a"}
    read = from_json(old, "run")
    assert (read.task, read.step, read.config) == ("pretraining", 3, small_config())
    assert read.fingerprints == {"tokenizer_fingerprint": "a", "data_fingerprint": ""}
    assert (read.format, read.written_by, read.versions) == (1, "", {})
    tagged = from_json(old | {"task": "token_classification", "special": {"nested": 1}}, "run")
    assert tagged.nested and tagged.special == {}
    assert from_json(old | {"special": {"SUBJ": 5}}, "run").special == {"SUBJ": 5}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"format": FORMAT + 1, "written_by": "9.0"},
            f"it has format {FORMAT + 1}, and the newest known here is {FORMAT}",
        ),
        ({"format": None, "written_by": "9.0"}, "it has format None"),
        ({"config": {"model.width": 3}, "written_by": "9.0"}, "unknown field model.width"),
        ({"config": 3, "written_by": "9.0"}, "not as it was written"),
        ({"labels": 3, "written_by": "9.0"}, "not as it was written"),
    ],
)
def test_what_cannot_be_opened_names_the_file_both_versions_and_the_cure(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"^runs/x/checkpoints/7: written by spanbert_jax 9.0, and ") as raised:
        from_json(FULL.to_json() | changed, "runs/x/checkpoints/7")
    said = str(raised.value)
    assert words in said and f"spanbert_jax {spanbert_jax.__version__} cannot open it" in said and "\n" not in said
    assert any(cure in said for cure in ("install that version", "the version that wrote it", "restore it"))


def test_a_config_json_of_another_version_is_refused_with_both_versions() -> None:
    fields = json.loads(config_to_json(FULL.config)) | {"written_by": "9.0"}
    fields["model"]["width"] = 3
    with pytest.raises(UserError, match=r"config.json: written by spanbert_jax 9.0, .* unknown field model.width"):
        config_from_json(json.dumps(fields), "config.json")
    del fields["written_by"]
    with pytest.raises(UserError, match=r"written by spanbert_jax before 0.2.0"):
        config_from_json(json.dumps(fields), "config.json")
