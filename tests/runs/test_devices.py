"""A configuration that does not fit this machine's devices is refused before anything is prepared for it."""

from pathlib import Path

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.runs import pretraining
from tests.support.synthetic import small_config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh": {"data": 3}}, "config.mesh"),
        ({"compute": {"attention": "triton"}}, "config.compute.attention is 'triton', which needs"),
    ],
)
def test_devices_are_asked_before_the_text(fields: dict[str, dict[str, object]], message: str, tmp_path: Path) -> None:
    config = small_config(**fields, corpus={"files": f"{tmp_path}/missing.txt"})
    with pytest.raises(UserError, match=message):
        pretraining.run(config, str(tmp_path / "run"), "")
    assert not (tmp_path / "run").exists()
