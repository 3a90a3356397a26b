"""Others' tokenizers: a tokenizer.json that is not BERT's is followed as it is; what cannot be followed is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spanbert_jax.convert.tokenizer_import import read_tokenizer
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import SPECIALS
from tests.support.published import write_files
from tests.support.sentencepiece_models import other_model

transformers = pytest.importorskip("transformers")

BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
WORDPIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
    "vocab": {piece: i for i, piece in enumerate([*SPECIALS, "a"])},
}


def serialised(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json."""
    whole = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": BERT | {"lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": WORDPIECE,
    }
    return whole | changes


NFC = {"type": "Sequence", "normalizers": [{"type": "NFC"}, BERT | {"lowercase": True}]}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"}},
            "is 'BertJapaneseTokenizer', which splits text in P",
        ),
        ({"config": {"tokenizer_class": "RobertaTokenizer"}}, "config.json: tokenizer_class is 'RobertaTokenizer'"),
        ({"tokenizer_config": {"do_basic_tokenize": False}}, "do_basic_tokenize false cannot be followed"),
        ({"tokenizer_config": {"never_split": ["[UNK]", "<x>"]}}, r"never_split \['<x>'\] cannot be followed"),
        ({"tokenizer_config": {"split_special_tokens": True}}, "split_special_tokens true"),
        (
            {"tokenizer_config": {"cls_token": "<s>"}},
            r"cls_token is '<s>', not '\[CLS\]'; without a tokenizer.json only",
        ),
        ({"special_tokens_map": {"mask_token": {"content": "<mask>"}}}, r"mask_token is '<mask>'"),
        ({"tokenizer_config": {"strip_accents": "no"}}, "strip_accents is 'no'; expected true or false"),
        (
            {"tokenizer": serialised(model=WORDPIECE | {"vocab": WORDPIECE["vocab"] | {"b": 6}})},  # type: ignore[operator]
            r"two vocabularies: 'b' has the id \(none\) in the first and 6 in the second",
        ),
        ({"added_tokens": {"<x>": 7}}, r"added_tokens.json: the added piece '<x>' has the id 7, and .* it gets 6"),
        (
            {
                "tokenizer": serialised(added_tokens=[{"id": 6, "content": "<x>", **TOKEN}]),
                "tokenizer_config": {"added_tokens_decoder": {"6": {"content": "<x>", **TOKEN, "lstrip": True}}},
            },
            "its files add '<x>' in two ways",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"6": "<x>"}}}, "added pieces that cannot be read"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(write_files(tmp_path, [*SPECIALS, "a"], **files))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "AlbertTokenizer", "PreTrainedTokenizerFast", None])
def test_a_sentencepiece_is_read_where_no_file_asks_for_other_text_first(name: str | None, tmp_path: Path) -> None:
    tokenizer = other_model(["a cat sat on the mat, and the cat was fat"] * 50, "bpe")
    (tmp_path / "spiece.model").write_bytes(tokenizer.vocabulary)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    if name in ("PreTrainedTokenizerFast", None):
        assert read_tokenizer(tmp_path)[0].fingerprint == tokenizer.fingerprint
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        with pytest.raises(
            UserError, match=r"do_lower_case is true, .*; without a tokenizer.json only SentencePiece's"
        ):
            read_tokenizer(tmp_path)
        return
    with pytest.raises(UserError, match=f"tokenizer_class is '{name}', which (splits text in Python|may change text)"):
        read_tokenizer(tmp_path)
    if name == "AlbertTokenizer":
        (tmp_path / "tokenizer.json").write_text(json.dumps(serialised(normalizer=NFC)))
        assert read_tokenizer(tmp_path)[0].kind == "tokenizer_json"


