"""A run finds the blocks of its own text, or is told; one that began with them goes on."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
from etils import epath

from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from spanbert_jax.corpus import blocks as block_data
from spanbert_jax.corpus.blocks import read_metadata
from spanbert_jax.errors import UserError
from spanbert_jax.files import DIGEST, locked
from spanbert_jax.runs.prepare import prepare
from spanbert_jax.runs.start_from import StartingWeights
from tests.support.file_limit import file_limit
from tests.support.small_corpus import files_of

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


@pytest.mark.parametrize("shared", ["shared", ""])
def test_a_directory_that_another_process_fills_is_refused_and_left_alone(
    config: Config, shared: str, tmp_path: Path
) -> None:
    data = tmp_path / (shared or "run/data")
    data.mkdir(parents=True)
    (tmp_path / "run").mkdir(exist_ok=True)
    if shared:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(data)))
    with locked(data / "lock", pytest.fail), pytest.raises(UserError, match="another run makes the vocabulary and"):
        prepared(config, epath.Path(tmp_path / "run"))
    assert [path.name for path in data.iterdir()] == ["lock"]
    assert prepared(config, epath.Path(tmp_path / "run")) == data


def test_blocks_that_are_built_may_lie_in_a_directory_that_cannot_be_written(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root may write everywhere, so the check itself is replaced."""
    (tmp_path / "run").mkdir()
    built = prepared(config, epath.Path(tmp_path / "run"))

    def refuse(directory: Path, *_: object) -> None:
        raise UserError(f"{directory}: cannot write there")

    monkeypatch.setattr("spanbert_jax.runs.prepare.make_directory", refuse)
    assert prepared(config, epath.Path(tmp_path / "run")) == built


def test_a_file_that_was_edited_while_the_blocks_were_built_is_noticed(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    built = prepared(config, epath.Path(tmp_path / "run"))
    text = tmp_path / "text" / "1.txt"
    text.write_text(text.read_text().replace("a", "b", 1))  # of the same size
    hour = 3600
    changed, began, ended = (time.time() + hour * number for number in (2, 1, 3))
    os.utime(text, (changed, changed))
    os.utime(built / "tokenizer" / "made_from.json", (began, began))
    os.utime(built / "blocks" / "metadata.json", (ended, ended))
    with pytest.raises(UserError, match=r"one file was rewritten \(.*1.txt\)"):
        prepared(config, epath.Path(tmp_path / "run"))


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
    assert [path.name for path in (tmp_path / "run" / "data").iterdir()] == ["lock"]


def test_damaged_blocks_are_named_and_built_again_where_their_text_is_there(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    blocks = prepared(config, workdir) / "blocks"
    whole, metadata = files_of(blocks), read_metadata(blocks)
    shard = next(name for name in metadata.files if "train.array_record" in name)
    (blocks / shard).write_bytes(whole[shard][:-1] + b"x")
    capsys.readouterr()
    assert prepared(config, workdir) / "blocks" == blocks and files_of(blocks) == whole
    said = f"{blocks}: {shard} is damaged (not as the build wrote the file)"
    assert capsys.readouterr().err == f"warning: {said}; built again from the text\n"

    (blocks / shard).unlink()
    (tmp_path / "text" / "1.txt").rename(tmp_path / "text of once")
    cannot = (
        rf"blocks: {shard} is damaged .*, and cannot be built again \(.*text/\*' matches no file.*\); put undamaged"
    )
    with pytest.raises(UserError, match=cannot):
        prepared(config, workdir)
    (tmp_path / "text" / "1.txt").write_text("b b " * 40)
    with pytest.raises(UserError, match=r"cannot be built again \(since the blocks were built, one file was rewritten"):
        prepared(config, workdir)
    assert files_of(blocks) == {name: data for name, data in whole.items() if name != shard}


def test_damaged_metadata_is_named_and_built_again_where_the_text_still_gives_these_blocks(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    blocks = prepared(config, workdir) / "blocks"
    whole, path = files_of(blocks), blocks / "metadata.json"
    changed = whole["metadata.json"].replace(b'"block_length": 16', b'"block_length": 61')
    for damaged, why in (
        (changed, "its fields are not those that were written, by their digest"),
        (b"{}", "'piece_counts' is missing"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
    ):
        path.write_bytes(damaged)
        capsys.readouterr()
        assert prepared(config, workdir) / "blocks" == blocks and files_of(blocks) == whole
        assert capsys.readouterr().err == f"warning: {path} is damaged ({why}); built again from the text\n"
    assert not (blocks.parent / "blocks.building").exists()

    path.write_bytes(changed)
    (tmp_path / "text" / "1.txt").rename(tmp_path / "text of once")
    for why in (r".*text/\*' matches no file.*", "the text, .* gives other blocks than those that are there"):
        with pytest.raises(UserError, match=rf"metadata.json is damaged .*, and cannot be built again \({why}\); put"):
            prepared(config, workdir)
        assert files_of(blocks) == whole | {"metadata.json": changed}
        (tmp_path / "text" / "1.txt").write_text("\n\n".join("b a " * i for i in range(1, 30)))


def test_blocks_of_an_earlier_version_are_checked_by_their_fingerprint(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, checked = epath.Path(tmp_path / "run"), list[Path]()
    workdir.mkdir()
    built = prepared(config, workdir)
    path = built / "blocks" / "metadata.json"
    fields = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("files", DIGEST)}
    path.write_text(json.dumps(fields))
    monkeypatch.setattr(block_data, "check_records", lambda directory, metadata: checked.append(directory))
    assert prepared(config, workdir) == built and checked == [built / "blocks"]


@pytest.mark.parametrize(("limit", "what"), [(30, "tokenizer"), (1000, "blocks")])
def test_a_full_disk_is_one_line_with_the_path_and_the_same_run_goes_on_when_there_is_room(
    limit: int, what: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    told = (
        rf"^{workdir}/data/{what}\S*: cannot be written \(File too large; [\d.,]+ GB are free in {workdir}/data\); make"
    )
    with file_limit(limit), pytest.raises(UserError, match=told):
        prepared(config, workdir)
    assert not (workdir / "data" / what).exists() and not list((workdir / "data").glob(".*"))
    assert not capsys.readouterr().err
    blocks = prepared(config, workdir) / "blocks"
    shard = next(path for path in blocks.iterdir() if "train.array_record" in path.name)
    whole = shard.read_bytes()
    shard.write_bytes(b"damaged")
    with file_limit(1000), pytest.raises(UserError, match=r"cannot be built again \(.*cannot be written"):
        prepared(config, workdir)
    assert prepared(config, workdir) and shard.read_bytes() == whole
