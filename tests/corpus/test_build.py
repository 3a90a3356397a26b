"""Blocks: what they hold, that they are the same every time, and that only whole ones are taken for blocks."""

import contextlib
import dataclasses
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow.core.example import example_pb2

import spanbert_jax
from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from spanbert_jax.corpus import blocks, shards, tfds_source
from spanbert_jax.corpus import build as building
from spanbert_jax.corpus.blocks import Metadata, check_blocks, is_built, open_blocks, read_metadata
from spanbert_jax.corpus.build import build_blocks, sample_sentences
from spanbert_jax.errors import UserError
from spanbert_jax.files import DIGEST
from spanbert_jax.text.documents import hash_text, in_share
from spanbert_jax.text.packing import pack
from spanbert_jax.text.tokenizer import Tokenizer, wordpiece_from_vocab
from tests.support.damage import flipped
from tests.support.small_corpus import PIECES, document, files_of

BLOCK_LENGTH = 20


def make_inputs(home: Path) -> tuple[Config, Tokenizer]:
    """A corpus of two files, and a vocabulary, in `home`."""
    (home / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (home / "a.txt").write_text("\n\n".join(map(document, range(60))))
    (home / "b.jsonl").write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(60, 100)))
    corpus = CorpusConfig(files=f"{home}/a.txt,{home}/b.jsonl", sentences="none", held_out=0.2, workers=1)
    config = Config(corpus=corpus, data=DataConfig(block_length=BLOCK_LENGTH))
    return config, wordpiece_from_vocab(home / "vocab.txt", lowercase=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_inputs(tmp_path)[0]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return make_inputs(tmp_path)[1]


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    build_blocks(*make_inputs(home), home / "blocks")
    return home / "blocks"


@pytest.fixture
def built(built_once: Path, tmp_path: Path) -> Path:
    """Blocks that a test may damage."""
    return Path(shutil.copytree(built_once, tmp_path / "blocks"))


def replace(config: Config, **fields: object) -> Config:
    return dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, **fields))  # type: ignore[arg-type]


def ids_of(records: list[bytes]) -> list[list[int]]:
    examples = map(example_pb2.Example.FromString, records)
    return [list(example.features.feature["input_ids"].int64_list.value) for example in examples]


def all_ids(directory: Path, split: str) -> list[list[int]]:
    found = open_blocks(directory, split)
    return ids_of(found.read(np.arange(len(found))))


