"""Blocks with span tags: the tags are those of the document's spans, and blocks without rules stay as they were."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow.core.example import example_pb2

from spanbert_jax.config import Config, CorpusConfig, DataConfig, MaskingConfig, ModelConfig, TrainConfig
from spanbert_jax.corpus.blocks import check_blocks, open_blocks, read_metadata
from spanbert_jax.corpus.build import build_blocks
from spanbert_jax.corpus.masked_batches import described_batches
from spanbert_jax.corpus.summary import describe_blocks
from spanbert_jax.errors import UserError
from spanbert_jax.text.documents import hash_text, in_share
from spanbert_jax.text.packing import pack
from spanbert_jax.text.tokenizer import Tokenizer, wordpiece_from_vocab
from tests.support.small_corpus import PIECES, document, files_of

LIMIT = 18  # pieces in a block


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("spans")
    (home / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (home / "a.txt").write_text("\n\n".join(map(document, range(60))))
    (home / "animals.txt").write_text("cat\nold cat\ndogs\n")
    return home


def config_of(home: Path, spans: str) -> Config:
    corpus = CorpusConfig(files=f"{home}/a.txt", sentences="none", held_out=0.2, workers=1, spans=spans)
    return Config(corpus=corpus, data=DataConfig(block_length=LIMIT + 2))


@pytest.fixture(scope="module")
def tokenizer(home: Path) -> Tokenizer:
    return wordpiece_from_vocab(home / "vocab.txt", lowercase=False)


@pytest.fixture(scope="module")
def built(home: Path, tokenizer: Tokenizer) -> tuple[Config, Path]:
    config = config_of(home, f"gazetteer:{home}/animals.txt; regex:PLACE=(on|past) the( old)? [a-z]+")
    build_blocks(config, tokenizer, home / "with")
    return config, home / "with"


def rows_of(directory: Path, split: str) -> list[tuple[list[int], list[int]]]:
    """(ids, tags) of every block."""
    blocks = open_blocks(directory, split)
    found = []
    for record in blocks.read(np.arange(len(blocks))):
        features = example_pb2.Example.FromString(record).features.feature
        found.append((list(features["input_ids"].int64_list.value), list(features["span_tags"].bytes_list.value[0])))
    return found


def expected_rows(tokenizer: Tokenizer, text: str) -> list[tuple[list[int], list[int]]]:
    """(ids, tags) of a document's blocks, from words that are searched one by one."""
    sentences, tags = [], []
    for line in text.split("\n"):
        kinds = [0] * len(line)
        for kind, pattern in ((1, r"\b(old cat|cat|dogs)\b"), (2, r"(on|past) the( old)? [a-z]+")):
            for match in re.finditer(pattern, line):
                if not any(kinds[match.start() : match.end()]):
                    kinds[match.start() : match.end()] = [2 * kind + 1] + [2 * kind] * (len(match[0]) - 1)
        ids, offsets = tokenizer.tokenize_with_offsets(line)
        sentences.append(ids)
        tags += [kinds[begin] for begin, _ in offsets]
    rows, place = [], 0
    for block in pack(sentences, LIMIT):
        of = tags[place : place + len(block)]
        rows.append((block, [of[0] | 1 if of[0] else 0, *of[1:]]))
        place += len(block)
    return rows


def test_every_piece_has_the_tag_of_its_documents_span(built: tuple[Config, Path], tokenizer: Tokenizer) -> None:
    config, directory = built
    counts = {"animals": 0, "PLACE": 0}
    for split, held_out in (("train", False), ("held_out", True)):
        texts = [text for text in map(document, range(60)) if in_share(hash_text(text), 0.2) is held_out]
        expected = [row for text in texts for row in expected_rows(tokenizer, text)]
        assert rows_of(directory, split) == expected
        for number, kind in enumerate(counts, 1):
            counts[kind] += sum(tag == 2 * number + 1 for _, tags in expected for tag in tags)
    metadata = read_metadata(directory)
    assert metadata.kinds == ["animals", "PLACE"] and min(counts.values()) > 20
    assert metadata.spans is not None and metadata.spans["counts"] == counts and metadata.spans["left_out"] == 0
    assert metadata.corpus["spans"] == config.corpus.spans
    assert f"{counts['animals']:,} animals" in describe_blocks(config, tokenizer, metadata)[1]


