"""A run finds the blocks of its own text, or is told; one that began with them goes on."""

import dataclasses
from pathlib import Path

import pytest
from etils import epath

from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from spanbert_jax.corpus.blocks import read_metadata
from spanbert_jax.errors import UserError
from spanbert_jax.files import locked
from spanbert_jax.runs.prepare import prepare
from spanbert_jax.runs.start_from import StartingWeights

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "a", "b", "##b"]))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "1.txt").write_text("\n\n".join("a b " * i for i in range(1, 30)))
    return Config(
        corpus=CorpusConfig(files=f"{tmp_path}/text/*", held_out=0.2, workers=1),
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_file=f"{tmp_path}/vocab.txt"),
        data=DataConfig(block_length=16),
    )


def prepared(config: Config, workdir: epath.Path) -> Path:
    """The directory of the blocks."""
    return prepare(config, workdir, StartingWeights(config))[1]


def test_other_text_is_refused_and_a_run_that_began_goes_on(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    built = prepared(config, epath.Path(workdir))
    assert "Blocks: " in capsys.readouterr().out
    assert prepared(config, epath.Path(workdir)) == built and not capsys.readouterr().out

    (tmp_path / "text" / "2.txt").write_text("b a")
    told = rf"blocks: since these blocks were built, one file was added \({tmp_path}/text/2.txt\)"
    with pytest.raises(UserError, match=rf"{told}; .* choose another --workdir to build new blocks"):
        prepared(config, epath.Path(workdir))
    shared = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(built)))
    with pytest.raises(UserError, match=rf"{told}; .* choose another --config.data.dir to build new blocks"):
        prepared(shared, epath.Path(tmp_path / "second"))

    (workdir / "checkpoints" / "30").mkdir(parents=True)
    assert prepared(config, epath.Path(workdir)) == built
    assert "warning: " in (said := capsys.readouterr().out) and "goes on with the old text" in said

    for path in (tmp_path / "text").iterdir():
        path.unlink()
    assert prepared(shared, epath.Path(tmp_path / "second")) == built and not capsys.readouterr().out


def test_a_directory_that_another_run_fills_is_refused_and_left_alone(config: Config, tmp_path: Path) -> None:
    data = tmp_path / "shared"
    data.mkdir()
    shared = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(data)))
    (tmp_path / "run").mkdir()
    with locked(data / "lock", pytest.fail), pytest.raises(UserError, match="another run makes the vocabulary and"):
        prepared(shared, epath.Path(tmp_path / "run"))
    assert [path.name for path in data.iterdir()] == ["lock"]
    assert prepared(shared, epath.Path(tmp_path / "run")) == data


def test_the_advice_for_other_text_works(config: Config, tmp_path: Path) -> None:
    for name, text in (("one", "a a"), ("two", "b b")):
        (tmp_path / "text" / "2.txt").write_text(text)
        (tmp_path / name).mkdir()
        built = prepared(config, epath.Path(tmp_path / name))
        assert read_metadata(built / "blocks").sources[1]["bytes"] == 3
    with pytest.raises(UserError, match=r"one file was rewritten \(.*2.txt\)"):
        prepared(config, epath.Path(tmp_path / "one"))


def test_a_corpus_of_one_document_is_refused_before_any_work(config: Config, tmp_path: Path) -> None:
    (tmp_path / "text" / "1.txt").write_text("a b")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="has one document"):
        prepared(config, epath.Path(tmp_path / "run"))
    assert not list((tmp_path / "run" / "data").iterdir())
