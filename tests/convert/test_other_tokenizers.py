"""Any tokenizer.json as ours: transformers' ids, words and offsets by definition, files that transformers reads."""

import functools
import itertools
import json
import pickle
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from spanbert_jax.convert.tokenizer_export import differing, write_tokenizer
from spanbert_jax.convert.tokenizer_import import read_tokenizer
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.question_answering.files import Question
from spanbert_jax.tasks.question_answering.rows import QuestionRowMaker
from spanbert_jax.tasks.text_classification.files import LabelledText
from spanbert_jax.tasks.text_classification.rows import TextRowMaker
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.tokenizer import Tokenizer, load_tokenizer, word_starts
from spanbert_jax.text.tokenizer_json import with_prefix_space
from tests.support.other_tokenizers import ADDED, BERTS, NAMES, ROBERTAS, write_all
from tests.support.texts_and_tokenizers import TEXTS

transformers = pytest.importorskip("transformers")

SOME = [
    "The old cat sat; it didn't move (U.S., 1869).",
    "Größe naïve 中文 字, 한국어 😀 ½ \u3000x",
    "a\nb\t\tc   d  ",
    "",
]


@pytest.fixture(scope="session")
def lines(shared_data: Path) -> list[str]:
    """10,000 real lines, each cut to 60 characters, so that the test stays cheap."""
    names = [*(f"enwiki2015/wiki_{number}" for number in ("07", "31", "44")), "novels/Blackmore_Lorna_1869.txt"]
    found = [line.strip() for name in names for line in (shared_data / "text" / name).read_text("utf-8").split("\n")]
    found = [line[:60] for line in found if line and not line.startswith(("<doc ", "</doc>"))]
    assert len(found) > 10_000
    return found[-10_000:]


@pytest.fixture(scope="session")
def folders(lines: list[str], once_a_session: Callable[..., tuple[Path, object]]) -> Path:
    """The directories of `write_all`."""
    return once_a_session("other-tokenizers", lambda folder: write_all(lines[::4], folder))[0]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, folders: Path) -> Path:
    return folders / request.param


_LOADED: dict[Path, tuple[Tokenizer, Any]] = {}


def pair(folder: Path) -> tuple[Tokenizer, Any]:
    """(ours, transformers')."""
    if folder not in _LOADED:
        _LOADED[folder] = read_tokenizer(folder)[0], transformers.AutoTokenizer.from_pretrained(folder)
    return _LOADED[folder]


def ids_of(theirs: Any, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in theirs.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def special_ids(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]


def test_ids_are_transformers_on_10000_real_lines(folder: Path, lines: list[str]) -> None:
    ours, theirs = pair(folder)
    assert ours.kind == "tokenizer_json"
    ids = ours.tokenize_batch(lines)
    assert sum(map(len, ids)) > 120_000
    assert [line for line, a, b in zip(lines, ids, ids_of(theirs, lines), strict=True) if a != b] == []


def test_special_pieces_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = pair(folder)
    if folder.name == "bytes":  # whose directory has no file that names them
        assert special_ids(ours) == [0, 1, 2, 3, 4]
        return
    names = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
    assert special_ids(ours) == names
    assert ours.vocab_size == len(theirs)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TEXTS | st.text(max_size=30))
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_transformers_on_any_text_and_offsets_are_in_order(folders: Path, name: str, text: str) -> None:
    ours, theirs = pair(folders / name)
    ids, offsets = ours.tokenize_with_offsets(text)
    assert ids == ours.tokenize(text) == ids_of(theirs, [text])[0]
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert all(before[1] <= after[0] for before, after in pairwise(offsets))
    assert all(text[start:end] == text[start:end].strip() for start, end in offsets)
    # Nothing is unknown to bytes. Of a character that the normalizer composes, the library knows the first part alone.
    if name == "roberta" or (name == "modern" and unicodedata.is_normalized("NFC", text)):
        assert "".join(text[start:end] for start, end in offsets) == "".join(text.split())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(st.sampled_from([*BERTS, *ROBERTAS, " ", "a", "\ufdd0 4", "<0x41>", "▁", "Ġ"]), max_size=8))
