"""A span decoder on top of a run: only the decoder is trained, logged, evaluated, reported, saved and resumed."""

import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from spanbert_jax.config import from_dict
from spanbert_jax.convert.export import Export, write_export
from spanbert_jax.errors import UserError
from spanbert_jax.model import pretraining_heads
from spanbert_jax.runs.start_from import StartingWeights, adopt, initial_params
from spanbert_jax.serving.weights import open_weights, training_of
from tests.support import runs

FIELDS: dict[str, Any] = {
    "model__decoder_layers": 1,
    "masking__collapse_spans": True,
    "data__lengths": 1,
    "train__only": "decoder",
    "train__eval_blocks": 32,
    "train__steps": 4,
    "train__log_every": 1,
    "train__eval_every": 2,
    "train__checkpoint_every": 2,
    "optimizer__warmup_steps": 1,
}


@pytest.fixture(scope="module")
def decoded(finished: tuple[Path, str], topics: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the workdir of a run that trained a decoder on top of `finished`, what the run printed)."""
    workdir = tmp_path_factory.mktemp("decoder") / "run"
    return workdir, runs.call(workdir, **fields_of(finished[0], topics)).stdout


def fields_of(source: Path, topics: Path) -> dict[str, Any]:
    return {**FIELDS, "corpus__files": topics, "init_from": source, "data__dir": source / "data"}


def test_the_decoder_is_trained_logged_and_reported_and_all_else_stays_bit_for_bit(
    decoded: tuple[Path, str], finished: tuple[Path, str]
) -> None:
    workdir, printed = decoded
    assert "freshly initialised: decoder\n" in printed
    source, first, last = runs.params(finished[0], 12), runs.params(workdir, 2), runs.params(workdir, 4)
    assert source.keys() == {name for name in last if "['decoder']" not in name}
    assert all(np.array_equal(source[name], last[name]) for name in source)
    assert any(not np.array_equal(first[name], last[name]) for name in last if "['decoder']" in name)
    logged = runs.metrics(workdir, "train/decoder_loss")
    # A fresh decoder is as good as the source's span-boundary head.
    of_source = runs.metrics(finished[0], "held_out/sbo_loss_mask")[12]
    assert set(logged) == {1, 2, 3, 4} and abs(logged[1] - of_source) < 0.5 < np.log(600) - logged[1]
    ends = runs.metrics(workdir, "train/decoder_end_loss")
    assert ends[1] == pytest.approx(np.log(2), rel=1e-5) and ends[4] < ends[1]
    for measure in ("loss", "end_loss", "accuracy_mask", "commonest_mask", "neighbours_mask", "neighbours_loss_mask"):
        assert set(runs.metrics(workdir, f"held_out/decoder_{measure}")) == {2, 4}
    assert set(runs.metrics(workdir, "held_out/decoder_share_mask").values()) == {1.0}
    assert not runs.metrics(workdir, "held_out/mlm_loss")
    assert "Held-out DECODER on [MASK] pieces: loss " in printed and ", end " in printed


def test_a_resumed_run_is_bitwise_the_same(
    decoded: tuple[Path, str], finished: tuple[Path, str], topics: Path, tmp_path: Path
) -> None:
    again = runs.half_way(decoded[0], tmp_path / "run", 2)
    assert "Step 2 of 4" in runs.call(again, **fields_of(finished[0], topics)).stdout
    one, other = runs.params(decoded[0], 4), runs.params(again, 4)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_an_export_leaves_the_decoder_out_and_a_run_can_go_on_with_or_without_it(
    decoded: tuple[Path, str], topics: Path, tmp_path: Path
) -> None:
    with open_weights(decoded[0]) as weights:
        params, model = weights.load()[0], weights.config.model
        export = Export(params, model, weights.tokenizer, (), training_of(weights), "decoder")
        _, groups = write_export(export, tmp_path, "float32", False)
    assert set(params) - set(groups) == {"decoder"} and {"mlm", "sbo"} < set(groups)
    assert set(taken(decoded[0], topics)) == set(params)
    plain = {"masking__collapse_spans": False, "model__decoder_layers": 0, "train__only": ""}
    assert set(taken(decoded[0], topics, **plain)) == set(groups)
    with pytest.raises(UserError, match=r"the weights in .* have no 'decoder' of this configuration's shapes"):
        taken(decoded[0], topics, model__decoder_layers=2, train__only="mlm")
    shutil.rmtree(tmp_path)


def taken(source: Path, topics: Path, **fields: Any) -> dict[str, Any]:
    """The parameters that a run takes from the weights in `source`."""
    from configs.tiny import get_config

    wanted = get_config()
    values = runs.overrides({**fields_of(source, topics), **fields})
    wanted.update_from_flattened_dict({name: str(x) if isinstance(x, Path) else x for name, x in values.items()})
    with StartingWeights(from_dict(wanted.to_dict())) as start:
        config = adopt(from_dict(wanted.to_dict()), epath.Path(source.parent / "new"), start)
        model = pretraining_heads.pretraining_model(config, start.open().tokenizer.vocab_size, "cpu")
        init = functools.partial(pretraining_heads.init_params, model, jax.random.key(0))
        read = initial_params(config, start, init)
        assert read is not None
        return read()
