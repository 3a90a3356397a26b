"""tools/convert_to_pytorch.py and tools/convert_from_pytorch.py, as a user runs them: there and back, and misused."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from spanbert_jax.config import Config, ModelConfig, TrainConfig, flatten
from spanbert_jax.convert.names import Params
from spanbert_jax.convert.tensorflow_checkpoint import read_checkpoint
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.encoder import padded_vocab
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.serving.artefact import read_model
from spanbert_jax.serving.artefact_readme import readme
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer, load_tokenizer
from spanbert_jax.training.checkpoint import find_checkpoint, read_metadata, read_params, write_params
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.workdir import read_config
from tests.support import runs
from tools import convert_from_pytorch, convert_to_pytorch, inspect_checkpoint

MODEL = ModelConfig(layers=2, embed=48, heads=4, mlp=64, max_length=40, span_offset_embed=20)
ABOUT = "spanbert_jax.json"
STEPS = runs.SMALL["train.steps"]
TEXT = "Where is the Amazon?\nIt is in Brazil, mostly; a part of it is elsewhere.\n"


def wordpiece(lowercase: bool) -> Tokenizer:
    letters = string.ascii_lowercase + ("" if lowercase else string.ascii_uppercase)
    whole = [*SPECIALS, *string.digits, *string.punctuation, *letters, "the", "of"]
    return Tokenizer("wordpiece", "\n".join([*whole, *(f"##{x}" for x in letters), "##ing", ""]).encode(), lowercase)


def random_params(lowercase: bool = False, model: ModelConfig = MODEL, **heads: int) -> Params:
    """Random everywhere, but in the rows that only pad the vocabulary."""
    rng, vocab_size = np.random.default_rng(len(heads)), wordpiece(lowercase).vocab_size

    def leaf(path: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
        array = rng.normal(float(path[-1].key == "scale"), 0.05, shape).astype(np.float32)
        if shape[0] == padded_vocab(vocab_size):
            array[vocab_size:] = 0
        return array

    tree = parameter_shapes(model, vocab_size, heads)
    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda node: isinstance(node, tuple))


def write_run(
    workdir: Path,
    params: Params,
    lowercase: bool = False,
    labels: tuple[str, ...] = (),
    config: Config | None = None,
    task: str = "any",
) -> Path:
    """What a run leaves, as far as the tools read it."""
    wordpiece(lowercase).save(workdir / "tokenizer")
    metadata = Metadata(task, 7, config or Config(model=MODEL), labels=labels)
    write_params(epath.Path(workdir / "checkpoints"), params, metadata)
    return workdir


def call(tool: ModuleType, *arguments: object) -> tuple[int, str, str]:
    """Runs the tool's main in this process: (status, stdout, stderr)."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = tool.main([*map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def export(checkpoint: Path, output: Path, *flags: object) -> str:
    """Exports, compared with transformers on TEXT; returns what is printed."""
    text = output.with_name("text.txt")
    text.write_text(TEXT * 20, encoding="utf-8")
    arguments = ("--checkpoint", checkpoint, "--output", output, "--text", text, "--verify", *flags)
    status, out, err = call(convert_to_pytorch, *arguments)
    assert status == 0 and err == "", err
    return out


def export_again(checkpoint: Path, output: Path) -> None:
    """Exports without a comparison, where the caller compares the files with those of an export that was compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_to_pytorch, "compare", lambda *_: "")
        export(checkpoint, output)


def import_(source: Path, output: Path, *flags: object) -> str:
    status, out, err = call(convert_from_pytorch, "--input", source, "--output", output, *flags)
    assert status == 0 and err == "", err
    return out


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, env=runs.environment())


def assert_same(a: Params, b: Params) -> None:
    """The same names, dtypes, shapes and bytes."""
    first, second = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (a, b))
    assert first.keys() == second.keys()
    for path, x in first.items():
        y = second[path]
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), path


def files(directory: Path) -> dict[str, bytes]:
    """All but the two files that say where the weights come from."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in ("README.md", ABOUT)}