@pytest.mark.parametrize("name", NAMES)
def test_no_text_gives_a_special_id(folders: Path, name: str, parts: list[str]) -> None:
    ours, _ = pair(folders / name)
    assert not set(special_ids(ours)) - {ours.unk_id} & set(ours.tokenize("".join(parts)))


@pytest.mark.parametrize("name", ["modern", "roberta"])
def test_added_pieces_are_found_as_transformers_finds_them(folders: Path, name: str) -> None:
    ours, theirs = pair(folders / name)
    parts = [token.content for token in ADDED] + ["x", " ", "THE OLD"]
    texts = ["".join(some) for some in itertools.product(parts, repeat=3)]
    found = ours.tokenize_batch(texts)
    assert found == ids_of(theirs, texts)
    assert {ours.piece(i) for ids in found for i in ids} >= {token.content for token in ADDED}
    text = "xcovid-19x |||PHONE||| x"
    ids, offsets = ours.tokenize_with_offsets(text)
    places = [place for (place, _), start in zip(offsets, word_starts(ours, ids), strict=True) if start]
    assert places == [0, 1, 9, 11, 23]  # An added piece is a word, and so is the text after it.


# --- sentences of a document


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=TEXTS.filter(str.strip))
@pytest.mark.parametrize("name", NAMES)
def test_sentences_have_the_ids_of_their_document_as_one_string(folders: Path, name: str, text: str) -> None:
    ours, theirs = pair(folders / name)
    sentences = split_sentences(text, "en", "none")
    parts = ours.tokenize_sentences([text], [sentences])[0]
    assert len(parts) == len(sentences)
    assert list(itertools.chain(*parts)) == ids_of(theirs, [text.strip()])[0]
    ids, [places] = ours.tokenize_sentences_with_places([text], [sentences])
    assert ids == [parts]
    begins = [text.strip().index(sentences[0])]
    for before, after in itertools.pairwise(sentences):
        begins.append(text.strip().index(after, begins[-1] + len(before)))
    pieces = [(at + b, at + e) for at, of in zip(begins, places, strict=True) for b, e in of]
    assert pieces == ours._engine.encode(text.strip(), add_special_tokens=False).offsets
    if name == "modern" and unicodedata.is_normalized("NFC", text):  # whose pieces hold every character
        assert [ours.decode(part).strip() for part in parts] == sentences


def test_sentences_of_a_real_document_begin_with_the_white_space_before_them(folder: Path, lines: list[str]) -> None:
    ours, theirs = pair(folder)
    texts = ["\n".join(lines[:100]), "  The cat sat. It slept.\n\n It woke. "]
    sentences = [split_sentences(text, "en", "sentencex") for text in texts]
    found = ours.tokenize_sentences(texts, sentences)
    assert [list(itertools.chain(*parts)) for parts in found] == ids_of(theirs, [text.strip() for text in texts])
    assert [len(parts) for parts in found] == [len(inside) for inside in sentences] and len(found[0]) > 100
    if folder.name == "modern":
        begins = [[ours.piece(i) for i in part[:4]] for part in found[1]]
        assert begins[0][0][0] == "T" and begins[1][0].startswith("ĠI") and begins[2][:2] == ["Ċ", "Ċ"]
    other = Tokenizer("wordpiece", "\n".join([*BERTS, "a", "b"]).encode())
    assert other.tokenize_sentences(["a b\na", "b"], [["a b", "a"], ["b"]]) == [[[5, 6], [5]], [[6]]]


# --- words


_WORDS = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
_WORDS.normalizer = normalizers.BertNormalizer(False, True, False, False)
_WORDS.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
PARTS = [
    "the ",
    "cat",
    "a",
    "é",
    "ü",
    "'s",
    ".",
    ",",
    "-",
    "(",
    "中",
    "文",
    "한",
    " ",
    "  ",
    "\n",
    "\t",
    "\u00a0",
    "\u3000",
]


