"""tools/build_blocks.py without Apache Beam; tests/corpus/test_build_on_beam.py has the builds."""

import sys

import pytest

from spanbert_jax.config import Config, CorpusConfig
from spanbert_jax.errors import UserError
from tests.support import runs
from tools.build_blocks import build, fields_and_others, main


def test_pairs_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"Beam makes no pairs, .* --config.corpus.pairs=False"):
        build(Config(corpus=CorpusConfig(pairs=True)), [])


def test_a_field_may_have_its_value_in_an_argument_of_its_own() -> None:
    given = ["--runner", "DirectRunner", "--config.corpus.files", "data/*.txt", "--config.seed=1", "--streaming"]
    fields = ["--config.corpus.files", "data/*.txt", "--config.seed=1"]
    assert fields_and_others(given) == (fields, ["--runner", "DirectRunner", "--streaming"])
    for rest in ([], ["--runner=DirectRunner"]):
        with pytest.raises(UserError, match=r"--config.corpus.files has no value; give it as --config.corpus.files="):
            fields_and_others(["--config.corpus.files", *rest])


def test_a_field_without_a_value_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--config", "configs/tiny.py", "--data-dir", "unused", "--config.corpus.files"]
    monkeypatch.setattr(sys, "argv", ["build_blocks.py", *given])
    assert runs.here(main, expect=1).stderr.startswith("error: --config.corpus.files has no value; give it as")