def test_batches_have_the_tags_of_their_blocks(built: tuple[Config, Path], tokenizer: Tokenizer) -> None:
    config, directory = built
    config = dataclasses.replace(
        config,
        masking=MaskingConfig(scheme="unit", units="PLACE"),
        train=TrainConfig(batch_size=16),
        model=ModelConfig(span_embedding=True),
    )
    tags_of = {tuple(ids): tags for ids, tags in rows_of(directory, "train")}
    seen = 0
    for batch in described_batches(config, open_blocks(directory, "train"), tokenizer, 0, 4):
        ids, used = batch["input_ids"].copy(), batch["masked_weights"] > 0
        np.put_along_axis(ids, batch["masked_positions"], np.where(used, batch["masked_ids"], ids[:, :1]), axis=1)
        for row, length in enumerate(batch["lengths"]):
            tags = tags_of[tuple(ids[row, 1 : length - 1])]
            assert batch["block_tags"][row].tolist() == [0, *tags, *[0] * (ids.shape[1] - length + 1)]
            assert set(batch["span_tags"][row] - batch["block_tags"][row]) <= {0, *(-tag for tag in tags)}
            assert not batch["span_tags"][row][batch["masked_positions"][row][used[row]]].any()
            seen += 1
    assert seen >= 64


def test_the_tags_are_a_feature_of_the_tfds_dataset(built: tuple[Config, Path]) -> None:
    source = tfds.builder_from_directory(built[1]).as_data_source("train")
    expected = rows_of(built[1], "train")
    assert [(source[i]["input_ids"].tolist(), list(source[i]["span_tags"])) for i in range(len(source))] == expected


def test_blocks_without_rules_have_the_bytes_of_earlier_versions(home: Path, tokenizer: Tokenizer) -> None:
    config = config_of(home, "")
    build_blocks(config, tokenizer, home / "without")
    metadata = json.loads(files_of(home / "without")["metadata.json"])
    assert "spans" not in metadata and "spans" not in metadata["corpus"]
    features = json.loads(files_of(home / "without")["features.json"])["featuresDict"]["features"]
    assert list(features) == ["input_ids"]
    assert read_metadata(home / "without").kinds == []
    check_blocks(read_metadata(home / "without"), config, tokenizer)


def test_blocks_of_other_rules_or_of_a_changed_list_are_refused(
    built: tuple[Config, Path], tokenizer: Tokenizer, home: Path
) -> None:
    config, directory = built
    metadata = read_metadata(directory)
    check_blocks(metadata, config, tokenizer)
    for spans in ("", "sentence"):
        with pytest.raises(UserError, match=r"corpus.spans is .*, and was 'gazetteer:.*give another directory"):
            check_blocks(metadata, config_of(home, spans), tokenizer)
    before = (home / "animals.txt").read_text()
    try:
        (home / "animals.txt").write_text("cat\n")
        with pytest.raises(UserError, match=r"animals.txt was changed since the blocks in .* were built"):
            check_blocks(metadata, config, tokenizer)
        (home / "animals.txt").unlink()
        check_blocks(metadata, config, tokenizer)  # on another machine
    finally:
        (home / "animals.txt").write_text(before)


def test_a_file_of_spans_is_compared_with_the_corpus_before_the_build(home: Path, tokenizer: Tokenizer) -> None:
    text = document(3)
    (home / "spans.jsonl").write_text(json.dumps({"key": hash_text(text).hex(), "spans": [[0, 10**6, "X"]]}) + "\n")
    with pytest.raises(UserError, match=r"spans.jsonl, line 1: the span 0 to 1000000 lies outside its document"):
        build_blocks(config_of(home, f"file:{home}/spans.jsonl"), tokenizer, home / "wrong")
    assert not (home / "wrong").exists()


def test_a_warning_says_that_rules_find_nothing(built: tuple[Config, Path], tokenizer: Tokenizer) -> None:
    metadata = read_metadata(built[1])
    assert metadata.spans is not None
    empty = dataclasses.replace(metadata, spans={**metadata.spans, "counts": {"X": 0}, "left_out": 3})
    lines = describe_blocks(built[0], tokenizer, empty)
    assert lines[1] == "Spans: 0 X; 3 sentences of more than 5,000 words or 10,000 characters were not searched"
    assert lines[2].startswith("warning: config.corpus.spans=") and "tools/find_spans.py" in lines[2]