def test_pieces_added_to_a_sentencepiece_are_refused(tmp_path: Path) -> None:
    tokenizer = other_model(["a cat sat on the mat, and the cat was fat"] * 50, "bpe", user_defined_symbols=["<x>"])
    (tmp_path / "spiece.model").write_bytes(tokenizer.vocabulary)
    ids = {"<x>": 4, "[MASK]": tokenizer.mask_id}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    assert read_tokenizer(tmp_path)[0].fingerprint == tokenizer.fingerprint
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids | {"<y>": 999}))
    with pytest.raises(UserError, match=r"add 1 pieces to spiece.model \('<y>'\)"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_json_that_is_not_berts_opens_as_it_is(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "checkpoints" / "tiny_bert_hf"
    shutil.copy(source / "tiny_unigram_tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r'name pieces of it .* \{"pad_token": "\[PAD\]"'):
        read_tokenizer(tmp_path)
    names = {
        "pad_token": "[PAD]",
        "unk_token": "<unk>",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[M]",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer, _ = read_tokenizer(tmp_path)
    for case in json.loads((source / "hf_tokenizer_cases.json").read_text())["unigram"]["cases"]:
        assert tokenizer.tokenize(case["text"]) == case["ids"]


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": NFC},
        {"normalizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": WORDPIECE | {"max_input_chars_per_word": 9}},
        {"model": WORDPIECE | {"unk_token": "[PAD]"}},
        {"model": WORDPIECE | {"continuing_subword_prefix": "@"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "BertTokenizer", None])
def test_a_wordpiece_with_other_steps_than_berts_is_followed(
    changes: dict[str, Any], named: str | None, tmp_path: Path
) -> None:
    config = {"tokenizer_class": named} if named else {}
    config |= dict(
        zip(("pad_token", "unk_token"), ("<p>", "[PAD]") if "[PAD]" in str(changes) else SPECIALS, strict=False)
    )
    folder = write_files(tmp_path / "m", [*SPECIALS, "a"], tokenizer=serialised(**changes), tokenizer_config=config)
    tokenizer, notes = read_tokenizer(folder)
    peer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **config)
    texts = ["a A b aa", "a" * 10, "a,a \u00e9 aaa"]
    assert tokenizer.tokenize_batch(texts) == peer(texts, add_special_tokens=False)["input_ids"]
    assert any("transformers 5 reads the pieces of tokenizer.json alone" in note for note in notes) == (
        named != "PreTrainedTokenizerFast"
    )


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"pre_tokenizer": {"type": "Custom"}}, {}, r"library cannot read it \(.*its pre_tokenizer is Custom"),
        ({"model": {"type": "BPE", "dropout": 0.1, "vocab": {}, "merges": []}}, {}, "model.dropout is 0.1, .*to null"),
        ({"normalizer": None}, {"cls_token": "[SEP]"}, r"'\[SEP\]' is cls_token and sep_token; name another"),
        (
            {"normalizer": None},
            {"auto_map": {"AutoTokenizer": ["x.Y", None]}},
            r"auto_map names \['x.Y', None\], code of",
        ),
        (
            {"normalizer": None},
            {"added_tokens_decoder": {"9": {"content": "<x>", **TOKEN}}},
            "the added piece '<x>' has the id 9, and the tokenizers library gives it 6",
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                }
            },
            {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"},
            "add_prefix_space is True, and tokenizer.json has False; correct the one",
        ),
        (
            {"normalizer": None},
            {"tokenizer_class": "PhobertTokenizer"},
            "'PhobertTokenizer', which splits text in Python",
        ),
    ],
)
def test_a_tokenizer_json_that_cannot_be_followed_is_refused_by_name(
    changes: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(serialised(**changes)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_sentencepiece_without_berts_special_pieces_gives_way_to_its_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"no model with [CLS]")
    (tmp_path / "tokenizer.json").write_text(json.dumps(serialised(normalizer=NFC)))
    assert read_tokenizer(tmp_path)[0].kind == "tokenizer_json"
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        read_tokenizer(tmp_path / "sentencepiece.bpe.model")
    write_files(tmp_path, [*SPECIALS, "a"])
    with pytest.raises(
        UserError, match=r"its normalizer is .*so vocab.txt alone does not say .* give .*tokenizer.json"
    ):
        read_tokenizer(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no vocabulary .*--vocab vocab.txt.*released archives have none"),
        (
            {"tokenizer.json": serialised(model={"type": "BPE", "vocab": {"[CLS]": 0, "<s>": 1}, "merges": []})},
            "does not say which pieces are pad_token, unk_token, cls_token, sep_token, mask_token; name .*config.json",
        ),
        ({"tokenizer.json": serialised(model=None)}, "the tokenizers library cannot read it"),
        ({"tokenizer.json": {"model": {"type": "WordPiece"}}}, r"library cannot read it \(.*vocab"),
        ({"tokenizer.json": {}}, "holds no tokenizer"),
        (
            {"tokenizer.json": serialised(model=WORDPIECE | {"vocab": {"a": 0, "[UNK]": 2}})},
            r"tokenizer.json has 3 pieces and lacks \[PAD\]",
        ),
        ({"tokenizer.json": []}, "no object"),
        ({"tokenizer_config.json": {"tokenizer_class": "XLMTokenizer"}}, "'XLMTokenizer', which splits text in Python"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}, "vocab.json": {}},
            "tokenizer_class is 'RobertaTokenizer'; without a tokenizer.json only .*save_pretrained",
        ),
        ({"a.model": {}, "b.model": {}}, r"2 SentencePiece models \(a.model, b.model\); name one"),
        ({"spiece.model": {}, "b.model": {}}, "spiece.model .* is not a SentencePiece model"),
    ],
)
def test_a_directory_without_a_usable_vocabulary_is_refused(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
