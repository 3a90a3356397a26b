"""tools/build_blocks.py without Apache Beam; tests/corpus/test_build_on_beam.py has the builds."""

import pytest

from spanbert_jax.config import Config, CorpusConfig
from spanbert_jax.errors import UserError
from tools.build_blocks import build


def test_pairs_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"Beam makes no pairs, .* --config.corpus.pairs=False"):
        build(Config(corpus=CorpusConfig(pairs=True)), [])