def differences(printed: str) -> list[float]:
    """The largest differences from transformers that are printed: of hidden states and logits, eager and sdpa."""
    line = r"^  {}: +hidden states (\S+) \(values up to \S+\), logits (\S+) \(values up to \S+\)$"
    return [float(x) for name in ("eager", "sdpa") for x in re.findall(line.format(name), printed, re.M)[0]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, finished: tuple[Path, str]) -> Path:
    """A folder with run/, a link to a really trained run; and export/, imported/ and again/, which the tools made in
    turn."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run").symlink_to(finished[0])
    for tool, *arguments in (
        (convert_to_pytorch, "--verify", "--checkpoint", folder / "run", "--output", folder / "export"),
        (convert_from_pytorch, "--input", folder / "export", "--output", folder / "imported"),
    ):
        status, out, err = call(tool, *arguments)
        assert status == 0 and err == "", err
        (folder / f"{tool.__name__}.txt").write_text(out)
    export_again(folder / "imported", folder / "again")
    return folder


def test_a_trained_run_is_verified_and_comes_back_bitwise(trained: Path) -> None:
    printed = (trained / "tools.convert_to_pytorch.txt").read_text()
    assert max(differences(printed)) <= 2e-5
    lines, differing = re.findall(r"Tokenizer: on (\d+),\d+ real lines, \d+ differ \((\S+)%\)", printed)[0]
    assert int(lines) >= 5 and float(differing) < 0.2  # thousands
    listed = re.findall(r"^  (\S+) +([\d,]+) bytes$", printed, re.M)
    assert dict(listed) == {path.name: f"{path.stat().st_size:,}" for path in (trained / "export").iterdir()}
    assert (
        "Taken: embeddings, encoder, final_norm, mlm, sbo\n" in (trained / "tools.convert_from_pytorch.txt").read_text()
    )

    assert_same(runs.params(trained / "run", STEPS), runs.params(trained / "imported", 0))
    assert files(trained / "export") == files(trained / "again")


def test_transformers_loads_a_trained_run_s_export_with_nothing_missing(trained: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, info = AutoModelForMaskedLM.from_pretrained(trained / "export", output_loading_info=True)
    assert not any(info.values()) and type(model).__name__ == "ModernBertForMaskedLM"
    word = runs.params(trained / "run", STEPS)["['embeddings']['word']"]
    assert np.array_equal(model.model.embeddings.tok_embeddings.weight.detach().numpy(), word[:600])
    tokenizer, ours = AutoTokenizer.from_pretrained(trained / "export"), load_tokenizer(trained / "run" / "tokenizer")
    for line in TEXT.splitlines():
        assert tokenizer(line)["input_ids"] == [ours.cls_id, *ours.tokenize(line), ours.sep_id]


def test_an_export_says_which_training_it_comes_from(trained: Path) -> None:
    said, again = (json.loads((trained / name / ABOUT).read_text()) for name in ("export", "again"))
    assert said["step"] == STEPS
    assert said["config"] == flatten(read_config(epath.Path(trained / "run" / "config.json")))
    assert said["evaluation"]["held_out/mlm_loss"] == runs.metrics(trained / "run", "held_out/mlm_loss")[STEPS]
    assert again["imported_from"] == str(trained / "export") and "config" not in again


def test_a_run_that_was_killed_while_it_wrote_metrics_is_exported(bert: Path, tmp_path: Path) -> None:
    """As a run goes on after that (tests/runs/test_pretraining.py), it is exported."""
    shutil.copytree(bert, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 7, "held_out/mlm_loss": 1.0}\n{"step": 7, "train/ml')
    export(tmp_path / "run", tmp_path / "export")


KINDS: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {  # the heads, with what is their own size, and the labels
    "BertForMaskedLM": ({"mlm": 0, "sbo": 9}, ()),
    "BertForQuestionAnswering": ({"qa_outputs": 0}, ()),
    "BertForSequenceClassification": ({"pooler": 0, "classifier": 3}, ("no", "per haps", "yes")),
    "BertForTokenClassification": ({"classifier": 3}, ("no", "per haps", "yes")),
}


@pytest.mark.parametrize(("name", "lowercase"), [(name, i % 2 == 0) for i, name in enumerate(KINDS)])
def test_a_run_with_any_head_is_verified_and_comes_back_bitwise(name: str, lowercase: bool, tmp_path: Path) -> None:
    import transformers

    heads, labels = KINDS[name]
    params = random_params(lowercase, **heads)
    printed = export(write_run(tmp_path / "run", params, lowercase, labels), tmp_path / "export")
    assert f"for transformers' {name}" in printed and "Left out" not in printed
    assert "Tokenizer: on 40 real lines, 0 differ (0.00%)" in printed and max(differences(printed)) <= 2e-5
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config.get("id2label", {}) == {str(i): label for i, label in enumerate(labels)}
    model, info = getattr(transformers, name).from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(info.values()) and (not labels or model.config.label2id == {"no": 0, "per haps": 1, "yes": 2})

    printed = import_(tmp_path / "export", tmp_path / "imported")
    taken = ", ".join(["embeddings", "encoder", *heads]) + (" (no, per haps, yes)" if labels else "")
    assert re.findall("Taken: (.*)", printed) == [taken]
    assert re.findall(r"Missing: (\w+)", printed) == ([] if "mlm" in heads else ["mlm", "sbo"])
    checkpoint = find_checkpoint(epath.Path(tmp_path / "imported"))
    assert_same(read_params(checkpoint), params)
    assert read_metadata(checkpoint).labels == labels
    assert load_tokenizer(tmp_path / "imported" / "tokenizer").fingerprint == wordpiece(lowercase).fingerprint
    export_again(tmp_path / "imported", tmp_path / "again")
    assert files(tmp_path / "export") == files(tmp_path / "again")


def test_a_run_of_the_modern_family_is_verified_comes_back_bitwise_and_is_inspected(tmp_path: Path) -> None:
    """With classes of tokens, whose heads have the names of those of rows: the task goes along."""
    own = {"pre_norm": True, "gated_mlp": True, "norm_bias": False, "window": 4, "full_every": 2, "init": "truncated"}
    model = ModelConfig(family="modern", layers=2, embed=24, heads=2, mlp=16, max_length=40, pooling="mean", **own)
    params, labels = random_params(model=model, transform=0, classifier=3), ("no", "per haps", "yes")
    params["encoder"]["attention"]["norm"]["scale"][0] = 1  # never used, and in no file of transformers
    config = Config(model=model, task="token_classification")
    run = write_run(tmp_path / "run", params, labels=labels, config=config)
    printed = export(run, tmp_path / "export")
    assert "; for transformers' ModernBertForTokenClassification\n" in printed
    assert "Left out" not in printed and max(differences(printed)) <= 2e-5

    printed = import_(tmp_path / "export", tmp_path / "imported")
    assert f"{tmp_path}/export: a Hugging Face ModernBERT, 2 layers x 24, 2 heads" in printed
    command = f"--config configs/modern_base.py --config.init_from={tmp_path}/imported --config.data.block_length="
    assert f"Train from it:  python -m spanbert_jax.main {command}{model.max_length}\n" in printed
    taken = "Taken: embeddings, encoder, final_norm, transform, classifier (no, per haps, yes)\n"
    assert taken in printed and "Left alone" not in printed
    checkpoint = find_checkpoint(epath.Path(tmp_path / "imported"))
    assert_same(read_params(checkpoint), params)
    export_again(tmp_path / "imported", tmp_path / "again")
    assert files(tmp_path / "export") == files(tmp_path / "again")

    for weights in (tmp_path / "export", tmp_path / "imported"):
        status, printed, _ = call(inspect_checkpoint, weights)
        assert status == 0 and re.search(r"encoder/mlp/up/kernel +2 x 24 x 2 x 16 +-, embed, -, mlp", printed)
        assert "final_norm" in printed and "Token types" not in printed
    with open_weights(tmp_path / "imported") as opened:
        served = read_model(opened)
    assert (
        served.task == "token_classification" and {"final_norm/scale", "transform/norm/scale"} <= served.params.keys()
    )
    assert "token_type_ids` [batch, length]: any; this encoder has no token types\n" in readme(
        served, "stablehlo", tmp_path / "export", "export"
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every head of pre-training, BERT's and SpanBERT's."""
    return write_run(tmp_path_factory.mktemp("bert") / "run", random_params(pooler=0, mlm=0, sbo=15))


