"""Others' tokenizers as ours: the ids that transformers gives for the same files, or a refusal by name."""

import itertools
import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spanbert_jax.convert.tokenizer_export import differing, write_tokenizer
from spanbert_jax.convert.tokenizer_import import read_tokenizer
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer, load_tokenizer, word_starts, wordpiece_from_vocab
from tests.support.published import write_files

transformers = pytest.importorskip("transformers")

LINES = [
    "The cat's tail, (didn't) “never” amuse me: $5, 10%!",
    "Größe, Übermut und die Straße; ÄÖÜ äöü ẞ",
    "L'élève a reçu un cœur naïf — déjà vu…",
    "Žluťoučký kůň úpěl ďábelské ódy",
    "Tiếng Việt có nhiều dấu thanh; e\u0301 a\u0323\u0302",
    "İstanbul'da ılık rüzgâr, IĞDIR ığdır",
    "Ἡ γλῶσσα τῶν Ἑλλήνων, ΟΔΟΣ οδός",
    "Съешь ещё этих мягких французских булок, йод",
    "اللُّغَةُ العَرَبِيَّة جميلة، أليس كذلك؟",
    "עִבְרִית שפה שמית",
    "हिन्दी में लिखा हुआ वाक्य।",
    "ภาษาไทยไม่มีช่องว่าง",
    "좋은 한국어 영화, 각 \u1100\u1161\u11a8",
    "日本語の文章、カタカナとひらがな。ｶﾞ",
    "中文没有空格，所以每个字都是一个词㐀",
    "emoji 👩‍👩‍👧 ☃ ﬁ ① Ａ｡ \u00ad\u200b\ufeff\u00a0x\u3000y\x00z\x85w\ttab\nline",
    "covid-19 and COVID-19, xcovid-19y [E1]a [E1] b [e1] <ent>  Müller </ent>.",
    "Déjà vu déjà vu, DEJA VU; deja vus adeja vu",
]
ADDED = [
    {"content": "[E1]", "special": True, "normalized": False},
    {"content": "covid-19"},
    {"content": "<ent>", "lstrip": True, "rstrip": True, "normalized": False},
    {"content": "Déjà vu", "single_word": True},
    {"content": "##odd", "normalized": False},
    {"content": "\n", "normalized": False},
]


def vocabulary(lowercase: bool) -> list[str]:
    """A piece for each character of LINES at a word's start and inside, and some longer ones."""
    forms = [form for line in LINES for form in (line, line.lower())]
    forms += [unicodedata.normalize("NFD", form) for form in forms]
    text = {char for form in forms for char in form if not char.isspace()}
    chars = sorted(char for char in text if not (lowercase and char != char.lower()))
    words = ["deja", "vu", "한국어", "좋은", "##어", "covid", "19"]
    return [*dict.fromkeys([*SPECIALS, "[unused1]", *chars, *(f"##{char}" for char in chars), *words])]


