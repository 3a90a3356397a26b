"""Data directories in a bucket: what arrives is what was there, whole or not at all, once a machine.

The bucket is a local folder behind epath's interface; appending and renaming directories fail there.
"""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
from etils import epath

from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from spanbert_jax.corpus import cache as block_cache
from spanbert_jax.corpus.blocks import open_blocks, read_metadata
from spanbert_jax.corpus.build import build_blocks
from spanbert_jax.errors import UserError
from spanbert_jax.runs.prepare import prepare
from spanbert_jax.runs.start_from import StartingWeights
from spanbert_jax.text.tokenizer import wordpiece_from_vocab
from tests.support import fake_bucket
from tests.support.small_corpus import PIECES, document, files_of

DATA = "gs://bucket/data"


def nothing(*_: object) -> None:
    pass


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of gs://bucket."""
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    fake_bucket.install(tmp_path / "buckets")
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    return tmp_path / "buckets" / "bucket"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (tmp_path / "a.txt").write_text("\n\n".join(map(document, range(60))))
    return Config(
        corpus=CorpusConfig(files=f"{tmp_path}/a.txt", sentences="none", held_out=0.2, workers=1),
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_file=str(tmp_path / "vocab.txt")),
        data=DataConfig(dir=DATA, block_length=20, cache_dir=str(tmp_path / "cache")),
    )


@pytest.fixture
def published(config: Config, tmp_path: Path, bucket: Path) -> dict[str, bytes]:
    """Blocks in gs://bucket/data; their files as they were built."""
    build(config, tmp_path / "built")
    files = files_of(tmp_path / "built" / "blocks")
    (tmp_path / "first").mkdir()
    block_cache.publish(tmp_path / "built", epath.Path(DATA), tmp_path / "first", nothing)
    return files


def build(config: Config, directory: Path) -> None:
    tokenizer = wordpiece_from_vocab(config.tokenizer.vocab_file, False)
    tokenizer.save(directory / "tokenizer")
    build_blocks(config, tokenizer, directory / "blocks")


def test_a_copy_has_the_bytes_that_were_built_and_is_made_once(
    published: dict[str, bytes], bucket: Path, tmp_path: Path
) -> None:
    assert files_of(bucket / "data" / "blocks") == published
    reports: list[float | None] = []
    copy = block_cache.fetch(epath.Path(DATA), tmp_path / "second", lambda share, _: reports.append(share))
    assert files_of(copy / "blocks") == published and reports[-1] == 1.0
    assert files_of(copy / "tokenizer") == files_of(bucket / "data" / "tokenizer")
    assert len(open_blocks(copy / "blocks", "train")) == read_metadata(copy / "blocks").counts["train"]["blocks"]
    for path in (bucket / "data" / "blocks").glob("*.array_record*"):
        path.unlink()  # so that another copy would fail
    assert block_cache.fetch(epath.Path(DATA), tmp_path / "second", nothing) == copy
    # The machine that built them keeps what it built.
    assert block_cache.fetch(epath.Path(DATA), tmp_path / "first", nothing).parent == tmp_path / "first"