@pytest.fixture(scope="module")
def exported(bert: Path) -> Path:
    printed = export(bert, bert.with_name("export"))
    assert "Holds: embeddings, encoder, mlm, sbo; for transformers' BertForMaskedLM\nLeft out: pooler\n" in printed
    return bert.with_name("export")


def test_a_head_that_was_not_trained_is_left_out(tmp_path: Path) -> None:
    config = dataclasses.replace(Config(model=MODEL), train=TrainConfig(sbo_weight=0.0))
    run = write_run(tmp_path / "run", random_params(pooler=0, mlm=0, sbo=15), config=config, task="pretraining")
    printed = export(run, tmp_path / "export")
    assert "Holds: embeddings, encoder, mlm; for transformers' BertForMaskedLM\n" in printed
    assert "Left out: pooler, sbo (not trained)\n" in printed
    assert not (tmp_path / "export" / "sbo_head.safetensors").exists()


def test_encoder_only_writes_no_head_but_the_pooler_and_says_so(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    printed = export(bert, tmp_path / "export", "--encoder-only")
    assert "Holds: embeddings, encoder, pooler; for transformers' BertModel\nLeft out: mlm, sbo\n" in printed
    assert not (tmp_path / "export" / "sbo_head.safetensors").exists()
    _, info = AutoModel.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(info.values())


def test_a_bfloat16_export_is_the_rounded_weights_compared_as_such(bert: Path, exported: Path, tmp_path: Path) -> None:
    assert (
        max(differences(export(bert, tmp_path / "export", "--dtype", "bfloat16"))) <= 2e-5
    )  # ours is rounded too, so rounding does not show
    for name in ("model.safetensors", "sbo_head.safetensors"):
        whole = {key: array.astype(ml_dtypes.bfloat16) for key, array in load_file(exported / name).items()}
        assert_same(load_file(tmp_path / "export" / name), whole)


def test_without_torch_an_export_is_written_and_said_not_to_be_compared(bert: Path, tmp_path: Path) -> None:
    """In a process of its own, where neither can be imported. A pickle, and --verify, need them and say so."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    script = (
        "import json, sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from tools import convert_from_pytorch, convert_to_pytorch\n"
        "for tool, *sys.argv in json.loads(sys.argv[1]):\n"
        "    print('status', locals()[tool].main())\n"
    )
    to, by = ["convert_to_pytorch", "", f"--checkpoint={bert}"], ["convert_from_pytorch", "", f"--input={tmp_path}"]
    outputs = [f"--output={tmp_path}/{name}" for name in ("export", "verified", "imported")]
    calls = [[*to, outputs[0]], [*to, outputs[1], "--verify"], [*by, outputs[2]]]
    done = process("-c", script, json.dumps(calls))
    assert re.findall(r"status (\d)", done.stdout) == ["0", "1", "1"], done.stderr
    assert "Not compared with PyTorch: torch and transformers are not installed (requirements-torch.txt)" in done.stdout
    verify, pickled = done.stderr.splitlines()
    assert "error: --verify needs torch and transformers" in verify and "error: " in pickled
    assert "pytorch_model.bin is a PyTorch pickle" in pickled and done.stderr.count("requirements-torch.txt") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"pytorch_model.bin", "export"}


@pytest.mark.parametrize("rows", [300])  # more than our tables are padded to
def test_rows_beyond_the_pieces_are_named_and_survive_there_and_back(rows: int, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "padded")
    field(vocab_size=rows)(tmp_path / "padded")
    rng = np.random.default_rng(rows)
    for name in ("model.safetensors", "sbo_head.safetensors"):
        tensors = load_file(tmp_path / "padded" / name)
        for key, array in tensors.items():
            if array.shape[0] == 154:
                more = rng.normal(size=(rows - 154, *array.shape[1:])).astype(np.float32)
                tensors[key] = np.concatenate([array, more])
        save_file(tensors, tmp_path / "padded" / name, metadata={"format": "pt"})

    printed = import_(tmp_path / "padded", tmp_path / "imported")
    assert f"\nRows: {rows} in the word table, and 154 pieces; the rows without a piece are kept and never score\n" in (
        printed
    )
    assert max(differences(export(tmp_path / "imported", tmp_path / "again"))) <= 2e-5
    assert files(tmp_path / "padded") == files(tmp_path / "again")

    checkpoint = find_checkpoint(epath.Path(tmp_path / "imported"))
    params, config = read_params(checkpoint), read_metadata(checkpoint).config
    model = pretraining_heads.pretraining_model(config, 154, "cpu")
    assert jax.tree.map(jax.numpy.shape, params["embeddings"]) == jax.tree.map(
        jax.numpy.shape, jax.eval_shape(lambda: pretraining_heads.init_params(model, jax.random.key(0)))["embeddings"]
    )
    batch = {name: np.zeros((1, 3), np.int32) for name in ("input_ids", "masked_positions")}
    scored = jax.jit(lambda batch: pretraining_heads.apply(model, params, batch, heads=(pretraining_heads.MLM,)))
    scores = scored({**batch, "lengths": np.array([3])})["mlm"]
    assert np.isfinite(np.asarray(scores[..., :154])).all() and float(scores[..., 154:].max()) <= -1e9


def test_a_tensorflow_checkpoint_is_accounted_for_tensor_by_tensor(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "checkpoints/tiny_bert_tf1"
    printed = import_(source, tmp_path / "imported")
    assert "a TensorFlow-1 BERT, 2 layers x 4, 4 heads; 15 pieces (wordpiece)" in printed
    assert "Text: lowercased: 0 of 10 pieces" in printed and "Taken: embeddings, encoder, pooler, mlm, nsp\n" in printed
    assert re.findall(r"Missing: (.*?);", printed) == ["sbo, the span boundary head"]
    # 139 tensors: 46 taken, global_step, and two slots for each of the 46.
    (left,) = re.findall(r"Left alone, 93 tensors: (.*)", printed)
    assert set(left.split(", ")) == {"46 x */adam_m", "46 x */adam_v", "global_step"}
    left_alone = read_metadata(find_checkpoint(epath.Path(tmp_path / "imported"))).left_alone
    assert len(set(left_alone)) == 93 and "bert/pooler/dense/kernel/adam_m" in left_alone
    printed = export(tmp_path / "imported", tmp_path / "export")
    assert "for transformers' BertForPreTraining\n" in printed and "Left out" not in printed
    assert printed.count("next-sentence logits") == 2  # with eager and with sdpa attention
    tensors, original = load_file(tmp_path / "export/model.safetensors"), read_checkpoint(source / "bert_model.ckpt")
    for ours, theirs in (("weight", "output_weights"), ("bias", "output_bias")):
        expected = original[f"cls/seq_relationship/{theirs}"]()
        np.testing.assert_array_equal(tensors[f"cls.seq_relationship.{ours}"], expected)


def test_a_vocabulary_may_lie_elsewhere(shared_data: Path, tmp_path: Path) -> None:
    source, vocab = tmp_path / "bert", shared_data / "checkpoints/tiny_bert_tf1/vocab.txt"
    shutil.copytree(vocab.parent, source, ignore=shutil.ignore_patterns("vocab.txt"))
    assert "--vocab vocab.txt" in refused(convert_from_pytorch, tmp_path / "imported", "--input", source)
    import_(source / "bert_model.ckpt", tmp_path / "imported", "--vocab", vocab)
    assert (tmp_path / "imported" / "tokenizer" / "vocab.txt").read_bytes() == vocab.read_bytes()


def refused(tool: ModuleType, output: Path, *arguments: object) -> str:
    """The one line of an error; nothing is written."""
    before = sorted(output.parent.rglob("*"))
    status, _, err = call(tool, *arguments, "--output", output)
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, err
    assert sorted(output.parent.rglob("*")) == before
    return err.strip()


Damage = Callable[[Path], object]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def field(**fields: Any) -> Damage:
    """Changes fields of config.json."""

    def damage(folder: Path) -> None:
        whole = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(whole | fields, indent=2) + "\n")

    return damage


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Damage:
    """Changes a tensor, or removes it where `change` gives None."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors.pop(name))
        tensors |= {} if changed is None else {name: np.ascontiguousarray(changed)}
        save_file(tensors, folder / "model.safetensors")

    return damage


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-run"),)


def pickle_with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"bert.pooler.dense.weight": Code()}, protocol=2))


