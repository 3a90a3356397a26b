"""What a checkpoint says of itself: every field comes back, and what cannot be opened names its writer and the cure."""

import dataclasses
import json
from typing import Any

import pytest

import spanbert_jax
from spanbert_jax.config import flatten
from spanbert_jax.errors import UserError
from spanbert_jax.files import DIGEST, json_digest
from spanbert_jax.training.metadata import FORMAT, Damaged, Metadata, config_from_json, config_to_json, from_json
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
    checksums={"params/encoder/layers": 7},
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


def sealed(changed: dict[str, Any]) -> dict[str, Any]:
    """The JSON of FULL with changed fields, as a version that has these fields would write it."""
    fields = FULL.to_json() | changed
    return fields | {DIGEST: json_digest(fields)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"format": FORMAT + 1, "written_by": "9.0"},
            f"it has format {FORMAT + 1}, and the newest known here is {FORMAT}",
        ),
        ({"config": {"model.width": 3}, "written_by": "9.0"}, "unknown field model.width"),
        ({"config": 3, "written_by": "9.0"}, "fields of another kind"),
        ({"labels": 3, "written_by": "9.0"}, "fields of another kind"),
    ],
)
def test_what_cannot_be_opened_names_the_file_both_versions_and_the_cure(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"^runs/x/checkpoints/7: written by spanbert_jax 9.0, and ") as raised:
        from_json(sealed(changed), "runs/x/checkpoints/7")
    said = str(raised.value)
    assert words in said and f"spanbert_jax {spanbert_jax.__version__} cannot open it" in said and "\n" not in said
    assert any(cure in said for cure in ("install that version", "the version that wrote it"))
    assert not isinstance(raised.value, Damaged)  # a run does not go back to an older checkpoint over it


def test_any_changed_field_is_damage() -> None:
    fields = FULL.to_json()
    for name, value in fields.items():
        other = {**value, "x": 1} if isinstance(value, dict) else [] if isinstance(value, list) else f"{value}0"
        for changed in (fields | {name: other}, {key: fields[key] for key in fields if key != name}):
            if name != DIGEST or DIGEST in changed:
                with pytest.raises(Damaged, match="not as it was written, by its digest"):
                    from_json(changed, "run")


@pytest.mark.parametrize(
    "changed",
    [
        {"step": "7"},
        {"step": True},
        {"vocab_size": 1.5},
        {"task": None},
        {"labels": 3},
        {"labels": [1]},
        {"special": {"SUBJ": "5"}},
        {"evaluation": {"held_out/f1": "3"}},
        {"words": []},
        {"checksums": [1]},
        {"format": None},
        {"versions": 2},
        {"config": 3},
    ],
    ids=str,
)
def test_a_wrong_type_in_what_an_earlier_version_wrote_is_damage(changed: dict[str, Any]) -> None:
    fields = {name: value for name, value in FULL.to_json().items() if name != DIGEST}
    assert from_json(fields, "run") == FULL
    with pytest.raises(Damaged, match=r"^run: this checkpoint is damaged \(its metadata is not as it was written: "):
        from_json(fields | changed, "run")
    with pytest.raises(Damaged, match=r"its metadata is not a JSON object but list"):
        from_json([fields], "run")


def test_a_config_json_of_another_version_is_refused_with_both_versions() -> None:
    fields = json.loads(config_to_json(FULL.config)) | {"written_by": "9.0"}
    fields["model"]["width"] = 3
    with pytest.raises(UserError, match=r"config.json: written by spanbert_jax 9.0, .* unknown field model.width"):
        config_from_json(json.dumps(fields), "config.json")
    del fields["written_by"]
    with pytest.raises(UserError, match=r"written by spanbert_jax before 0.2.0"):
        config_from_json(json.dumps(fields), "config.json")


@pytest.mark.parametrize("text", ["[", "3", '["model"]', "[" * 100_000, '{"model": 3}', '{"train": {"steps": "9"}}'])
def test_a_config_json_of_another_shape_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^config.json: ") as raised:
        config_from_json(text, "config.json")
    assert len(str(raised.value)) < 300
