"""What a checkpoint holds, as printed: every parameter with its shape, axes and norm, and what token type 1 tells."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from rich.console import Console

from spanbert_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from spanbert_jax.errors import UserError
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from spanbert_jax.training.checkpoint import write_params
from spanbert_jax.training.metadata import Metadata
from tools import inspect_checkpoint

MODEL = ModelConfig(layers=2, embed=8, heads=2, mlp=16, max_length=16)
TOKENIZER = Tokenizer("wordpiece", "\n".join([*SPECIALS, *map(str, range(95))]).encode())


def printed(source: Path) -> str:
    console = Console(file=io.StringIO(), width=140, highlight=False)
    inspect_checkpoint.show(source, None, console)
    return console.file.getvalue()


def write(workdir: Path, **metadata: Any) -> dict[str, Any]:
    """A checkpoint of random parameters at step 100 of a run whose schedule is easy to add up."""
    rng = np.random.default_rng(0)

    def draw(tree: Any) -> Any:
        return {name: draw(x) for name, x in tree.items()} if isinstance(tree, dict) else rng.normal(size=tree)

    params = draw(parameter_shapes(MODEL, 128, {"mlm": 0, "sbo": 15}))
    optimizer = OptimizerConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.1)
    config = dataclasses.replace(Config(), model=MODEL, optimizer=optimizer, train=TrainConfig(steps=100))
    known = {"task": "pretraining", "step": 100, "config": config}
    write_params(epath.Path(workdir) / "checkpoints", params, Metadata(**known | metadata))
    TOKENIZER.save(workdir / "tokenizer")
    return params


def test_every_parameter_has_its_shape_axes_values_and_norm(tmp_path: Path) -> None:
    params = write(tmp_path)
    rows = {line.split()[0]: line for line in printed(tmp_path).splitlines() if line.strip()}
    kernel = params["encoder"]["mlp"]["up"]["kernel"]
    row = rows["encoder/mlp/up/kernel"].split()
    assert row[1:6] == ["2", "x", "8", "x", "16"] and row[6:9] == ["-,", "embed,", "mlp"]
    norm = float(np.linalg.norm(kernel))
    assert row[9:] == ["256", f"{norm:.4g}", f"{norm / 16:.3g}"]
    leaves = [x for group in params.values() for x in _leaves(group)]
    assert f"{sum(x.size for x in leaves):,} parameters" in printed(tmp_path)
    assert sum("/" in name for name in rows if name.split("/")[0] in params) == len(leaves)


def _leaves(tree: Any) -> list[np.ndarray]:
    return [leaf for x in tree.values() for leaf in _leaves(x)] if isinstance(tree, dict) else [tree]


def test_the_run_its_tokenizer_and_what_is_not_default_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    text = printed(tmp_path)
    assert f"{tmp_path}/checkpoints/100: a checkpoint of spanbert_jax, step 100" in text
    assert f"Tokenizer: wordpiece, 100 pieces, {TOKENIZER.fingerprint[:16]}" in text
    assert "model.layers=2" in text and "optimizer.warmup_steps=0" in text and "model.dropout" not in text


def test_names_in_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, task="imported", imported_from="there[/E1].bin", labels=("O", "[b]", "[/E1]", ":smile:"))
    text = printed(tmp_path)
    assert "Labels: O, [b], [/E1], :smile:\n" in text
    assert "Imported from there[/E1].bin; 0 tensors" in text


def test_token_type_1_is_compared_with_what_decay_alone_would_leave(tmp_path: Path) -> None:
    params = write(tmp_path / "run")
    norms = np.linalg.norm(params["embeddings"]["token_type"], axis=1)
    text = printed(tmp_path / "run")
    assert f"norm of row 0 {norms[0]:.4g}, of row 1 {norms[1]:.4g} (rms {norms[1] / np.sqrt(8):.3g})" in text
    # 0.5 falling linearly to 0 over 100 steps adds up to 25.25; 0.02 * exp(-0.1 * 25.25) = 0.0016.
    assert "row 1 would have an rms of about 0.0016 if it had only decayed for 100 steps" in text
    write(tmp_path / "imported", task="imported", imported_from="spanbert.tar.gz", left_alone=("x",))
    text = printed(tmp_path / "imported")
    assert "Imported from spanbert.tar.gz; 1 tensors left alone there" in text
    # Sums of 120 (large) and 75 (base): 0.02 * exp(-1.2) = 0.006, 0.02 * exp(-0.75) = 0.0094.
    assert "weight decay 0.01, row 1 would have an rms of 0.006 in large, 0.0094 in base" in text


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights there"):
        printed(tmp_path)
