"""--config.init_from: runs that start from trained weights, and the parts that read and place them."""

import contextlib
import dataclasses
import functools
import io
import json
import re
import runpy
import shutil
import string
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from spanbert_jax.config import Config, ModelConfig, from_dict
from spanbert_jax.config_check import check
from spanbert_jax.convert.export import Export, write_export
from spanbert_jax.errors import UserError
from spanbert_jax.files import new_directory
from spanbert_jax.model import linear_heads, pretraining_heads
from spanbert_jax.model.encoder import padded_vocab
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.runs import pretraining
from spanbert_jax.runs.prepare import given_tokenizer
from spanbert_jax.runs.start_from import StartingWeights, adopt, initial_params
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer, load_tokenizer
from spanbert_jax.training.checkpoint import write_params
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.step import with_params
from tests.support import runs
from tests.support.devices import on_four_devices
from tests.support.placement import state_on
from tools import convert_from_pytorch

PIECES = 600  # in the vocabulary of the source run; its tables have 640 rows
LAST = runs.SMALL["train.steps"]  # of the source run
ONE_STEP = {"train__steps": 1, "train__eval_blocks": 8, "optimizer__warmup_steps": 0, "optimizer__learning_rate": 0.0}
ONE_STEP |= {"optimizer__name": "adamw"}  # its step compiles faster than Muon's


def configuration(**fields: Any) -> Config:
    """The configuration of runs.command with the same keywords, and rows of one length."""
    config = runpy.run_path(str(runs.ROOT / "configs/tiny.py"))["get_config"]()
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    for name, value in (runs.SMALL | {"data.lengths": 1} | fields).items():
        config.update_from_flattened_dict({name: str(value) if isinstance(value, Path) else value})
    made = from_dict(config.to_dict())
    check(made)
    return made