DENSE, WORD = "bert.encoder.layer.1.output.dense.weight", "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (field(model_type="roberta"), r": model_type is 'roberta'"),
        (lambda folder: truncate(folder / "model.safetensors"), r"model.safetensors: not a whole safetensors file"),
        (pickle_with_code, r"pytorch_model.bin: not a pickle of weights alone"),
        (field(num_hidden_layers=3), r"bert.encoder.layer.2. is missing, and its configuration says 3 layers"),
        (field(num_hidden_layers=1), r"encoder.layer.1.* not in the BERT of 1 layers"),
        (tensor(DENSE, lambda old: None), f"1 tensors are missing, {DENSE}"),
        (tensor(DENSE, lambda old: old.T), rf"{DENSE} has shape \(64, 48\); expected \(48, 64\)"),
        (tensor(DENSE, lambda old: old * np.nan), f"{DENSE} has 3072 values that are not finite"),
        (tensor(WORD, lambda old: old[:-1]), rf"{WORD} has shape \(153, 48\); expected \(154, 48\)"),
        (field(vocab_size=153), r"the word table has 153 rows, and the vocabulary in .* 154 pieces"),
        (field(vocab_size=160), rf"{WORD} has shape \(154, 48\); expected \(160, 48\)"),
    ],
)
def test_weights_that_cannot_be_used_are_one_message_and_leave_nothing(
    damage: Damage, message: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, tmp_path / "bad")
    damage(tmp_path / "bad")
    assert re.search(message, refused(convert_from_pytorch, tmp_path / "imported", "--input", tmp_path / "bad"))
    assert not Path("was-run").exists()