def starts_by_definition(text: str, spans: Sequence[tuple[int, int]], letters: set[int]) -> list[bool]:
    """Whether each piece begins a word of BERT's. A piece does where the next character from its beginning on that is
    no white space is a word's first, and no earlier piece stands in the white space before. spans: the pieces' places,
    white space included; letters: places of characters that count as letters, whatever they are."""
    read = "".join("x" if place in letters else char for place, char in enumerate(text))
    firsts = {start for start, _ in _WORDS.encode(read).offsets} | {len(text)}
    seen: set[int] = set()
    found = []
    for start, _ in spans:
        place = next((i for i in range(start, len(text)) if not read[i].isspace()), len(text))
        found.append(not found or (place in firsts and place not in seen))
        seen.add(place)
    return found


@functools.cache
def untrimmed(folder: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer, whose offsets have the white space of each piece."""
    engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine.post_processor = processors.ByteLevel(trim_offsets=False)
    return engine


@settings(max_examples=150, deadline=None, derandomize=True)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=14))
@pytest.mark.parametrize("name", NAMES)
def test_words_begin_where_berts_do(folders: Path, name: str, parts: list[str]) -> None:
    """Of the characters, those count as letters of which a piece has a part, or that are unknown to pieces that are no
    words."""
    ours, text = pair(folders / name)[0], "".join(parts)
    encoding = untrimmed(folders / name).encode(text, add_special_tokens=False)
    spans, letters = encoding.offsets, set()
    marked = zip(spans, encoding.tokens, strict=True)
    covered = [place for (start, end), token in marked if token not in "▁Ġ" for place in range(start, end)]
    if name in ("modern", "roberta", "bytes", "gemma"):
        letters = {place for place in covered if covered.count(place) > 1}
    elif name == "xlm_roberta":
        unknown = [span for span, i in zip(spans, encoding.ids, strict=True) if i == ours.unk_id]
        letters = {place for start, end in unknown for place in range(start, end)}
    assert word_starts(ours, encoding.ids).tolist() == starts_by_definition(text, spans, letters)


# --- files


def test_a_tokenizer_survives_saving_pickling_and_a_worker(folder: Path, tmp_path: Path) -> None:
    ours, _ = pair(folder)
    ours.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes() == ours.vocabulary
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(ours)), read_tokenizer(tmp_path)[0]):
        assert (again.kind, again.fingerprint, again.vocab_size) == (ours.kind, ours.fingerprint, ours.vocab_size)
        assert again.tokenize_batch(SOME) == ours.tokenize_batch(SOME)
        assert special_ids(again) == special_ids(ours)
    changed = json.loads((tmp_path / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="restore the vocabulary file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("token_types", [True, False])
def test_an_export_gives_our_ids_and_rows_in_transformers(
    folder: Path, lines: list[str], token_types: bool, tmp_path: Path
) -> None:
    ours, _ = pair(folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert" if token_types else "modernbert"}))
    write_tokenizer(ours, tmp_path, 128, token_types=token_types)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    names = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
    assert names == special_ids(ours) and theirs.model_max_length == 128
    texts = [*SOME, *lines[:200]]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ours.tokenize_batch(texts)
    assert differing(ours, tmp_path, texts) == []
    a, b = ours.tokenize("The old cat"), ours.tokenize("It's raining")
    both = theirs("The old cat", "It's raining")
    assert both["input_ids"] == [ours.cls_id, *a, ours.sep_id, *b, ours.sep_id]
    assert theirs("The old cat")["input_ids"] == [ours.cls_id, *a, ours.sep_id]
    assert both.get("token_type_ids") == ([0] * (len(a) + 2) + [1] * (len(b) + 1) if token_types else None)
    mask = theirs.mask_token
    assert ours.mask_id in theirs(f"The {mask} cat", add_special_tokens=False)["input_ids"]
    assert ours.mask_id not in ours.tokenize(f"The {mask} cat")
    again, _ = read_tokenizer(tmp_path)
    assert again.tokenize_batch(texts) == ours.tokenize_batch(texts) and special_ids(again) == special_ids(ours)


def test_a_file_with_our_rows_is_exported_byte_for_byte_even_if_it_truncates(folders: Path, tmp_path: Path) -> None:
    cut = {"max_length": 5, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    pad = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    given = json.loads((folders / "modern" / "tokenizer.json").read_text())
    given |= {"truncation": cut, "padding": pad | {"pad_to_multiple_of": None}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(given))
    content = (tmp_path / "tokenizer.json").read_bytes()
    ours, _ = read_tokenizer(tmp_path)
    (tmp_path / "export").mkdir()
    write_tokenizer(ours, tmp_path / "export", 128, token_types=False)
    assert (tmp_path / "export" / "tokenizer.json").read_bytes() == content
    assert ours.tokenize_batch(SOME) == pair(folders / "modern")[0].tokenize_batch(SOME)
    assert differing(ours, tmp_path / "export", SOME) == []


def test_decode_gives_what_transformers_gives_without_special_pieces(folder: Path) -> None:
    ours, theirs = pair(folder)
    for text in ("The old cat, it sat. |||PHONE||| x", "1869 covid-19"):
        kept = [i for i in ours.tokenize(text) if i != ours.unk_id]
        ids = [ours.cls_id, *kept, ours.mask_id, ours.sep_id, ours.pad_id]
        assert ours.decode(ids) == theirs.backend_tokenizer.decode(kept, skip_special_tokens=True)
    assert ours.piece(ours.unk_id) in ours.decode([ours.unk_id])


# --- words that are cut beforehand


@pytest.mark.parametrize("name", NAMES)
def test_with_prefix_space_words_are_read_as_transformers_reads_them(folders: Path, name: str, tmp_path: Path) -> None:
    ours, _ = pair(folders / name)
    spaced = ours.with_prefix_space()
    words = ["The", "cat", "'s", "naïve", "中文", "(", "U.S.", "1869", "é"]
    assert spaced.tokenize(" ".join(words)) == list(itertools.chain(*spaced.tokenize_batch(words)))
    if name not in ("modern", "gemma"):
        assert spaced is ours
    else:
        assert spaced.fingerprint != ours.fingerprint and spaced.with_prefix_space() is spaced
        assert spaced.tokenize_batch(words) == ours.tokenize_batch([f" {word}" for word in words])
        assert spaced.tokenize("The cat") == ours.tokenize(" The cat")
        _, offsets = spaced.tokenize_with_offsets("The cat")
        assert "".join("The cat"[start:end] for start, end in offsets) == "Thecat"
    write_tokenizer(spaced, tmp_path, 128, token_types=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    split = exported(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert split == [i for ids in spaced.tokenize_batch(words) for i in ids]
    assert read_tokenizer(tmp_path)[0].tokenize_batch(words) == spaced.tokenize_batch(words)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_metaspace_that_leaves_the_first_word_without_its_space_gets_it(scheme: str) -> None:
    engine = tokenizers.Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    assert engine.encode("a a").ids == ([1, 2] if scheme == "never" else [2, 2])
    given = engine.to_str().encode()
    changed = with_prefix_space(given, engine)
    spaced = tokenizers.Tokenizer.from_buffer(changed)
    assert (changed == given) is (scheme != "never")
    assert spaced.encode("a a").ids == [2, 2] and with_prefix_space(changed, spaced) == changed


# --- rows of whole texts


def test_rows_of_texts_and_of_questions_are_those_of_transformers(folders: Path, lines: list[str]) -> None:
    ours, theirs = pair(folders / "modern")
    pairs = [*pairwise(lines[:40]), *itertools.product([text for text in SOME if text], repeat=2)]
    expected = theirs(*map(list, zip(*pairs, strict=True)))["input_ids"]
    texts = [LabelledText(str(number), *pair, None) for number, pair in enumerate(pairs)]
    rows = TextRowMaker(ours, 512, ("0", "1"), regression=False)(texts)
    assert [row["input_ids"] for (row,) in rows] == expected
    questions = [Question(str(number), *pair) for number, pair in enumerate(pairs)]
    rows = QuestionRowMaker(ours, 512, 128, 100, labelled=False)(questions)
    assert [row["input_ids"] for (row,) in rows] == expected