def train(workdir: Path, **fields: Any) -> str:
    """A run in this process; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert pretraining.run(configuration(**fields), str(workdir), "")
    return printed.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "topics.txt"
    runs.write_corpus(path, topics=30)
    return path


@pytest.fixture(scope="module")
def source(finished: tuple[Path, str]) -> Path:
    """A run to its last step."""
    return finished[0]


def imported(source: Path, directory: Path) -> Path:
    """The source as a Hugging Face directory, and that imported."""
    with open_weights(source) as weights, new_directory(directory / "export", "") as folder:
        params, _ = weights.load()
        write_export(Export(params, weights.config.model, weights.tokenizer, (), {}, "x"), folder, "float32", False)
    convert_from_pytorch.convert(directory / "export", directory / "imported", None)
    return directory / "imported"


@pytest.mark.parametrize("kind", ["run", "imported"])
def test_a_run_starts_with_the_parameters_sizes_and_vocabulary_of_another(
    kind: str, source: Path, corpus: Path, tmp_path: Path
) -> None:
    """The sizes that the command line asks for are others. Dropout stays the run's own, and so do extensions that the
    weights lack."""
    start = source if kind == "run" else imported(source, tmp_path)
    asked = {"model__layers": 3, "model__embed": 96, "model__max_length": 512, "tokenizer__vocab_size": 999}
    added = {"head_scales": "full", "context_encoder": "mingru"} if kind == "run" else {}
    asked |= {f"model__{name}": value for name, value in added.items()}
    printed = train(tmp_path / "run", init_from=start, corpus__files=corpus, model__dropout=0.3, **asked, **ONE_STEP)
    assert f"Starting from {start}, a checkpoint of spanbert_jax: 2 layers x 32, unigram vocabulary of 600" in printed
    assert re.search(f"Taken: (.*); freshly initialised: {', '.join(added) or 'nothing'}\n", printed)[1].split(
        ", "
    ) == [
        "embeddings",
        "encoder",
        "final_norm",
        "mlm",
        "sbo",
    ]
    before, after = runs.params(source, LAST), runs.params(tmp_path / "run", 1)
    extended = {name for name in after if "['scales']" in name or name.startswith("['context']")}
    assert before.keys() == after.keys() - extended and bool(extended) == bool(added)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    wanted = {"layers": 2, "embed": 32, "heads": 2, "mlp": 64, "max_length": 64, "dropout": 0.3} | added
    assert config["model"] == config["model"] | wanted and config["tokenizer"]["vocab_size"] == PIECES
    assert config["init_from"] == str(start)
    for place in ("tokenizer", "data/tokenizer"):
        assert fingerprint(tmp_path / "run" / place) == fingerprint(source / "tokenizer")


def fingerprint(directory: Path) -> str:
    return load_tokenizer(directory).fingerprint


def wordpiece() -> Tokenizer:
    letters = string.ascii_lowercase
    pairs = [a + b for a in letters for b in letters]
    pieces = [*SPECIALS, *string.digits, *string.punctuation, *letters, *pairs, *(f"##{x}" for x in letters)]
    return Tokenizer("wordpiece", "\n".join([*pieces, ""]).encode(), lowercase=True)


def random_params(model: ModelConfig, **heads: int) -> dict[str, Any]:
    """Of a model for `wordpiece()`; random everywhere, but in the rows that only pad the vocabulary."""
    rng, vocab_size = np.random.default_rng(0), wordpiece().vocab_size

    def leaf(shape: tuple[int, ...]) -> np.ndarray:
        array = rng.normal(0, 0.05, shape).astype(np.float32)
        if shape[0] == padded_vocab(vocab_size):
            array[vocab_size:] = 0
        return array

    tree = parameter_shapes(model, vocab_size, heads)
    return jax.tree.map(leaf, tree, is_leaf=lambda node: isinstance(node, tuple))


BERT = ModelConfig(layers=1, embed=24, heads=3, mlp=40, max_length=80)


def test_a_hugging_face_encoder_gets_fresh_heads_and_is_said_to(
    corpus: Path, tmp_path: Path, openings: list[str]
) -> None:
    """With sizes and a vocabulary unlike the configuration's: WordPiece, lowercased."""
    tokenizer, tree = wordpiece(), random_params(BERT, pooler=0)
    pieces = tokenizer.vocab_size
    (tmp_path / "bert").mkdir()
    write_export(Export(tree, BERT, tokenizer, (), {}, "x"), tmp_path / "bert", "float32", True)

    printed = train(tmp_path / "run", init_from=tmp_path / "bert", corpus__files=corpus, **ONE_STEP)
    assert openings == ["opened", "released"]
    assert f"Starting from {tmp_path}/bert, a Hugging Face BERT: 1 layers x 24, wordpiece vocabulary of" in printed
    assert "Taken: embeddings, encoder; freshly initialised: mlm, sbo\n" in printed
    after = runs.params(tmp_path / "run", 1)
    taken = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    taken = {name: leaf for name, leaf in taken.items() if not name.startswith("['pooler']")}
    assert all(np.array_equal(after[name], leaf) for name, leaf in taken.items())
    fresh = {name: leaf for name, leaf in after.items() if name not in taken}
    assert {name.split("'")[1] for name in fresh} == {"mlm", "sbo"}
    for name, leaf in fresh.items():
        if "kernel" in name or "offset" in name:
            assert 0.015 < leaf.std() < 0.025  # config.model.init_std is 0.02
        else:
            assert np.all(leaf == float("scale" in name))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"] == config["model"] | {"layers": 1, "embed": 24, "heads": 3, "mlp": 40, "max_length": 80}
    wanted = {"kind": "wordpiece", "lowercase": True, "vocab_size": pieces, "vocab_file": ""}
    assert config["tokenizer"] == config["tokenizer"] | wanted
    assert fingerprint(tmp_path / "run" / "data" / "tokenizer") == tokenizer.fingerprint


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_the_layer_before_a_task_head_is_that_of_the_masked_language_model(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers shares this layer by its name, `head`, between ModernBERT's classes."""
    fields = {"pre_norm": True, "gated_mlp": True, "head_bias": False}
    model = ModelConfig(family="modern", layers=1, embed=24, heads=3, mlp=40, max_length=80, **fields)
    params = random_params(model, mlm=0, sbo=15)
    write_params(epath.Path(tmp_path / "checkpoints"), params, Metadata("pretraining", 0, Config(model=model)))
    wordpiece().save(tmp_path / "tokenizer")
    config = Config(task=task, init_from=str(tmp_path), model=model)
    head = linear_heads.task_model(task, config, wordpiece().vocab_size, 3, "cpu")
    with StartingWeights(config) as start:
        init = functools.partial(linear_heads.init_params, head, jax.random.key(0))
        taken = initial_params(config, start, init)()
    last = "qa_outputs" if task == "question_answering" else "classifier"
    said = "Taken: embeddings, encoder, final_norm, transform (mlm's); freshly initialised: "
    assert capsys.readouterr().out == f"{said}{last}\n"
    transform = {part: params["mlm"][part] for part in ("dense", "norm")}
    wanted = {name: params[name] for name in ("embeddings", "encoder", "final_norm")} | {"transform": transform}
    jax.tree.map(np.testing.assert_array_equal, taken, wanted)


@pytest.mark.parametrize(("there", "asked"), [("cls", "mean"), ("mean", "cls"), ("cls", "cls")])
def test_rows_are_pooled_by_their_mean_where_the_weights_or_the_run_say_so(
    there: str, asked: str, tmp_path: Path
) -> None:
    fields = {"family": "modern", "pre_norm": True, "layers": 1, "embed": 24, "heads": 3, "mlp": 40, "max_length": 80}
    model = ModelConfig(**fields, pooling=there)
    write_params(
        epath.Path(tmp_path / "checkpoints"), random_params(model, mlm=0), Metadata("x", 0, Config(model=model))
    )
    wordpiece().save(tmp_path / "tokenizer")
    asking = ModelConfig(family="modern", pooling=asked)
    config = Config(task="sequence_classification", init_from=str(tmp_path), model=asking)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, block_length=64, train="x", dev="x"))
    with StartingWeights(config) as start:
        adopted = adopt(config, epath.Path(tmp_path / "run"), start).model
    assert adopted.pooling == ("cls" if there == asked == "cls" else "mean") and adopted.embed == 24


