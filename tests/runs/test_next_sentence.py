"""A run on pairs: next-sentence prediction is trained, logged, reported, exported and gone on with."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from configs.tiny import get_config
from spanbert_jax.config import from_dict
from spanbert_jax.model import pretraining_heads
from spanbert_jax.runs.start_from import StartingWeights, adopt, initial_params
from spanbert_jax.text.tokenizer import SPECIALS
from tests.support import runs

GROUPS = {"embeddings", "encoder", "pooler", "mlm", "sbo", "nsp"}
FIELDS: dict[str, Any] = runs.SMALL | {
    "corpus.pairs": True,
    "train.nsp_weight": 1.0,
    "data.lengths": 1,
    "train.steps": 3,
    "optimizer.name": "adamw",  # its step compiles faster than Muon's
    "optimizer.warmup_steps": 1,
    "train.log_every": 1,
    "train.eval_every": 3,
    "train.eval_blocks": 8,
    "train.checkpoint_every": 3,
}


def test_a_run_on_pairs_trains_reports_exports_and_is_gone_on_with(
    topics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    printed = runs.call_config(get_config("bert"), workdir, [], **FIELDS | {"corpus.files": topics}).stdout
    assert ", NSP 0." in printed and "Held-out NSP: loss " in printed
    assert "\n  without a model: always the commonest label: " in printed
    logged = runs.metrics(workdir, "train/nsp_loss")
    assert set(logged) == {1, 2, 3} and abs(logged[1] - np.log(2)) < 0.1
    for measure in ("loss", "accuracy", "commonest"):
        assert set(runs.metrics(workdir, f"held_out/nsp_{measure}")) == {3}
    assert runs.metrics(workdir, "held_out/nsp_commonest")[3] >= 0.5
    assert runs.metrics(workdir, "held_out/mlm_neighbours_mask").keys() == {3}

    trained = runs.params(workdir, 3)
    heads = {name: array for name, array in trained.items() if name.startswith(("['pooler']", "['nsp']"))}
    assert len(heads) == 4 and all(np.any(array) for array in heads.values())

    done = runs.tool("convert_to_pytorch", "--checkpoint", workdir, "--output", tmp_path / "export", "--verify")
    ((held, named),) = re.findall(r"Holds: (.*); for transformers' (\w+)\n", done.stdout)
    assert set(held.split(", ")) == GROUPS and named == "BertForPreTraining"
    assert done.stdout.count("next-sentence logits") == 2  # with eager and with sdpa attention
    exported = load_file(tmp_path / "export/model.safetensors")
    np.testing.assert_array_equal(exported["cls.seq_relationship.weight"], heads["['nsp']['kernel']"].T)

    capsys.readouterr()
    params = taken(tmp_path / "export", 1.0)
    found = {jax.tree_util.keystr(path): array for path, array in jax.tree_util.tree_leaves_with_path(params)}
    assert found.keys() == trained.keys() and all(np.array_equal(found[name], trained[name]) for name in trained)
    assert set(taken(tmp_path / "export", 0.0)) == GROUPS - {"pooler", "nsp"}
    assert capsys.readouterr().out.count("freshly initialised: nothing\n") == 2


def taken(weights: Path, nsp_weight: float) -> dict[str, Any]:
    """The parameters that a run with this weight takes from the weights."""
    fields: ConfigDict = get_config("bert")
    fields.update_from_flattened_dict(FIELDS | {"train.nsp_weight": nsp_weight, "init_from": str(weights)})
    with StartingWeights(from_dict(fields.to_dict())) as start:
        config = adopt(from_dict(fields.to_dict()), epath.Path(weights.parent / "new"), start)
        model = pretraining_heads.pretraining_model(config, start.open().tokenizer.vocab_size, "cpu")
        read = initial_params(config, start, lambda: pretraining_heads.init_params(model, jax.random.key(0)))
        assert read is not None
        return read()


def test_whether_a_text_follows_is_learnt_where_topics_tell(tmp_path: Path) -> None:
    """Every document has one of six topics, each with words of its own, and sentences of one length. A random text is
    of the same topic a sixth of the time, which leaves about 90% of the labels to be known."""
    rng = np.random.default_rng(0)
    topics = [[f"{topic}{word}" for word in "abcdefgh"] for topic in "uvwxyz"]
    texts = ["\n".join(" ".join(rng.choice(topics[document % 6], 6)) for _ in range(24)) for document in range(600)]
    (tmp_path / "topics.txt").write_text("\n\n".join(texts))
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *(word for words in topics for word in words)]) + "\n")
    fields = runs.SMALL | {"corpus.files": tmp_path / "topics.txt", "corpus.sentences": "none", "corpus.pairs": True}
    fields |= {"tokenizer.kind": "wordpiece", "tokenizer.vocab_file": tmp_path / "vocab.txt"}
    fields |= {"data.block_length": 40, "data.lengths": 1, "train.nsp_weight": 1.0, "train.sbo_weight": 0.0}
    fields |= {"train.batch_size": 32, "train.steps": 250, "optimizer.warmup_steps": 20}
    fields |= {f"train.{name}_every": 250 for name in ("log", "eval", "checkpoint")}
    runs.call_config(get_config("bert"), tmp_path / "run", [], **fields)
    accuracy, commonest = (
        runs.metrics(tmp_path / "run", f"held_out/nsp_{of}")[250] for of in ("accuracy", "commonest")
    )
    assert commonest < 0.6 and commonest + 0.1 < accuracy < 0.95
