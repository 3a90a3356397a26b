"""Other text is never taken for the same, and a corpus that cannot be split is refused with advice that works."""

import dataclasses
import os
import re
from pathlib import Path

import pytest

from spanbert_jax.config import CorpusConfig
from spanbert_jax.corpus.sources import changed_sources, check_documents, read_corpus
from spanbert_jax.errors import UserError
from spanbert_jax.text.documents import hash_text, in_share
from spanbert_jax.text.lines import hash_file
from spanbert_jax.text.worker_pool import Workers

LATER = 4e9  # seconds since 1970, after every change


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusConfig:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"File {name}.\n\nSecond.\n")
    return CorpusConfig(files=f"{tmp_path}/*.txt")


def described(corpus: CorpusConfig) -> list[dict[str, object]]:
    with Workers(1) as pool:  # which starts no process before it is used
        found = read_corpus(corpus, pool)
        assert len(list(found.documents)) == 4
    return found.sources


def test_sources_name_every_file_with_its_size_and_content(corpus: CorpusConfig, tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert described(corpus) == [{"file": str(path), "bytes": 17, "sha256": hash_file(path)} for path in paths]


def test_files_that_came_went_or_changed_are_told(corpus: CorpusConfig, tmp_path: Path) -> None:
    sources = described(corpus)
    assert changed_sources(sources, corpus, 0.0) == changed_sources(sources, corpus, LATER) == ""
    (tmp_path / "a.txt").write_text("File A.\n\nSecond.\n")  # as long as before
    assert changed_sources(sources, corpus, 0.0) == f"one file was rewritten ({tmp_path}/a.txt)"
    (tmp_path / "a.txt").write_text("File a.\n\nSecond.\n")
    os.utime(tmp_path / "a.txt", (1, 1))
    assert changed_sources(sources, corpus, 0.0) == ""
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").write_text("c")
    (tmp_path / "d.txt").write_text("d")
    told = f"2 files were added ({tmp_path}/c.txt, ...); one file was removed ({tmp_path}/b.txt)"
    assert changed_sources(sources, corpus, LATER) == told


def test_a_file_is_read_again_only_where_it_may_have_changed(
    corpus: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = described(corpus)
    monkeypatch.setattr("spanbert_jax.corpus.sources.hash_file", None)
    assert changed_sources(sources, corpus, LATER) == ""
    (tmp_path / "a.txt").write_text("longer than it was before")
    assert "rewritten" in changed_sources(sources, corpus, LATER)


def test_blocks_whose_files_are_all_gone_are_used_as_they_are(corpus: CorpusConfig, tmp_path: Path) -> None:
    sources = described(corpus)
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert changed_sources(sources, corpus, 0.0) == ""
    assert changed_sources([{"name": "wikipedia"}], CorpusConfig(), 0.0) == ""


def test_blocks_of_format_1_know_no_contents(corpus: CorpusConfig, tmp_path: Path) -> None:
    sources = [{key: source[key] for key in ("file", "bytes")} for source in described(corpus)]
    (tmp_path / "a.txt").write_text("File A.\n\nSecond.\n")
    assert changed_sources(sources, corpus, 0.0) == ""


@pytest.mark.parametrize("held_out", [0.000001, 0.999999])
def test_the_share_that_is_advised_splits_the_documents(tmp_path: Path, held_out: float) -> None:
    texts = [f"Document {i}." for i in range(3)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    with pytest.raises(UserError, match=r"has 3 documents, .* puts all of them into (training|evaluation)") as caught:
        check_documents(CorpusConfig(files=f"{tmp_path}/a.txt", held_out=held_out))
    advised = re.search(r"--config.corpus.held_out=([\d.]+)", str(caught.value))
    assert advised and sum(in_share(hash_text(text), float(advised[1])) for text in texts) == 1
    check_documents(CorpusConfig(files=f"{tmp_path}/a.txt", held_out=float(advised[1])))


def test_one_document_is_refused_with_what_makes_more(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("A sentence.\nAnother.\n")
    one = CorpusConfig(files=f"{tmp_path}/one.txt", held_out=0.5)
    with pytest.raises(UserError, match=r"has one document, .*put a blank line after each document"):
        check_documents(one)
    (tmp_path / "one.txt").write_text("A sentence.\n\nA sentence.\n")
    with pytest.raises(UserError, match="has 2 documents with the same text"):
        check_documents(one)
    (tmp_path / "one.txt").write_text("A sentence.\n\nAnother.\n")
    with pytest.raises(UserError, match=r"has one document, .*--config.corpus.document_break=blank_line"):
        check_documents(CorpusConfig(files=one.files, document_break="file"))


def test_pairs_need_two_documents_for_training_and_two_for_evaluation(tmp_path: Path) -> None:
    texts = sorted((f"Document {i}." for i in range(6)), key=hash_text)
    (tmp_path / "a.txt").write_text("\n\n".join([*texts, texts[0]]))  # a copy counts for nothing
    keys = [int.from_bytes(hash_text(text), "big") / 2**64 for text in texts]
    for count, side in ((1, "evaluation"), (5, "training")):
        corpus = CorpusConfig(files=f"{tmp_path}/a.txt", held_out=(keys[count - 1] + keys[count]) / 2)
        check_documents(corpus)
        with pytest.raises(UserError, match=f"{side} has a single document, .*--config.corpus.pairs=False"):
            check_documents(dataclasses.replace(corpus, pairs=True))
    check_documents(CorpusConfig(files=f"{tmp_path}/a.txt", held_out=(keys[1] + keys[2]) / 2, pairs=True))