def assert_padding_is_zero(params: dict[str, np.ndarray]) -> None:
    for name in ("['embeddings']['word']", "['mlm']['bias']", "['sbo']['bias']"):
        assert len(params[name]) == 640
        assert np.all(params[name][PIECES:] == 0) and np.any(params[name][:PIECES] != 0), name


def test_a_run_that_goes_on_needs_its_source_no_more(source: Path, corpus: Path, tmp_path: Path) -> None:
    """As if killed after a checkpoint, its source deleted, the same command: bitwise the result of a run left alone.
    The run has extensions that its source lacks, one of which reads spans."""
    begin = shutil.copytree(source, tmp_path / "begin")
    fields = {"corpus__files": corpus, "data__dir": tmp_path / "data", "init_from": begin, "model__dropout": 0.1}
    fields |= {"model__head_scales": "full", "model__context_encoder": "mingru"}
    fields |= {"model__span_embedding": True, "corpus__spans": "capitals"}
    fields |= {"train__steps": 8, "train__eval_every": 8, "train__eval_blocks": 8}
    train(tmp_path / "alone", **fields)
    workdir = runs.half_way(tmp_path / "alone", tmp_path / "killed", step=4)
    shutil.rmtree(begin)
    printed = train(workdir, **fields)
    assert "Starting from" not in printed and "Step 4 of 8" in printed
    alone, resumed, before = runs.params(tmp_path / "alone", 8), runs.params(workdir, 8), runs.params(source, LAST)
    assert alone.keys() == resumed.keys() > before.keys()
    assert all(np.array_equal(alone[name], resumed[name]) for name in alone)
    assert not any(np.array_equal(alone[name], before[name]) for name in before)
    assert_padding_is_zero(alone)


