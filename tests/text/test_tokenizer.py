"""Both kinds of tokenizer: ids, offsets, words, special pieces, files."""

import functools
import gzip
import itertools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.tokenizer import (
    Tokenizer,
    load_tokenizer,
    sentencepiece_from_model,
    word_starts,
    wordpiece_from_vocab,
)
from tests.support.texts_and_tokenizers import KINDS, TEXTS, tokenizer_of

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", ".", ",", "[", "]", "M", "##ASK"]
# Python's own manual, as every installation has it, and characters that it lacks.
SENTENCES = [line.strip() for topic in sorted(topics) for line in topics[topic].splitlines() if line.strip()][:4000]
SENTENCES += ["The naïve cat’s tail, (didn't) “never” α amuse, hurt or surprise me: §5!"] * 20
VOCAB_SIZE = 1000


def write_vocab(path: Path, pieces: Sequence[str] = PIECES) -> Path:
    path.write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cased(shared_data: Path) -> Tokenizer:
    return wordpiece_from_vocab(shared_data / "vocab" / "bert-base-cased-vocab.txt", lowercase=False)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return trained_once(request.param)


@functools.cache
def trained_once(kind: str) -> Tokenizer:
    return train_sentencepiece(SENTENCES, kind, VOCAB_SIZE)


def prose(shared_data: Path, files: Sequence[str]) -> list[str]:
    lines = [line.strip() for name in files for line in (shared_data / "text" / name).read_text("utf-8").split("\n")]
    return [line for line in lines if line and not line.startswith(("<doc ", "</doc>"))]


