"""Text that a vocabulary does not know is warned about from a hundredth and refused from a fifth; so are few blocks."""

from pathlib import Path

import numpy as np
import pytest

from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig, TrainConfig
from spanbert_jax.corpus.blocks import Metadata, read_metadata
from spanbert_jax.corpus.build import build_blocks, tokenizer_from_file
from spanbert_jax.corpus.summary import describe_blocks
from spanbert_jax.corpus.vocabulary_fit import check_fit
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def setup(tmp_path: Path, pieces: list[str], text: str = "", lowercase: bool = False) -> tuple[Config, Tokenizer]:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *pieces]))
    (tmp_path / "a.txt").write_text(text)
    config = Config(
        corpus=CorpusConfig(files=f"{tmp_path}/a.txt", held_out=0.2, workers=1),
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_file=f"{tmp_path}/vocab.txt", lowercase=lowercase),
        data=DataConfig(block_length=16),
        train=TrainConfig(batch_size=4),
    )
    tokenizer = tokenizer_from_file(config.tokenizer)
    assert tokenizer
    return config, tokenizer


def counts(tokenizer: Tokenizer, unknown: int) -> np.ndarray:
    """Of 1,000 pieces."""
    found = np.zeros(tokenizer.vocab_size, np.int64)
    found[[tokenizer.unk_id, -1]] = unknown, 1000 - unknown
    return found


def test_a_fifth_is_refused_and_a_hundredth_is_warned_about(tmp_path: Path) -> None:
    config, tokenizer = setup(tmp_path, ["a", "B"])
    sides = {split: dict.fromkeys(("documents", "sentences", "pieces", "blocks"), 7) for split in ("train", "held_out")}

    def lines(unknown: int) -> list[str]:
        return describe_blocks(
            config, tokenizer, Metadata(2, "", "", 16, {}, [], sides, counts(tokenizer, unknown), "")
        )

    check_fit(config, tokenizer, counts(tokenizer, 199))
    with pytest.raises(UserError, match=r"20% of the pieces are \[UNK\], so .* let one be trained on the text"):
        check_fit(config, tokenizer, counts(tokenizer, 200))
    assert len(lines(9)) == 1 and lines(9)[0].endswith("7 of 7 held out; 0.90% of the pieces are [UNK]")
    assert len(lines(10)) == 2 and lines(10)[1].startswith("warning: 1.00% of the pieces are [UNK]")
    sides["train"]["blocks"], sides["held_out"]["documents"] = 3, 1
    assert "3 blocks, fewer than the 4 rows of a batch" in lines(0)[1] and "rest on 1 of 8 documents" in lines(0)[2]


def test_the_advice_for_an_uncased_vocabulary_works(tmp_path: Path) -> None:
    text = "\n\n".join(f"The {'Dog ' * i}barks." for i in range(1, 30))
    config, tokenizer = setup(tmp_path, ["the", "dog", "barks", "."], text)
    with pytest.raises(UserError, match=r"no capital letters: give --config.tokenizer.lowercase=True"):
        build_blocks(config, tokenizer, tmp_path / "blocks")
    assert not (tmp_path / "blocks").exists()
    config, tokenizer = setup(tmp_path, ["the", "dog", "barks", "."], text, lowercase=True)
    build_blocks(config, tokenizer, tmp_path / "blocks")
    lines = describe_blocks(config, tokenizer, read_metadata(tmp_path / "blocks"))
    assert lines[0].endswith("; 0.00% of the pieces are [UNK]")


def test_a_build_stops_at_its_first_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanbert_jax.corpus.build.SAMPLE_PIECES", 10)
    monkeypatch.setattr("spanbert_jax.corpus.build.TASK_CHARS", 100)
    config, tokenizer = setup(tmp_path, ["the"], "\n\n".join(f"Dog {i}" for i in range(5000)))
    reports: list[tuple[float | None, int, int]] = []
    with pytest.raises(UserError, match=r"of the pieces are \[UNK\]"):
        build_blocks(config, tokenizer, tmp_path / "blocks", lambda *report: reports.append(report))
    assert not reports  # of 5,000 documents not one task's