def test_blocks_are_the_packed_documents_of_their_split(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    build_blocks(config, tokenizer, tmp_path / "blocks")
    texts = [document(i) for i in range(100)]
    metadata = read_metadata(tmp_path / "blocks")
    for split, held_out in (("train", False), ("held_out", True)):
        mine = [text for text in texts if in_share(hash_text(text), 0.2) is held_out]
        sentences = [[tokenizer.tokenize(line) for line in text.split("\n")] for text in mine]
        expected = [block for lines in sentences for block in pack(lines, BLOCK_LENGTH - 2)]
        assert all_ids(tmp_path / "blocks", split) == expected
        lengths = open_blocks(tmp_path / "blocks", split).lengths
        assert lengths.dtype == np.int32 and lengths.tolist() == list(map(len, expected))
        assert metadata.counts[split] == {
            "documents": len(mine),
            "sentences": sum(map(len, sentences)),
            "pieces": sum(map(len, expected)),
            "blocks": len(expected),
        }
        if split == "train":
            counts = np.bincount(list(itertools.chain(*expected)), minlength=tokenizer.vocab_size)
            assert metadata.piece_counts.dtype == np.int64 and (metadata.piece_counts == counts).all()


def test_blocks_are_a_tfds_dataset(built: Path) -> None:
    builder = tfds.builder_from_directory(built)
    for split in ("train", "held_out"):
        source = builder.as_data_source(split)
        assert [source[i]["input_ids"].tolist() for i in range(len(source))] == all_ids(built, split)


def test_the_files_are_the_same_bytes_for_any_number_of_processes(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "TASK_CHARS", 2000)  # many tasks
    for count in (1, 2):
        build_blocks(replace(config, workers=count), tokenizer, tmp_path / f"blocks{count}")
    assert files_of(tmp_path / "blocks1") == files_of(tmp_path / "blocks2")
    assert set(files_of(tmp_path / "blocks1")) == {
        "dataset_info.json",
        "features.json",
        "lengths-held_out.npy",
        "lengths-train.npy",
        "metadata.json",
        "spanbert_blocks-train.array_record-00000-of-00001",
        "spanbert_blocks-held_out.array_record-00000-of-00001",
    }


def test_pairs_are_the_same_bytes_for_any_number_of_processes_and_never_mix_the_sides(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "TASK_CHARS", 2000)
    config = replace(config, pairs=True, spans="regex:CAT=cat")
    for count in (1, 2):
        build_blocks(replace(config, workers=count), tokenizer, tmp_path / f"blocks{count}")
    assert files_of(tmp_path / "blocks1") == files_of(tmp_path / "blocks2")

    texts = [document(i) for i in range(100)]
    side_of = {text: in_share(hash_text(text), 0.2) for text in texts}
    ids = {text: list(itertools.chain(*map(tokenizer.tokenize, text.split("\n")))) for text in texts}
    spelled = {text: " ".join(map(str, of)) for text, of in ids.items()}
    builder = tfds.builder_from_directory(tmp_path / "blocks1")
    for split, held_out in (("train", False), ("held_out", True)):
        mine = [f" {spelled[text]} " for text in texts if side_of[text] is held_out]
        found = open_blocks(tmp_path / "blocks1", split)
        source = builder.as_data_source(split)
        assert len(source) == len(found) and found.lengths.max() <= BLOCK_LENGTH - 3
        for number, length in enumerate(found.lengths):
            pieces, (first, label) = source[number]["input_ids"].tolist(), source[number]["pair"].tolist()
            assert len(pieces) == length and 0 < first < length and label in (0, 1)
            parts = [f" {' '.join(map(str, part))} " for part in (pieces[:first], pieces[first:])]
            cat = tokenizer.tokenize("cat")[0]
            assert list(source[number]["span_tags"]) == [3 * (piece == cat) for piece in pieces]
            homes = [[text for text in mine if part in text] for part in parts]
            assert homes[0] and homes[1]  # both texts are of documents of this side
            if not label:
                assert any(part in text for text in mine for part in [parts[0][:-1] + parts[1]]) or length == 17
    metadata = read_metadata(tmp_path / "blocks1")
    assert metadata.corpus["pairs"] is True
    with pytest.raises(UserError, match=r"corpus\.pairs is False, and was True"):
        check_blocks(metadata, replace(config, pairs=False), tokenizer)


def test_blocks_without_pairs_say_nothing_of_them(built: Path, config: Config, tokenizer: Tokenizer) -> None:
    metadata = read_metadata(built)
    assert "pairs" not in metadata.corpus
    made_for = replace(config, **{name: metadata.corpus[name] for name in ("files", "held_out")})
    check_blocks(metadata, made_for, tokenizer)
    with pytest.raises(UserError, match=r"corpus\.pairs is True, and was False"):
        check_blocks(metadata, replace(made_for, pairs=True), tokenizer)


def test_pairs_of_documents_of_one_sentence_are_refused(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n\n".join(document(i).split("\n")[0] for i in range(40)))
    with pytest.raises(UserError, match=r"each of the 40 documents has one sentence, .*--config.corpus.pairs=False"):
        build_blocks(replace(config, files=f"{tmp_path}/lines.txt", pairs=True), tokenizer, tmp_path / "blocks")
    assert not (tmp_path / "blocks").exists()


def test_a_document_keeps_its_side_wherever_it_stands(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("\n\n".join(document(i) for i in [*range(140, 70, -1), 80, 80]))
    build_blocks(config, tokenizer, tmp_path / "one")
    build_blocks(replace(config, files=str(tmp_path / "other.txt")), tokenizer, tmp_path / "two")

    def long_blocks(name: str, split: str) -> set[tuple[int, ...]]:  # a short one, such as ".", may stand anywhere
        return {tuple(ids) for ids in all_ids(tmp_path / name, split) if len(ids) > 9}

    sides = [{split: long_blocks(name, split) for split in blocks.SPLITS} for name in ("one", "two")]
    assert not sides[0]["train"] & sides[1]["held_out"] and not sides[0]["held_out"] & sides[1]["train"]
    assert sides[0]["train"] & sides[1]["train"] and sides[0]["held_out"] & sides[1]["held_out"]


def test_blocks_are_read_by_any_index_across_shards(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_blocks(config, tokenizer, tmp_path / "one")
    monkeypatch.setattr(building, "SHARD_RECORDS", 37)
    build_blocks(config, tokenizer, tmp_path / "many")
    whole, found = all_ids(tmp_path / "one", "train"), open_blocks(tmp_path / "many", "train")
    assert len(list((tmp_path / "many").glob("*train.array_record-*"))) == -(-len(whole) // 37) > 3
    assert found.lengths.tolist() == [len(ids) for ids in whole]
    indices = np.random.default_rng(0).integers(0, len(found), 500)
    assert ids_of(found.read(indices)) == [whole[i] for i in indices]
    assert found.read(np.array([], dtype=np.int64)) == []
    for wrong in (-1, len(found)):
        with pytest.raises(IndexError):
            found.read(np.array([0, wrong]))


def test_progress_is_reported_and_ends_at_one(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "TASK_CHARS", 1000)
    monkeypatch.setattr(building, "REPORT_SECONDS", 0.0)
    reports: list[tuple[float | None, int, int]] = []
    build_blocks(config, tokenizer, tmp_path / "blocks", lambda *report: reports.append(report))
    counts = read_metadata(tmp_path / "blocks").counts
    assert reports == sorted(reports, key=lambda report: report[0] or 0.0) and len(reports) > 10
    assert reports[-1] == (1.0, 100, sum(split["pieces"] for split in counts.values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, held_out=0.000001), r"100 documents, .*100 of them into training and 0 into evaluation"),
        (lambda c: replace(c, held_out=0.999999), r"0 of them into training and 100 into evaluation.*'train' has no"),
        (lambda c: replace(c, files=c.corpus.files.split(",")[0], document_break="file"), r"1 documents.*blank_line"),
        (lambda c: replace(c, files="/none/*.txt"), r"matches no file"),
    ],
)
def test_a_corpus_that_cannot_be_split_leaves_nothing_behind(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, change: Callable[[Config], Config], message: str
) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        build_blocks(change(config), tokenizer, tmp_path / "blocks")
    assert set(tmp_path.iterdir()) == before and not is_built(tmp_path / "blocks")


def test_a_bad_file_in_the_middle_leaves_nothing_behind(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"fine\n\xff\n")
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"c.txt, line 2: byte 5"):
        build_blocks(replace(config, files=f"{tmp_path}/*[ac].txt"), tokenizer, tmp_path / "blocks")
    assert set(tmp_path.iterdir()) == before


def test_a_killed_build_is_never_taken_for_blocks_and_the_next_one_is_clean(
    config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    build_blocks(config, tokenizer, tmp_path / "whole")
    program = (
        "import sys, time, pickle; from pathlib import Path; from spanbert_jax.corpus import build as blocks\n"
        "config, tokenizer = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "blocks.TASK_CHARS, blocks.REPORT_SECONDS = 1000, 0.0\n"
        "def report(fraction, documents, pieces):\n"
        "    if documents > 50: print('half', flush=True); time.sleep(60)\n"
        "blocks.build_blocks(config, tokenizer, Path(sys.argv[2]), report)"
    )
    (tmp_path / "arguments").write_bytes(pickle.dumps((config, tokenizer)))
    command = [sys.executable, "-c", program, str(tmp_path / "arguments"), str(tmp_path / "blocks")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        with pytest.raises(UserError, match="another process is building"):
            build_blocks(config, tokenizer, tmp_path / "blocks")
        os.kill(process.pid, signal.SIGKILL)
    assert list(tmp_path.glob("blocks.building/*.partial")) and not is_built(tmp_path / "blocks")
    with pytest.raises(UserError, match="holds no blocks"):
        open_blocks(tmp_path / "blocks", "train")
    build_blocks(config, tokenizer, tmp_path / "blocks")
    assert files_of(tmp_path / "blocks") == files_of(tmp_path / "whole")
    assert not (tmp_path / "blocks.building").exists()


def test_a_directory_with_something_else_is_left_alone(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="mine exists and is not empty"):
        build_blocks(config, tokenizer, tmp_path / "mine")
    assert files_of(tmp_path / "mine") == {"thesis.tex": b"years of work"}
    (tmp_path / "empty").mkdir()
    build_blocks(config, tokenizer, tmp_path / "empty")
    assert is_built(tmp_path / "empty")


def test_a_directory_that_cannot_be_written_is_told(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.txt/blocks.building: cannot write there .Not a directory."):
        build_blocks(config, tokenizer, tmp_path / "a.txt" / "blocks")


def test_a_lost_shard_or_damaged_metadata_is_told(built: Path) -> None:
    next((built).glob("*held_out*")).unlink()
    with pytest.raises(UserError, match=r"'held_out' has 0 blocks in 0 files, but its metadata says \d+"):
        open_blocks(built, "held_out")
    (built / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match=r"metadata.json is damaged"):
        read_metadata(built)


def test_blocks_of_format_1_open_and_those_of_a_newer_format_are_refused(built: Path) -> None:
    path = built / "metadata.json"
    fields = json.loads(path.read_text())
    assert (fields["format"], fields["version"]) == (blocks.FORMAT, spanbert_jax.__version__)
    before = all_ids(built, "train")
    del fields[DIGEST]  # as earlier versions wrote no digests
    old = {name: value for name, value in fields.items() if name not in ("format", "version", "files")}
    path.write_text(json.dumps(old))
    metadata = read_metadata(built)
    assert (metadata.format, metadata.version, metadata.files) == (1, "", {})
    assert all_ids(built, "train") == before and blocks.damaged_files(built, metadata) == []
    path.write_text(json.dumps(fields | {"format": blocks.FORMAT + 1, "version": "9.1", "shape": [1]}))
    with pytest.raises(
        UserError, match=rf"metadata.json: spanbert_jax 9.1 wrote .* this is {spanbert_jax.__version__},"
    ):
        read_metadata(built)
    path.write_text(json.dumps(fields | {"piece_counts": [count + 1 for count in fields["piece_counts"]]}))
    with pytest.raises(UserError, match=r"metadata.json is damaged .*do not add up"):
        read_metadata(built)


def test_no_change_of_the_metadata_is_read(built: Path) -> None:
    """Bits are flipped at random places. Where the name of the digest's field is hit, all other fields are as they were
    written."""
    path, rng = built / "metadata.json", np.random.default_rng(0)
    whole, size = dataclasses.asdict(read_metadata(built)), path.stat().st_size
    refused = 0
    for place in rng.integers(size, size=150):
        with flipped(path, place, rng.integers(8)):
            try:
                read = dataclasses.asdict(read_metadata(built))
            except UserError as error:
                refused += 1
                assert str(error).startswith(f"{path}") and "\n" not in str(error)
            else:
                assert repr(read) == repr(whole)
    assert refused > 140
    for text in ("[" * 100_000, "[]", '"metadata"', ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"metadata.json is damaged"):
            read_metadata(built)


def test_every_damaged_lost_or_swapped_file_is_named(built: Path) -> None:
    metadata = read_metadata(built)
    reports: list[float | None] = []
    assert blocks.damaged_files(built, metadata, lambda share, words: reports.append(share)) == []
    assert len(reports) == len(metadata.files) == 4 and reports[-1] == 1.0
    for name in metadata.files:
        for place in (0, metadata.files[name]["bytes"] - 1):
            with flipped(built / name, place):
                assert blocks.damaged_files(built, metadata) == [name]
    one, other = (built / name for name in metadata.files if "record" in name)
    one.rename(built / "aside")
    assert blocks.damaged_files(built, metadata) == [one.name]
    other.rename(one)
    (built / "aside").rename(other)
    assert blocks.damaged_files(built, metadata) == [one.name, other.name]


def test_damaged_files_are_built_again_alone_or_not_at_all(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SHARD_RECORDS", 37)
    directory, opened = tmp_path / "blocks", list[str]()
    build_blocks(config, tokenizer, directory)
    whole, inodes = files_of(directory), {path.name: path.stat().st_ino for path in directory.iterdir()}
    shard = next(name for name in whole if "train.array_record-00001" in name)
    damaged = [shard, "lengths-held_out.npy"]
    for name in damaged:
        (directory / name).write_bytes(b"another file")

    def writer(path: str, options: str) -> ArrayRecordWriter:
        opened.append(Path(path).name)
        return ArrayRecordWriter(path, options)

    monkeypatch.setattr(shards, "ArrayRecordWriter", writer)
    building.rebuild_files(config, tokenizer, directory, damaged)
    assert files_of(directory) == whole and opened == ["train-00001.partial"]
    same = [name for name in whole if (directory / name).stat().st_ino == inodes[name]]
    assert set(whole) - set(same) == set(damaged)
    (directory / shard).write_bytes(b"another file")
    (tmp_path / "a.txt").write_text("\n\n".join(map(document, range(59))))
    with pytest.raises(UserError, match="gives other blocks than those that are there"):
        building.rebuild_files(config, tokenizer, directory, [shard])
    assert files_of(directory) == whole | {shard: b"another file"}
    assert not (tmp_path / "blocks.building").exists()


def test_records_that_are_not_those_of_the_fingerprint_are_refused(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_blocks(config, tokenizer, tmp_path / "blocks")
    metadata = read_metadata(tmp_path / "blocks")
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "ArrayRecordReader", None)  # a build's own files are not read again
        blocks.check_records(tmp_path / "blocks", metadata)
    path = next((tmp_path / "blocks").glob("*train.array_record*"))
    records = open_blocks(tmp_path / "blocks", "train").read(np.arange(metadata.counts["train"]["blocks"]))
    for order, refusal in (
        (1, contextlib.nullcontext()),
        (-1, pytest.raises(UserError, match="blocks: the records are")),
    ):
        path.unlink()
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records[::order]:
            writer.write(record)
        writer.close()
        with refusal:
            blocks.check_records(tmp_path / "blocks", metadata)


def test_blocks_from_before_there_were_lengths_and_wrong_lengths_are_told(built: Path) -> None:
    path = built / "lengths-train.npy"
    for wrong, message in (
        (np.load(path)[1:], r"lengths of type int32 and shape \(\d+,\), and there are \d+ blocks"),
        (np.load(path).astype(np.int64), r"lengths of type int64"),
    ):
        np.save(path, wrong)
        with pytest.raises(UserError, match=message):
            open_blocks(built, "train")
    path.write_bytes(b"no array")
    with pytest.raises(UserError, match=r"lengths-train.npy is damaged .*; delete .*blocks, so that it is built again"):
        open_blocks(built, "train")
    path.unlink()
    with pytest.raises(
        UserError, match=r"earlier version of this program built the blocks; delete .*blocks, so that it is built again"
    ):
        open_blocks(built, "train")


def test_blocks_of_another_tokenizer_length_or_corpus_are_refused(
    config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    build_blocks(config, tokenizer, tmp_path / "blocks")
    metadata: Metadata = read_metadata(tmp_path / "blocks")
    check_blocks(metadata, replace(config, workers=7, tfds_data_dir="/elsewhere", name="unused"), tokenizer)
    (tmp_path / "vocab.txt").write_text("\n".join([*PIECES, "more"]))
    other = wordpiece_from_vocab(tmp_path / "vocab.txt", lowercase=False)
    longer = dataclasses.replace(config, data=DataConfig(block_length=32))
    for changed, by, message in (
        (config, other, rf"tokenizer is '{other.fingerprint}', and was '{tokenizer.fingerprint}'"),
        (longer, tokenizer, r"data.block_length is 32, and was 20"),
        (replace(config, held_out=0.1), tokenizer, r"corpus.held_out is 0.1, and was 0.2"),
        (replace(config, files=""), tokenizer, r"corpus.name is 'wikipedia"),
    ):
        with pytest.raises(UserError, match=message):
            check_blocks(metadata, changed, by)


def sample(config: Config, size: int) -> list[str]:
    return list(sample_sentences(dataclasses.replace(config, tokenizer=TokenizerConfig(sample_bytes=size))))


def test_the_tokenizers_sample_fits_leaves_held_out_text_out_and_ignores_order(config: Config, tmp_path: Path) -> None:
    everything = sample(config, 10**9)
    texts = [document(i) for i in range(100)]
    train = [text for text in texts if not in_share(hash_text(text), 0.2)]
    assert sorted(everything) == sorted(line for text in train for line in text.split("\n"))
    small = sample(config, 3000)
    assert 1500 < sum(len(line) + 1 for line in small) <= 3100
    assert everything[-len(small) :] == small
    (tmp_path / "c.txt").write_text("\n\n".join(document(i) for i in reversed(range(100))))
    assert sample(replace(config, files=f"{tmp_path}/c.txt"), 3000) == small
    assert sample(config, 1)  # one document at least


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_tfds_dataset_is_read_from_its_directory(
    config: Config, tokenizer: Tokenizer, tmp_path: Path, file_format: str
) -> None:
    directory = tmp_path / "tfds" / "prose" / "1.0.0"
    directory.mkdir(parents=True)
    path = str(directory / f"prose-train.{file_format}-00000-of-00001")
    with (
        tf.io.TFRecordWriter(path) if file_format == "tfrecord" else contextlib.closing(ArrayRecordWriter(path)) as file
    ):
        for i in range(100):
            example = example_pb2.Example()
            for name, text in (("title", f"Document {i}"), ("text", document(i))):
                example.features.feature[name].bytes_list.value.append(text.encode())
            file.write(example.SerializeToString())
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict({"title": tfds.features.Text(), "text": tfds.features.Text()}),
        split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[100], num_bytes=0)],
        filename_template=tfds.core.ShardedFileTemplate(directory, dataset_name="prose", filetype_suffix=file_format),
        check_data=False,
    )
    build_blocks(config, tokenizer, tmp_path / "files")
    from_tfds = replace(config, files="", name="prose", tfds_data_dir=str(tmp_path / "tfds"))
    build_blocks(from_tfds, tokenizer, tmp_path / "blocks")
    for split in blocks.SPLITS:
        assert all_ids(tmp_path / "blocks", split) == all_ids(tmp_path / "files", split)
    assert read_metadata(tmp_path / "blocks").sources == [{"name": "prose"}]


def test_a_tfds_dataset_that_is_nowhere_is_told_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tfds_source, "STORAGE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        tfds_source.read_tfds("wikipedia/20230601.en", "")
    for part in ("'wikipedia/20230601.en'", "20230601.en/1.0.0 (not there)", tfds_source.BUCKET, "Connection refused"):
        assert part in str(caught.value)
    assert "--config.corpus.files='data/*.txt'" in str(caught.value)
    with pytest.raises(UserError, match=rf"Tried: {tmp_path}/lm1b/.* \(not there\)\. Name"):
        tfds_source.read_tfds("lm1b", str(tmp_path))
    assert time.monotonic() - start < 30


def test_a_tfds_dataset_that_names_python_code_is_refused_and_the_code_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "dataset_code.py").write_text("raise SystemExit('the code ran')")
    directory = tmp_path / "prose" / "1.0.0"
    directory.mkdir(parents=True)
    info = {"fileFormat": "tfrecord", "name": "prose", "version": "1.0.0", "splits": [{"name": "train", "numBytes": 1}]}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    own = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
    for features in (
        {"pythonClassName": "dataset_code.X"},
        {"type": "dataset_code.X", "content": {}},
        own | {"featuresDict": {"features": {"text": {"pythonClassName": "dataset_code.X"}}}},
    ):
        (directory / "features.json").write_text(json.dumps(features))
        with pytest.raises(UserError, match=r"names the Python class 'dataset_code.X', whose code would run"):
            tfds_source.read_tfds("prose", str(tmp_path))


def test_a_tfds_dataset_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        tfds.testing.mock_data(num_examples=3),
        pytest.raises(UserError, match="has no feature 'text', only image, label"),
    ):
        monkeypatch.setattr(tfds_source, "find_builder", lambda name, data_dir, *_: tfds.builder("mnist"))
        tfds_source.read_tfds("mnist", "")
