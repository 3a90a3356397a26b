"""Our tokenizers as Hugging Face's files: the ids that transformers gives, and the tokenizer that is read back."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from spanbert_jax.convert.tokenizer_export import differing, write_tokenizer
from spanbert_jax.convert.tokenizer_import import read_tokenizer
from spanbert_jax.errors import UserError
from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer, wordpiece_from_vocab
from tests.support.sentencepiece_models import other_model

transformers = pytest.importorskip("transformers")

SMALL = Tokenizer("wordpiece", "\n".join([*SPECIALS, *"abc", ""]).encode())
KINDS = ["cased", "uncased", "unigram", "bpe"]
MAX_LENGTH = 128


def prose(shared_data: Path, names: Sequence[str]) -> list[str]:
    lines = [line.strip() for name in names for line in (shared_data / "text" / name).read_text("utf-8").split("\n")]
    return [line for line in lines if line and not line.startswith(("<doc ", "</doc>"))]


@pytest.fixture(scope="module")
def lines(shared_data: Path) -> list[str]:
    """3,000 lines that the trained vocabularies have not seen."""
    wiki = prose(shared_data, ["enwiki2015/wiki_31", "enwiki2015/wiki_44"])[:2000]
    novels = prose(shared_data, ["novels/Blackmore_Lorna_1869.txt", "novels/Barclay_Rosary_1909.txt"])[:1000]
    assert len(wiki + novels) == 3_000
    return wiki + novels


@pytest.fixture(scope="module")
def made(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Path]]:
    """Our tokenizer of every kind, and the directory it was written to, a BERT's config.json beside it."""
    text = prose(shared_data, ["enwiki2015/wiki_03"])[:800]
    vocab = shared_data / "vocab"
    tokenizers = {
        "cased": wordpiece_from_vocab(vocab / "bert-base-cased-vocab.txt", lowercase=False),
        "uncased": wordpiece_from_vocab(vocab / "bert-base-uncased-vocab.txt", lowercase=True),
        "unigram": train_sentencepiece(text, "unigram", 2000),
        "bpe": train_sentencepiece(text, "bpe", 2000),
    }
    found = {}
    for name, tokenizer in tokenizers.items():
        directory = tmp_path_factory.mktemp(name)
        (directory / "config.json").write_text('{"model_type": "bert"}')
        write_tokenizer(tokenizer, directory, MAX_LENGTH)
        found[name] = tokenizer, directory
    return found


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, made: dict[str, tuple[Tokenizer, Path]]) -> tuple[Tokenizer, Path]:
    return made[request.param]


@pytest.fixture(scope="module")
def pair(written: tuple[Tokenizer, Path]) -> tuple[Tokenizer, Any]:
    """(ours, transformers')."""
    return written[0], transformers.AutoTokenizer.from_pretrained(written[1])


def test_exported_tokenizer_gives_our_ids_on_3000_real_lines(pair: tuple[Tokenizer, Any], lines: list[str]) -> None:
    ours, theirs = pair
    ids = ours.tokenize_batch(lines)
    assert sum(map(len, ids)) > 90_000
    exported = theirs.backend_tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    assert [line for line, a, b in zip(lines, ids, exported, strict=True) if a != b.ids] == []


def test_differing_finds_the_lines_with_special_pieces_and_no_others(written: tuple[Tokenizer, Path]) -> None:
    tokenizer, directory = written
    plain = ["The cat, <0x41> ▁ [mask] (CLS)", "", "  two  spaces\there\n"]
    special = [f"the {name} pieces" for name in SPECIALS]
    found = differing(tokenizer, directory, [*plain, *special])
    assert [line for line, _, _ in found] == special
    for (line, ours, theirs), id in zip(found, special_ids(tokenizer), strict=True):
        assert ours == tokenizer.tokenize(line)
        assert id in theirs and (id == tokenizer.unk_id or id not in ours)


def special_ids(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]