@pytest.mark.parametrize("tool", [convert_to_pytorch, convert_from_pytorch])
def test_wrong_arguments_are_one_message_and_leave_nothing(
    tool: ModuleType, bert: Path, exported: Path, tmp_path: Path
) -> None:
    source = ("--checkpoint", bert) if tool is convert_to_pytorch else ("--input", exported)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "mine: exists and is not an empty directory" in refused(tool, tmp_path / "mine", *source)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert "thesis.tex: exists" in refused(tool, tmp_path / "mine" / "thesis.tex", *source)
    assert "absent: no such file" in refused(tool, tmp_path / "out", source[0], tmp_path / "absent")
    assert "mine: no weights there" in refused(tool, tmp_path / "out", source[0], tmp_path / "mine")


def test_what_only_one_of_the_tools_takes_is_one_message_too(bert: Path, tmp_path: Path) -> None:
    assert "is already a checkpoint of this project" in refused(convert_from_pytorch, tmp_path / "out", "--input", bert)
    refusal = refused(convert_to_pytorch, tmp_path / "out", "--checkpoint", bert, "--text", tmp_path / "absent.txt")
    assert "absent.txt: cannot be read as UTF-8 text" in refusal
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "run: no checkpoint there" in refused(convert_to_pytorch, tmp_path / "out", "--checkpoint", tmp_path / "run")