def assert_ids_are_transformers(folder: Path, lines: Sequence[str] = LINES) -> Tokenizer:
    """Here, saved and loaded, exported, and imported from the export."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs(list(lines), add_special_tokens=False)
    ours, _ = read_tokenizer(folder)
    assert ours.tokenize_batch(lines) == expected["input_ids"]
    assert ours.vocab_size == len(theirs)
    for ids in (ids for ids in expected["input_ids"] if ours.unk_id not in ids):  # which they leave out
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    ours.save(folder / "saved")
    again = load_tokenizer(folder / "saved")
    assert again.tokenize_batch(lines) == expected["input_ids"] and again.fingerprint == ours.fingerprint
    (folder / "export").mkdir()
    (folder / "export" / "config.json").write_text('{"model_type": "bert"}')
    write_tokenizer(ours, folder / "export", 128)
    exported = transformers.AutoTokenizer.from_pretrained(folder / "export")
    assert exported(list(lines), add_special_tokens=False)["input_ids"] == expected["input_ids"]
    assert differing(ours, folder / "export", lines) == []
    assert read_tokenizer(folder / "export")[0].fingerprint == ours.fingerprint
    return ours


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("accents", [None, False, True])
@pytest.mark.parametrize("chinese", [True, False])
def test_settings_are_followed_in_many_languages(
    lowercase: bool, accents: bool | None, chinese: bool, tmp_path: Path
) -> None:
    config = {"do_lower_case": lowercase, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    ours = assert_ids_are_transformers(write_files(tmp_path / "model", vocabulary(lowercase), tokenizer_config=config))
    usual = Tokenizer("wordpiece", ours.vocabulary, lowercase)
    assert (ours.fingerprint == usual.fingerprint) == (accents in (None, lowercase) and chinese)
    note = read_tokenizer(tmp_path / "model")[1][0]
    assert ("accents are kept" in note) == (lowercase and accents is False)
    assert ("accents are stripped" in note) == (not lowercase and accents is True)
    assert ("Chinese characters are not set apart" in note) == (not chinese)


def from_library(folder: Path, lowercase: bool) -> None:
    """tokenizer.json and tokenizer_config.json as transformers saves them now."""
    made = transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lowercase)
    made.add_tokens([transformers.AddedToken(**token) for token in ADDED])
    made.save_pretrained(folder)


def in_config(folder: Path, lowercase: bool) -> None:
    """added_tokens_decoder, as transformers 4.34 and later has it for a tokenizer in Python."""
    pieces = (folder / "vocab.txt").read_text().count("\n")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    decoder = {pieces + i: flags | token for i, token in enumerate(ADDED)}
    content = {"do_lower_case": lowercase, "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def in_old_files(folder: Path, lowercase: bool) -> None:
    """added_tokens.json and special_tokens_map.json, as earlier versions have it: without most flags."""
    pieces = (folder / "vocab.txt").read_text().count("\n")
    (folder / "added_tokens.json").write_text(json.dumps({t["content"]: pieces + i for i, t in enumerate(ADDED)}))
    special = {"mask_token": "[MASK]", "additional_special_tokens": ["[E1]", "[unused1]", "vus"], "bos_token": "[E2]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("add", [from_library, in_config, in_old_files], ids=lambda add: add.__name__)
def test_added_pieces_are_found_in_text_as_transformers_finds_them(
    add: Callable[[Path, bool], None], lowercase: bool, tmp_path: Path
) -> None:
    add(write_files(tmp_path / "model", vocabulary(lowercase)), lowercase)
    contents = [token["content"] for token in ADDED] + ["[unused1]", "[E2]", "déjà vu", "a", " "]
    lines = [*LINES, *("".join(parts) for parts in itertools.product(contents, repeat=3))]
    lines = [line for line in lines if not any(special in line for special in SPECIALS)]
    ours = assert_ids_are_transformers(tmp_path / "model", lines)
    assert ours.vocab_size > len(vocabulary(lowercase))


def test_an_added_piece_is_a_word_and_so_is_the_text_after_it(tmp_path: Path) -> None:
    pieces = [*SPECIALS, "a", "##b", "b"]
    tokenizer, notes = read_tokenizer(write_files(tmp_path / "m", pieces, added_tokens={"<x>": 8, "  ": 9}))
    assert notes[1] == "Added: 2 pieces that are found in text as a whole: '<x>', '  '"
    ids, offsets = tokenizer.tokenize_with_offsets("ab<x>ab")
    assert [tokenizer.piece(i) for i in ids] == ["a", "##b", "<x>", "a", "##b"]
    assert word_starts(tokenizer, ids).tolist() == [True, False, True, True, False]
    assert offsets == [(0, 1), (1, 2), (2, 5), (5, 6), (6, 7)]


def test_an_older_tokenizer_json_without_types_is_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "model", vocabulary(True))
    from_library(folder, True)
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["model"]["type"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "vocab.txt").unlink()
    ours, _ = read_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.tokenize_batch(LINES) == theirs(LINES, add_special_tokens=False)["input_ids"]


def test_of_equal_lines_and_empty_ones_the_numbers_alone_count(tmp_path: Path) -> None:
    pieces = [*SPECIALS, "cat", "", "the", "cat", "", "sat"]
    folder = write_files(tmp_path / "model", pieces, tokenizer_config={"do_lower_case": True})
    ours, _ = read_tokenizer(folder)
    theirs = transformers.BertTokenizer(str(folder / "vocab.txt"))
    assert ours.tokenize("the cat sat") == theirs.encode("the cat sat", add_special_tokens=False) == [7, 8, 10]
    assert ours.vocab_size == 11 and ours.piece(5) == "cat" and ours.piece(6) == ""
    (folder / "export").mkdir()
    write_tokenizer(ours, folder / "export", 128)
    assert transformers.AutoTokenizer.from_pretrained(folder / "export").encode("cat sat")[1:-1] == [8, 10]
    assert read_tokenizer(folder / "export")[0].fingerprint == ours.fingerprint


@pytest.mark.parametrize("name", [None, "BertTokenizerFast", "PreTrainedTokenizerFast"])
def test_of_two_files_that_contradict_each_other_the_one_counts_that_transformers_reads(
    name: str | None, tmp_path: Path
) -> None:
    """Models with both exist on the Hub: someone corrected tokenizer_config.json, and left tokenizer.json as it was."""
    folder = write_files(tmp_path / "model", vocabulary(True))
    from_library(folder, True)
    config = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False, "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | ({"tokenizer_class": name} if name else {})))
    ours = assert_ids_are_transformers(folder)
    assert ours.lowercase == (name == "PreTrainedTokenizerFast") == ours.settings.handle_chinese_chars
    counts = "tokenizer.json" if ours.lowercase else "tokenizer_config.json"
    assert f"contradicts {counts}, which counts, as in transformers" in read_tokenizer(folder)[1][0]


def test_control_characters_are_kept_where_a_tokenizer_json_says_so(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "model", vocabulary(False))
    from_library(folder, False)
    (folder / "vocab.txt").unlink()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["clean_text"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False, "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = assert_ids_are_transformers(folder)
    assert not ours.settings.clean_text and "control characters are kept" in read_tokenizer(folder)[1][0]


def test_wordpiece_of_a_tokenizer_json_equals_the_independent_cases_of_tiny_bert(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "checkpoints" / "tiny_bert_hf"
    cases = json.loads((folder / "hf_tokenizer_cases.json").read_text())["wordpiece"]["cases"]
    shutil.copy(folder / "tiny_wordpiece_tokenizer.json", tmp_path / "tokenizer.json")
    tokenizer, _ = read_tokenizer(tmp_path)
    plain = [case for case in cases if "[CLS]" not in case["text"]]  # in text it is text; theirs makes it an id
    assert len(plain) == len(cases) - 1 > 5
    for case in plain:
        assert tokenizer.tokenize(case["text"]) == case["ids"]
    (tmp_path / "out").mkdir()
    write_tokenizer(tokenizer, tmp_path / "out", 512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for case in cases:  # written again, it takes "[CLS]" as they do
        assert theirs(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
        assert theirs.decode(case["ids"], skip_special_tokens=True) == case["decoded"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_what_transformers_saves_reads_back_as_the_same_tokenizer(tmp_path: Path, lowercase: bool) -> None:
    folder = write_files(tmp_path / "model", vocabulary(lowercase))
    tokenizer = wordpiece_from_vocab(folder / "vocab.txt", lowercase)
    transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lowercase).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.txt").exists()
    assert read_tokenizer(tmp_path / "saved")[0].fingerprint == tokenizer.fingerprint
    (tmp_path / "saved" / "tokenizer_config.json").unlink()  # the normalizer in tokenizer.json says it too
    assert read_tokenizer(tmp_path / "saved")[0].fingerprint == tokenizer.fingerprint


SMALL, CAPITALS = ["[unused1]", "[UNUSED2]", "İ", *(f"word{i}" for i in range(500))], [f"Word{i}" for i in range(10)]


@pytest.mark.parametrize(
    ("pieces", "config", "lowercase", "why"),
    [
        (SMALL + CAPITALS, None, False, "cased: 11 of 511 pieces have capital letters$"),  # as SpanBERT was released
        (
            SMALL + CAPITALS,
            {"do_lower_case": True},
            False,
            "11 of .* although tokenizer_config.json says do_lower_case true$",
        ),
        (SMALL + CAPITALS, {"do_lower_case": False}, False, "11 of 511 pieces have capital letters$"),
        (SMALL, None, True, "lowercased: 1 of 501 pieces have capital letters, and no file says otherwise$"),
        (SMALL, {"model_max_length": 512}, True, "no file says otherwise$"),
        (SMALL, {"do_lower_case": True}, True, "lowercased: tokenizer_config.json says so$"),
        (SMALL, {"do_lower_case": False}, False, "cased: tokenizer_config.json says so$"),
    ],
)
def test_casing_is_the_vocabularys_before_what_the_files_say(
    tmp_path: Path, pieces: list[str], config: dict[str, Any] | None, lowercase: bool, why: str
) -> None:
    files = {} if config is None else {"tokenizer_config": config}
    tokenizer, (note,) = read_tokenizer(write_files(tmp_path, [*SPECIALS, *pieces], **files))
    assert tokenizer.lowercase is lowercase
    assert re.search(f"^Text: .*{why}", note)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere"):
        read_tokenizer(tmp_path / "nowhere")
    write_files(tmp_path, [*SPECIALS, "a"])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": tr')
    with pytest.raises(UserError, match=r"cannot read .*tokenizer_config\.json as JSON"):
        read_tokenizer(tmp_path)
    tokenizer = wordpiece_from_vocab(tmp_path / "vocab.txt", lowercase=False)
    with pytest.raises(UserError, match=r"cannot read .*tokenizer.json"):
        differing(tokenizer, tmp_path, ["a"])