def test_weights_are_released_when_their_parameters_are_read(source: Path, tmp_path: Path, openings: list[str]) -> None:
    config = configuration(init_from=source)
    with StartingWeights(config) as start:
        adopted = adopt(config, epath.Path(tmp_path), start)
        assert given_tokenizer(adopted, start).vocab_size == PIECES
        model = pretraining_heads.pretraining_model(adopted, PIECES, "cpu")
        init = functools.partial(pretraining_heads.init_params, model, jax.random.key(0))
        read, again = (initial_params(adopted, start, init, release=last) for last in (False, True))
        first = read()
        assert openings == ["opened"]  # another trial needs them
        second = again()
        assert openings == ["opened", "released"]
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_with_a_parameter_that_is_not_finite_is_refused_by_its_name(value: float, tmp_path: Path) -> None:
    params = random_params(BERT, mlm=0, sbo=15)
    params["encoder"]["mlp"]["up"]["kernel"][0, 3, 5:7] = value
    write_params(epath.Path(tmp_path / "checkpoints"), params, Metadata("pretraining", 0, Config(model=BERT)))
    wordpiece().save(tmp_path / "tokenizer")
    config = Config(model=BERT, init_from=str(tmp_path))
    with StartingWeights(config) as start, pytest.raises(UserError) as raised:
        read = initial_params(config, start, lambda: params)
        assert read is not None
        read()
    assert str(raised.value).startswith(f"{tmp_path}: encoder/mlp/up/kernel has 2 values that are not finite; ")


def test_rows_that_only_pad_the_vocabulary_stay_zero_without_init_from(source: Path) -> None:
    assert_padding_is_zero(runs.params(source, LAST))


def test_a_source_that_is_missing_is_one_message(corpus: Path, tmp_path: Path) -> None:
    done = runs.call(tmp_path / "run", 1, corpus__files=corpus, init_from=tmp_path / "absent")
    assert done.stderr.startswith(f"error: {tmp_path}/absent: no such file or directory")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tokenizer__vocab_file": "vocab.txt"},
            "init_from brings its own vocabulary, and config.tokenizer.vocab_file",
        ),
        (
            {"data__block_length": 128, "model__max_length": 128},
            "block_length 128 is over the position table's 80 rows",
        ),
        ({"masking__max_span_offset": 20}, "has 15 offsets of width 200, and this configuration 20 of 200"),
    ],
)
def test_what_does_not_fit_the_source_is_one_message_and_claims_nothing(
    fields: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    metadata = Metadata("pretraining", 0, Config(model=BERT))
    write_params(epath.Path(tmp_path / "source" / "checkpoints"), random_params(BERT, mlm=0, sbo=15), metadata)
    wordpiece().save(tmp_path / "source" / "tokenizer")
    with pytest.raises(UserError, match=message) as raised:
        train(tmp_path / "run", init_from=tmp_path / "source", corpus__files=corpus, **fields)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "config.json").exists()  # the mended command may take the same workdir


PLACED = """
from tests.support.placement import assert_placed_on

assert_placed_on({"data": 1, "fsdp": 2})
assert_placed_on({"data": 1, "model": 2})
print("placed")
"""


def test_parameters_are_placed_as_the_state_is_and_the_rest_of_it_stays() -> None:
    """On two devices, with every kind of parameter divided."""
    assert on_four_devices(PLACED) == "placed"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"embeddings": {"position": np.zeros((7, 24))}}, r"embeddings/position \(7, 24\): the state has \(32, 24\)"),
        ({"pooler": {"bias": np.zeros(24)}}, r"pooler/bias \(24,\): the state has None"),
    ],
)
def test_a_parameter_that_the_state_lacks_is_not_placed(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_params(state_on({"data": 1}), params)


def test_a_new_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_directory(tmp_path / "deep" / "new", "--x") as directory:
        (directory / "file").write_text("written")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "file").read_text() == "written"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
    for error in (UserError("bad"), KeyboardInterrupt()):
        with pytest.raises(type(error)), new_directory(tmp_path / "failed", "--x") as directory:
            (directory / "file").write_text("written")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    with pytest.raises(UserError, match="new: exists and is not an empty directory; choose another --x"):
        new_directory(tmp_path / "deep" / "new", "--x").__enter__()
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty", "--x") as directory:
        (directory / "file").write_text("written")
    assert (tmp_path / "empty" / "file").exists()


def test_a_directory_of_the_user_s_own_is_never_deleted_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "new.tmp").mkdir()
    (tmp_path / "new.tmp" / "thesis.tex").write_text("years of work")
    with contextlib.suppress(UserError), new_directory(tmp_path / "new", "--x") as directory:
        (directory / "file").write_text("written")
    assert (tmp_path / "new.tmp" / "thesis.tex").read_text() == "years of work"