def test_in_the_bucket_the_metadata_is_written_last(
    config: Config, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = fake_bucket.write
    monkeypatch.setattr(fake_bucket, "write", lambda place, data: (written.append(place.name), write(place, data)))
    build(config, tmp_path / "built")
    (bucket / "data" / "blocks").mkdir(parents=True)
    stale = bucket / "data" / "blocks" / "spanbert_blocks-train.array_record-00000-of-00009"  # of a stopped copy
    stale.write_bytes(b"half")
    (tmp_path / "cache").mkdir()
    block_cache.publish(tmp_path / "built", epath.Path(DATA), tmp_path / "cache", nothing)
    assert written[-1] == "metadata.json" and len(written) == 9 and not stale.exists()


def test_a_copy_that_stops_leaves_none_and_the_next_is_whole(
    published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = block_cache.copy_all

    def stop(copies: list[block_cache.Copy], report: block_cache.CopyProgress) -> None:
        read(copies[: len(copies) // 2], report)
        raise KeyboardInterrupt

    monkeypatch.setattr(block_cache, "copy_all", stop)
    with pytest.raises(KeyboardInterrupt):
        block_cache.fetch(epath.Path(DATA), tmp_path / "cache", nothing)
    assert not block_cache.copy_of(epath.Path(DATA), tmp_path / "cache").exists()
    monkeypatch.undo()
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    copy = block_cache.fetch(epath.Path(DATA), tmp_path / "cache", nothing)
    assert files_of(copy / "blocks") == published and not list((tmp_path / "cache").glob(".*"))


def test_two_at_once_make_one_copy(
    published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, waits = [], []
    copy_all = block_cache.copy_all
    inside = threading.Event()

    def slowly(jobs: list[block_cache.Copy], report: block_cache.CopyProgress) -> None:
        copies.append(len(jobs))
        inside.set()
        second.start()
        while not waits:  # until the second one waits
            threading.Event().wait(0.01)
        copy_all(jobs, report)

    monkeypatch.setattr(block_cache, "copy_all", slowly)
    fetch = lambda report: block_cache.fetch(epath.Path(DATA), tmp_path / "cache", report)  # noqa: E731
    second = threading.Thread(target=fetch, args=(lambda share, words: waits.append(words),))
    copy = fetch(nothing)
    second.join()
    assert len(copies) == 1 and "waiting for another process" in waits[0]
    assert files_of(copy / "blocks") == published


def test_a_lost_shard_a_small_disk_and_foreign_files_are_told(
    published: dict[str, bytes], config: Config, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = epath.Path(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=r"take 0.00 GB, and 0.00 GB are free; .*--config.data.cache_dir"):
            block_cache.fetch(data, tmp_path / "cache", nothing)
    next((bucket / "data" / "blocks").glob("*held_out.array_record*")).unlink()
    with pytest.raises(UserError, match=r"'held_out' has 0 blocks in 0 files"):
        block_cache.fetch(data, tmp_path / "cache", nothing)
    (bucket / "data" / "blocks" / "thesis.tex").write_text("years of work")
    build(config, tmp_path / "built")
    with pytest.raises(UserError, match=r"gs://bucket/data/blocks/thesis.tex is none of ours"):
        block_cache.publish(tmp_path / "built", data, tmp_path / "cache", nothing)
    (bucket / "data" / "blocks" / "thesis.tex").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join([*PIECES, "more"]))
    with pytest.raises(UserError, match=r"gs://bucket/data/tokenizer holds another vocabulary"):
        block_cache.check_free(data, wordpiece_from_vocab(config.tokenizer.vocab_file, False))


def test_a_run_builds_in_the_bucket_and_another_machine_copies_it(
    config: Config, bucket: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer, local = prepare(config, epath.Path("gs://bucket/run"), StartingWeights(config))
    assert local.parent == tmp_path / "cache" and files_of(local / "blocks") == files_of(bucket / "data" / "blocks")
    described = json.loads((bucket / "run" / "tokenizer" / "spanbert_tokenizer.json").read_text())
    assert described["fingerprint"] == tokenizer.fingerprint
    assert "Copying" in capfd.readouterr().out
    again = prepare(config, epath.Path("gs://bucket/run"), StartingWeights(config))[1]
    assert again == local and "Copying" not in capfd.readouterr().out
    _check_that_damage_is_copied_again(config, bucket, local, capfd)
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=str(tmp_path / "second")))
    copy = prepare(elsewhere, epath.Path("gs://bucket/run"), StartingWeights(elsewhere))[1]
    assert copy.parent == tmp_path / "second" and files_of(copy / "blocks") == files_of(local / "blocks")
    longer = dataclasses.replace(elsewhere, data=dataclasses.replace(elsewhere.data, block_length=32))
    with pytest.raises(UserError, match=r"blocks in gs://bucket/data were made otherwise: data.block_length is 32"):
        prepare(longer, epath.Path("gs://bucket/run"), StartingWeights(longer))


def _check_that_damage_is_copied_again(
    config: Config, bucket: Path, local: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = files_of(local / "blocks")
    shard = next(name for name in whole if "train.array_record" in name)
    for name in (shard, "metadata.json"):
        (local / "blocks" / name).write_bytes(whole[name][:-9] + b"123456789")
    prepare(config, epath.Path("gs://bucket/run"), StartingWeights(config))
    assert files_of(local / "blocks") == whole
    said = f"{local}/blocks: {shard} and 1 more are damaged (not as the build wrote the file); copied again from {DATA}"
    assert said in capfd.readouterr().err
    for folder in (local, bucket / "data"):
        (folder / "blocks" / shard).write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{DATA}/blocks/{shard} is damaged: .*put an undamaged copy in its place"):
        prepare(config, epath.Path("gs://bucket/run"), StartingWeights(config))
    (bucket / "data" / "blocks" / shard).write_bytes(whole[shard])
    prepare(config, epath.Path("gs://bucket/run"), StartingWeights(config))
    assert files_of(local / "blocks") == whole