@pytest.mark.parametrize("name", ["cased", "uncased"])
def test_wordpiece_ids_equal_transformers_on_real_text(shared_data: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    path = shared_data / "vocab" / f"bert-base-{name}-vocab.txt"
    ours = wordpiece_from_vocab(path, lowercase=name == "uncased")
    peer = transformers.BertTokenizer(str(path), do_lower_case=name == "uncased")
    lines = prose(shared_data, ["enwiki2015/wiki_07", "enwiki2015/wiki_31"])[:2000]
    assert len(lines) == 2000
    assert not any(special in line for line in lines for special in ("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"))
    assert ours.tokenize_batch(lines) == peer(lines, add_special_tokens=False)["input_ids"]


def test_wordpiece_equals_the_independent_cases_of_tiny_bert(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "checkpoints" / "tiny_bert_hf"
    vocab = json.loads((folder / "tiny_wordpiece_tokenizer.json").read_text())["model"]["vocab"]
    cases = json.loads((folder / "hf_tokenizer_cases.json").read_text())["wordpiece"]["cases"]
    tokenizer = wordpiece_from_vocab(write_vocab(tmp_path / "vocab.txt", sorted(vocab, key=vocab.get)), lowercase=True)
    plain = [case for case in cases if "[CLS]" not in case["text"]]  # in text it is text; theirs makes it an id
    assert len(plain) == len(cases) - 1 > 5
    for case in plain:
        assert tokenizer.tokenize(case["text"]) == case["ids"]


@pytest.mark.parametrize("text", ["[MASK]", "a [CLS] b[SEP][PAD] [UNK]", "▁[MASK]▁ <s> </s> <0x41>", "[mask] [ MASK ]"])
def test_special_pieces_in_text_are_text(cased: Tokenizer, trained: Tokenizer, text: str) -> None:
    for tokenizer in (cased, trained):
        ids = tokenizer.tokenize(text)
        assert not {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id} & set(ids)
    assert "[MASK]" in trained.decode(trained.tokenize("so [MASK] it is"))


def test_trained_ids_are_the_documented_ones(trained: Tokenizer) -> None:
    assert [trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id, trained.mask_id] == [0, 1, 2, 3, 4]
    assert [trained.piece(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert trained.vocab_size == VOCAB_SIZE


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_sentencepiece_knows_every_character(text: str) -> None:
    tokenizer = trained_once("unigram")
    assert tokenizer.unk_id not in tokenizer.tokenize(text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_offsets_are_in_order_inside_the_text_and_ids_are_those_of_encode(text: str) -> None:
    tokenizer = trained_once("unigram")
    ids, offsets = tokenizer.tokenize_with_offsets(text)
    assert ids == tokenizer.tokenize(text)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert all(before[1] <= after[0] for before, after in pairwise(offsets))


def test_offsets_give_the_surface_of_every_piece(cased: Tokenizer, trained: Tokenizer) -> None:
    text = "  The cat's  tail, didn't\tamuse me.\n"
    for tokenizer in (cased, trained):
        ids, offsets = tokenizer.tokenize_with_offsets(text)
        for i, (start, end) in zip(ids, offsets, strict=True):
            assert text[start:end] == tokenizer.piece(i).removeprefix("##").replace("▁", "")
    ids, offsets = trained.tokenize_with_offsets("cat 中 sat")
    surface = ["cat 中 sat"[start:end] for start, end in offsets]
    assert "".join(surface) == "cat中sat"


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=TEXTS.filter(str.strip))
@pytest.mark.parametrize("kind", KINDS)
def test_places_are_the_offsets_with_the_white_space_around_pieces(kind: str, text: str) -> None:
    tokenizer, sentences = tokenizer_of(kind), split_sentences(text, "en", "none")
    both = [sentences, sentences[:1]]
    ids, places = tokenizer.tokenize_sentences_with_places([text, text], both)
    assert ids == tokenizer.tokenize_sentences([text, text], both)
    found = zip(itertools.chain(*both), itertools.chain(*ids), itertools.chain(*places), strict=True)
    for sentence, pieces, of_pieces in found:
        expected_ids, offsets = tokenizer.tokenize_with_offsets(sentence)
        assert pieces == expected_ids
        for (begin, end), (first, last) in zip(of_pieces, offsets, strict=True):
            assert sentence[begin:end].strip() == sentence[first:last] and begin <= first <= last <= max(end, first)
        assert list(of_pieces) == sorted(of_pieces) and all(a[1] <= b[1] for a, b in pairwise(of_pieces))


def test_wordpiece_words_are_the_references(cased: Tokenizer) -> None:
    ids = cased.tokenize("Unbelievably, it isn't (U.S.)")
    assert [cased.piece(i) for i, start in zip(ids, word_starts(cased, ids), strict=True) if start] == [
        piece for piece in map(cased.piece, ids) if not piece.startswith("##")
    ]
    assert not cased.ends_word.any() and not cased.joins_next.any()
    inside = ids[1:] if cased.piece(ids[1]).startswith("##") else [cased.tokenize("xylophonist")[-1]]
    assert word_starts(cased, inside)[0]


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text without spaces inside them, by our word starts and offsets."""
    ids, offsets = tokenizer.tokenize_with_offsets(text)
    found: list[str] = []
    for start_word, (start, end) in zip(word_starts(tokenizer, ids), offsets, strict=True):
        found = [*found, ""] if start_word else found
        found[-1] += text[start:end]
    return found


def test_sentencepiece_words_are_those_of_berts_tokenizer(trained: Tokenizer) -> None:
    assert words(trained, "The cat's tail, (didn't)  amuse me: “never”!") == (
        ["The", "cat", "'", "s", "tail", ",", "(", "didn", "'", "t", ")", "amuse", "me", ":", "“", "never", "”", "!"]
    )


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_both_tokenizers_agree_on_999_of_1000_word_starts_in_real_prose(
    shared_data: Path, cased: Tokenizer, kind: str
) -> None:
    trained = train_sentencepiece(prose(shared_data, ["enwiki2015/wiki_03"])[:800], kind, 4000)
    same = union = 0
    for line in prose(shared_data, ["enwiki2015/wiki_44"])[:200]:
        starts = [set(np.cumsum([0, *map(len, words(tokenizer, line))])) for tokenizer in (cased, trained)]
        same += len(starts[0] & starts[1])
        union += len(starts[0] | starts[1])
    assert union > 10_000
    assert same / union > 0.999, f"{same} of {union}"


def test_tables_are_all_that_word_starts_needs(trained: Tokenizer) -> None:
    for table in (trained.starts_word, trained.ends_word, trained.joins_next):
        assert table.dtype == np.bool_ and table.shape == (trained.vocab_size,)
    assert [trained.piece(i) for i in np.flatnonzero(trained.joins_next)] == ["▁"]
    assert word_starts(trained, []).shape == (0,)


def test_decode_gives_the_text_back(cased: Tokenizer, trained: Tokenizer) -> None:
    assert trained.decode([2, *trained.tokenize("The old cat's tail, 中 ☃!"), 3]) == "The old cat's tail, 中 ☃!"
    assert cased.decode([101, *cased.tokenize("the unbelievable cat"), 102]) == "the unbelievable cat"


def test_a_tokenizer_survives_saving_and_pickling(cased: Tokenizer, trained: Tokenizer, tmp_path: Path) -> None:
    for tokenizer in (cased, trained):
        tokenizer.save(tmp_path / tokenizer.kind)
        for copy in (load_tokenizer(tmp_path / tokenizer.kind), pickle.loads(pickle.dumps(tokenizer))):
            assert copy.fingerprint == tokenizer.fingerprint
            assert copy.kind == tokenizer.kind and copy.lowercase == tokenizer.lowercase
            assert copy.tokenize("The cat's tail [MASK]") == tokenizer.tokenize("The cat's tail [MASK]")


def test_fingerprints_tell_vocabularies_and_lowercasing_apart(tmp_path: Path) -> None:
    path = write_vocab(tmp_path / "vocab.txt")
    other = write_vocab(tmp_path / "other.txt", [*PIECES, "mat"])
    prints = {wordpiece_from_vocab(p, lower).fingerprint for p in (path, other) for lower in (True, False)}
    assert len(prints) == 4


def test_training_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from spanbert_jax.text.sentencepiece_training import train_sentencepiece\n"
        "lines = Path(sys.argv[1]).read_text('utf-8').split('\\n')\n"
        "print(train_sentencepiece(lines, 'unigram', 1000).fingerprint)"
    )
    (tmp_path / "lines").write_text("\n".join(SENTENCES), "utf-8")
    command = [sys.executable, "-c", program, str(tmp_path / "lines")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert found == trained_once("unigram").fingerprint


def test_lines_longer_than_sentencepiece_takes_are_not_lost() -> None:
    text = " ".join(SENTENCES)  # one line of about 70 kB
    alphabet = "".join(chr(0x3B1 + i % 20) for i in range(5000))  # no space to cut at
    tokenizer = train_sentencepiece([text, alphabet], "unigram", VOCAB_SIZE)
    assert len(tokenizer.tokenize("surprise")) <= 3
    assert any(tokenizer.piece(i) == "α" for i in range(tokenizer.vocab_size))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_over_what_the_text_supports_names_the_largest(kind: str) -> None:
    with pytest.raises(UserError, match=r"vocab_size is 90000, .* at most (\d+)") as caught:
        train_sentencepiece(SENTENCES[:50], kind, 90_000)
    largest = int(str(caught.value).split("at most ")[1].split(";")[0])
    assert train_sentencepiece(SENTENCES[:50], kind, largest).vocab_size == largest


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_under_what_the_text_needs_names_the_smallest(kind: str) -> None:
    with pytest.raises(UserError, match=r"vocab_size is 265, less than the \d+"):
        train_sentencepiece(SENTENCES, kind, 265)


def test_training_on_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece(["", "  "], "unigram", 300)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", r"5 pieces and lacks \[MASK\]"),
        (b"[PAD]\n[UNK]\n\xff\xfe\n", r"line 3: byte 12 \(0xff\) is not UTF-8"),
        (b"\xff\xfe[\0P\0", r"line 1: is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
        (gzip.compress(b"[PAD]", mtime=0), "is a compressed file; decompress it"),
        (b"", r"has 0 pieces and lacks \[PAD\]"),
    ],
)
def test_a_bad_vocab_is_refused_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        wordpiece_from_vocab(tmp_path / "vocab.txt", lowercase=False)
    assert str(tmp_path / "vocab.txt") in str(caught.value)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.txt"):
        wordpiece_from_vocab(tmp_path / "none.txt", lowercase=False)
    with pytest.raises(UserError, match="is a directory"):
        wordpiece_from_vocab(tmp_path, lowercase=False)
    with pytest.raises(UserError, match=r"cannot read .*spanbert_tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n\r\n"])
def test_line_ends_and_a_byte_order_mark_belong_to_no_piece(start: str, end: str, last: str, tmp_path: Path) -> None:
    last = end if end == "\r" else last
    (tmp_path / "vocab.txt").write_bytes((start + end.join(PIECES) + last).encode())
    tokenizer = wordpiece_from_vocab(tmp_path / "vocab.txt", lowercase=False)
    assert tokenizer.tokenize("the cats sat.") == [5, 6, 7, 8, 9] and tokenizer.pad_id == 0
    assert tokenizer.vocab_size == len(PIECES)


def test_a_piece_may_be_white_space_to_python(tmp_path: Path) -> None:
    spaces = ["\u0085", "\u00a0", "\u2028", "\u3000", "\x1c", "\x0b", "\x0c", " ", "\t", " cat ", "\u200b"]
    tokenizer = wordpiece_from_vocab(write_vocab(tmp_path / "vocab.txt", [*PIECES, *spaces, "mat"]), lowercase=False)
    assert [tokenizer.piece(len(PIECES) + i) for i in range(len(spaces))] == spaces
    assert tokenizer.tokenize("the mat") == [5, len(PIECES) + len(spaces)]
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_a_changed_or_damaged_saved_tokenizer_is_refused(tmp_path: Path) -> None:
    wordpiece_from_vocab(write_vocab(tmp_path / "v.txt"), lowercase=False).save(tmp_path / "saved")
    write_vocab(tmp_path / "saved" / "vocab.txt", [*PIECES, "mat"])
    with pytest.raises(UserError, match=r"16 pieces and fingerprint .* written for 15"):
        load_tokenizer(tmp_path / "saved")
    metadata = tmp_path / "saved" / "spanbert_tokenizer.json"
    metadata.write_text(metadata.read_text().replace('"wordpiece"', '"byte-level"'))
    with pytest.raises(UserError, match="kind 'byte-level' is none of wordpiece, unigram, bpe"):
        load_tokenizer(tmp_path / "saved")
    metadata.write_text('{"kind": "wordpiece"}')
    with pytest.raises(UserError, match="not a tokenizer's metadata"):
        load_tokenizer(tmp_path / "saved")


def test_sentencepiece_models_from_elsewhere(shared_data: Path, trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    same = sentencepiece_from_model(tmp_path / "spiece.model")
    assert (same.kind, same.fingerprint) == (trained.kind, trained.fingerprint)
    with pytest.raises(UserError, match=r"1000 pieces, but not as control pieces: \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        sentencepiece_from_model(shared_data / "vocab" / "sentencepiece-test_model.model")
    shutil.copy(shared_data / "vocab" / "bert-base-cased-vocab.txt", tmp_path / "wrong.model")
    for wrong in ("wrong.model", "empty.model"):
        (tmp_path / "empty.model").touch()
        with pytest.raises(UserError, match="is not a SentencePiece model"):
            sentencepiece_from_model(tmp_path / wrong)