def test_special_pieces_and_lengths_are_ours_in_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    theirs_ids = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id]
    assert [*theirs_ids, theirs.sep_token_id, theirs.mask_token_id] == special_ids(ours)
    assert sorted(theirs.all_special_ids) == sorted(special_ids(ours))
    assert len(theirs) == ours.vocab_size
    assert theirs.model_max_length == MAX_LENGTH


def test_one_text_and_pairs_are_framed_padded_and_truncated_as_bert_does(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    a, b = ours.tokenize("The old cat sat."), ours.tokenize("It's raining, again!")
    cls, sep = ours.cls_id, ours.sep_id
    assert theirs("The old cat sat.")["input_ids"] == [cls, *a, sep]
    both = theirs("The old cat sat.", "It's raining, again!")
    assert both["input_ids"] == [cls, *a, sep, *b, sep]
    assert both["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    padded = theirs(["The old cat sat.", "The old cat sat. It's raining, again!"], padding=True)
    missing = len(padded["input_ids"][1]) - len(a) - 2
    assert missing > 3
    assert padded["input_ids"][0] == [cls, *a, sep] + [ours.pad_id] * missing
    assert padded["attention_mask"][0] == [1] * (len(a) + 2) + [0] * missing
    long = "The old cat sat. " * 100
    assert theirs(long, truncation=True)["input_ids"] == [cls, *ours.tokenize(long)[: MAX_LENGTH - 2], sep]


@pytest.mark.parametrize(
    "text", ["The old [MASK] sat.", "[MASK] old cat", "The old [MASK]. It", "The [MASK] [MASK] sat"]
)
def test_a_mask_in_text_stands_in_place_of_a_word(pair: tuple[Tokenizer, Any], text: str) -> None:
    """What is around a mask is split as if the word were there: a fill-mask pipeline sees what training showed."""
    ours, theirs = pair
    word = ours.tokenize("It")  # one piece in every vocabulary here, and begins a word
    assert len(word) == 1
    whole = ours.tokenize(text.replace("[MASK]", "It"))
    expected = [ours.mask_id if id == word[0] else id for id in whole[: -1 if text.endswith("It") else None]]
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids[: len(expected)] == expected
    filled = theirs.decode([word[0] if id == ours.mask_id else id for id in ids])
    assert filled == ours.decode(whole)


def test_decoding_leaves_special_pieces_out(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    ids = theirs("The cat’s [MASK] 中 sat, (here)!")["input_ids"]
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_what_is_written_reads_back_as_the_same_tokenizer(written: tuple[Tokenizer, Path], tmp_path: Path) -> None:
    tokenizer, directory = written
    again, _ = read_tokenizer(directory)
    assert (again.kind, again.fingerprint) == (tokenizer.kind, tokenizer.fingerprint)
    tokenizer.save(tmp_path)  # our own format is read in the same way
    assert read_tokenizer(tmp_path)[0].fingerprint == tokenizer.fingerprint
    (vocabulary,) = [path for path in directory.iterdir() if path.name in ("vocab.txt", "spiece.model")]
    assert vocabulary.read_bytes() == tokenizer.vocabulary
    assert read_tokenizer(vocabulary)[0].fingerprint == tokenizer.fingerprint


SOME_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from([*SPECIALS, "[mask]", "##ing", " ", "İ", "ǅ", "é", "e\u0301", "\u00ad", "中文", "a" * 101]),
)
SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(parts=st.lists(SOME_TEXT, max_size=6))
@pytest.mark.parametrize("name", ["cased", "uncased"])
def test_wordpiece_differs_from_ours_by_special_pieces_alone(
    made: dict[str, tuple[Tokenizer, Path]], name: str, parts: list[str]
) -> None:
    ours, directory = made[name]
    text = "".join(parts)
    expected: list[int] = []
    for part in SPECIAL.split(text):
        expected += [special_ids(ours)[SPECIALS.index(part)]] if part in SPECIALS else ours.tokenize(part)
    assert _auto(directory)(text, add_special_tokens=False)["input_ids"] == expected


_LOADED: dict[Path, Any] = {}


def _auto(directory: Path) -> Any:
    if directory not in _LOADED:
        _LOADED[directory] = transformers.AutoTokenizer.from_pretrained(directory)
    return _LOADED[directory]


# Characters that no neighbour joins: no combining marks, joiners, Hangul letters or sound marks.
WHOLE = st.one_of(
    st.characters(min_codepoint=0, max_codepoint=0x2FF),
    st.characters(min_codepoint=0x370, max_codepoint=0x52F, exclude_categories=["Mn", "Me"]),
    st.characters(min_codepoint=0x2010, max_codepoint=0x2BFF, exclude_categories=["Mn", "Me"]),
    st.characters(min_codepoint=0x3041, max_codepoint=0x9FFF, exclude_categories=["Mn", "Me", "Lm", "Sk"]),
    st.characters(min_codepoint=0x1F300, max_codepoint=0x1F3FA),
    st.sampled_from(" \u00a0ﬁ①Ａ｡▁\ufeff\ufffd<0x41>"),
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(WHOLE, max_size=40).filter(lambda text: not SPECIAL.search(text)), min_size=15))
@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_sentencepiece_gives_our_ids_for_any_text_without_combining_characters(
    made: dict[str, tuple[Tokenizer, Path]], name: str, texts: list[str]
) -> None:
    assert differing(*made[name], texts) == []


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity"},
        {"normalization_rule_name": "nmt_nfkc_cf", "byte_fallback": True},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"user_defined_symbols": ["<sep>"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_sentencepiece_models_from_elsewhere_keep_their_ids(
    lines: list[str], tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    tokenizer = other_model(lines[::15], kind, **options)
    write_tokenizer(tokenizer, tmp_path, 512)
    text = [*lines[1:2000:10], "  two  spaces  here ", "one<sep>two<sep> three"]
    assert differing(tokenizer, tmp_path, text) == []
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids, first = tokenizer.tokenize("a cat"), len(tokenizer.tokenize("a"))
    assert theirs("a cat")["input_ids"] == [tokenizer.cls_id, *ids, tokenizer.sep_id]
    masked = theirs("a [MASK] cat", add_special_tokens=False)["input_ids"]
    assert masked == [*ids[:first], tokenizer.mask_id, *ids[first:]]
    assert theirs.unk_token_id == tokenizer.unk_id == 0


def test_bpe_merges_in_the_order_of_scores_whatever_that_of_ids(
    made: dict[str, tuple[Tokenizer, Path]], lines: list[str], tmp_path: Path
) -> None:
    tokenizer = made["bpe"][0]
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.vocabulary)
    merged = [piece for piece in proto.pieces if piece.type == 1 and len(piece.piece) > 1]
    for piece, score in zip(merged, [piece.score for piece in reversed(merged)], strict=True):
        piece.score = score
    reversed_model = Tokenizer("bpe", proto.SerializeToString())
    write_tokenizer(reversed_model, tmp_path, 512)
    assert reversed_model.tokenize_batch(lines[:500]) != tokenizer.tokenize_batch(lines[:500])
    assert differing(reversed_model, tmp_path, lines[:500]) == []


def test_a_sentencepiece_that_ends_words_with_spaces_is_refused_and_nothing_written(
    lines: list[str], tmp_path: Path
) -> None:
    tokenizer = other_model(lines[::15], "unigram", treat_whitespace_as_suffix=True)
    with pytest.raises(UserError, match="treat_whitespace_as_suffix"):
        write_tokenizer(tokenizer, tmp_path, 512)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token_types", [True, False])
def test_a_second_text_has_another_type_where_the_model_has_one(token_types: bool, tmp_path: Path) -> None:
    write_tokenizer(SMALL, tmp_path, MAX_LENGTH, token_types)
    found = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a", "b c")
    assert found.type_ids == ([0, 0, 0, 1, 1, 1] if token_types else [0] * 6)
    assert ("token_type_ids" in _auto(tmp_path)("a", "b c")) == token_types