def test_an_extension_is_left_out_while_it_is_the_identity_and_named_afterwards(tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, head_scales="output", context_encoder="mingru")
    params = random_params(model=model, mlm=0, sbo=15)
    scales, output = params["encoder"]["attention"]["heads"]["scales"], params["context"]["output"]
    for array in (*scales.values(), output["kernel"]):
        array[...] = 0
    run = write_run(tmp_path / "fresh", params, config=Config(model=model))
    assert "Compared with transformers' BertForMaskedLM" in export(run, tmp_path / "export")
    output["kernel"][3, 4] = 1e-9
    run = write_run(tmp_path / "trained", params, config=Config(model=model))
    status, _, said = call(convert_to_pytorch, "--checkpoint", run, "--output", tmp_path / "other")
    assert status == 1 and said.count("\n") == 1 and not (tmp_path / "other").exists()
    assert "model.context_encoder is 'mingru', and its parameter context/output/kernel is not 0 any more" in said


def test_a_checkpoint_with_a_value_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    params = random_params()
    params["encoder"]["mlp"]["up"]["kernel"][1, 2, 3] = np.inf
    refusal = refused(convert_to_pytorch, tmp_path / "export", "--checkpoint", write_run(tmp_path / "run", params))
    assert "bert.encoder.layer.1.intermediate.dense.weight has values that are not finite" in refusal


def test_a_truncated_checkpoint_is_one_message_and_leaves_nothing(bert: Path, tmp_path: Path) -> None:
    """In a process of its own, whose stderr has everything, of whatever thread."""
    damaged = ("7/state/ocdbt.process_0/d/*", "7/state/manifest.ocdbt", "7/metadata/metadata")
    for number, pattern in enumerate(damaged):
        shutil.copytree(bert, tmp_path / f"run{number}")
        truncate(max((tmp_path / f"run{number}" / "checkpoints").glob(pattern), key=lambda path: path.stat().st_size))
    script = (
        "import sys\n"
        "from tools import convert_to_pytorch\n"
        "for run in sys.argv[1:]:\n"
        "    print(convert_to_pytorch.main(['--checkpoint', run, '--output', run + '.export']))\n"
    )
    places = [tmp_path / f"run{number}" for number in range(len(damaged))]
    done = process("-c", script, *places)
    assert done.returncode == 0 and re.findall(r"^\d$", done.stdout, re.M) == ["1"] * len(places), done.stderr
    for place, line in zip(places, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"error: {place}: no sound checkpoint there: {place}/checkpoints/7 is damaged (")
    assert sorted(tmp_path.iterdir()) == places
