"""Another's tokenizer.json in a run: blocks of raw text, entities whose words get their space, an export."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tensorflow.core.example import example_pb2  # the protocol alone
from tokenizers import models, pre_tokenizers

from configs import ner
from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from spanbert_jax.corpus import build
from spanbert_jax.corpus.blocks import open_blocks
from spanbert_jax.errors import UserError
from spanbert_jax.runs.prepare import prepare
from spanbert_jax.runs.start_from import StartingWeights
from spanbert_jax.text.documents import hash_text, in_share
from spanbert_jax.text.tokenizer import load_tokenizer
from tests.support import runs
from tests.support.other_tokenizers import BERTS, save, trained


@pytest.fixture(scope="module")
def folder(topics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a byte-level BPE without a prefix space."""
    made, lines = tmp_path_factory.mktemp("bpe"), topics.read_text("utf-8").split("\n")[::20]
    engine = trained(lines, models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=False), BERTS, 400)
    save(engine, made, BERTS)
    return made


def test_blocks_hold_the_ids_of_whole_documents_with_a_tokenizer_json(folder: Path, tmp_path: Path) -> None:
    texts = [f"The cat {number} sat. It slept.\nThen it woke, ate and slept again." for number in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    config = Config(
        corpus=CorpusConfig(files=str(tmp_path / "text.txt"), workers=2, held_out=0.2),
        tokenizer=TokenizerConfig(kind="tokenizer_json", vocab_file=str(folder / "tokenizer.json")),
        data=DataConfig(block_length=32),
    )
    tokenizer = build.tokenizer_from_file(config.tokenizer)
    assert tokenizer is not None and tokenizer.vocabulary == (folder / "tokenizer.json").read_bytes()
    build.build_blocks(config, tokenizer, tmp_path / "blocks")
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for split in ("train", "held_out"):
        blocks = open_blocks(tmp_path / "blocks", split)
        read = map(example_pb2.Example.FromString, blocks.read(np.arange(len(blocks))))
        found = [i for example in read for i in example.features.feature["input_ids"].int64_list.value]
        mine = [text for text in texts if in_share(hash_text(text), 0.2) is (split == "held_out")]
        assert found == [i for text in mine for i in whole.encode(text, add_special_tokens=False).ids]
        assert len(blocks) > len(mine) > 0  # Some blocks begin inside a document.
        counts = blocks.metadata.piece_counts
    assert counts.sum() > 40 * 8 and counts[tokenizer.unk_id] == 0


def test_words_of_entities_get_their_space_in_training_prediction_and_export(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("The B-X\nmanual O\nof O\nPython B-X\n. O\n\n" * 8)
    fields = {
        "tokenizer.kind": "tokenizer_json",
        "tokenizer.vocab_file": folder / "tokenizer.json",
        "data.train": tmp_path / "train.conll",
        "data.dev": tmp_path / "train.conll",
        "data.block_length": 32,
        "data.lengths": 1,
        "model.layers": 1,
        "model.embed": 16,
        "model.heads": 2,
        "model.mlp": 32,
        "model.max_length": 32,
        "finetuning.epochs": 1,
        "train.batch_size": 8,
        "corpus.workers": 1,
    }
    runs.call_config(ner.get_config(), tmp_path / "run", [], **fields)
    ours = load_tokenizer(tmp_path / "run" / "tokenizer")
    words = ["The", "manual", "Python", "."]
    given = build.tokenizer_from_file(TokenizerConfig(kind="tokenizer_json", vocab_file=f"{folder}/tokenizer.json"))
    assert given is not None
    assert ours.tokenize_batch(words) == given.tokenize_batch([f" {word}" for word in words])
    runs.tool("convert_to_pytorch", "--checkpoint", tmp_path / "run", "--output", tmp_path / "export")
    spec = json.loads((tmp_path / "export" / "tokenizer.json").read_text())
    assert spec["pre_tokenizer"]["add_prefix_space"] is True
    (tmp_path / "text.txt").write_text("The manual of Python.\n")
    arguments = ("--checkpoint", tmp_path / "run", "--input", tmp_path / "text.txt", "--output", tmp_path / "out.jsonl")
    runs.tool("predict", *arguments)
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "The manual of Python."


def test_blocks_are_not_built_with_a_vocabulary_whose_words_cannot_be_masked(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"The cat {number} sat." for number in range(40)))
    save(trained(["the cat sat"], models.BPE(), None, pre_tokenizers.Whitespace(), BERTS, 40), tmp_path, BERTS)
    config = Config(
        corpus=CorpusConfig(files=str(tmp_path / "text.txt"), held_out=0.2),
        tokenizer=TokenizerConfig(kind="tokenizer_json", vocab_file=str(tmp_path / "tokenizer.json")),
    )
    with StartingWeights(config) as start, pytest.raises(UserError, match=r"config.masking.scheme is 'span'"):
        prepare(config, tmp_path / "run", start)
    assert not (tmp_path / "run" / "data" / "blocks").exists()
