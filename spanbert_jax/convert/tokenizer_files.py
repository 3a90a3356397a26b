"""Tokenizers in Hugging Face's files: tokenizer.json, tokenizer_config.json and the vocabulary beside them.

Invariant: what is written gives our ids in `tokenizers` and transformers, but for special pieces written in text,
which they read as the special pieces ("[MASK]" must be the mask there) and we as text. WordPiece knows no other
exception. SentencePiece has rare ones, which `differing` finds (2 lines in 100,000 of English Wikipedia and novels):
  - `tokenizers` applies SentencePiece's character map to graphemes, not characters, and drops or leaves what the map
    does not join: a letter with two or more separate combining marks, a mark after a character that the map changes,
    unjoined Hangul, half-width kana with a separate sound mark;
  - two ways to split a run of digits that score the same: SentencePiece adds in 32 bits, `tokenizers` in 64;
  - the space before a user-defined piece of a model from elsewhere.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import (
    METADATA_FILE,
    VOCABULARY_FILES,
    Tokenizer,
    load_tokenizer,
    sentencepiece_from_model,
    wordpiece_from_vocab,
)

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
_SPACE = "▁"
_NORMAL, _USER_DEFINED = 1, 4  # ModelProto.SentencePiece.Type
# BERT's cased English vocabulary has capitals in 29% of its pieces, the uncased one in none.
_CASED_SHARE = 0.01


def write_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and vocab.txt or spiece.model into an existing directory.

    max_length: the most ids, special ones included, that transformers keeps when it truncates.
    Raises UserError, before anything is written, for a SentencePiece model that tokenizer.json cannot express.
    """
    engine = _wordpiece(tokenizer) if tokenizer.kind == "wordpiece" else _sentencepiece(tokenizer)
    names = _special_names(tokenizer)
    # The space before a mask belongs to the piece that the mask stands for, as SentencePiece writes it.
    engine.add_special_tokens(
        [
            tokenizers.AddedToken(
                name, special=True, normalized=False, lstrip=role == "mask_token" and tokenizer.kind != "wordpiece"
            )
            for role, name in names.items()
        ]
    )
    cls, sep = names["cls_token"], names["sep_token"]
    engine.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
    )
    config: dict[str, Any] = {
        # transformers rebuilds a class of its own from the vocabulary alone; this one takes tokenizer.json as it is.
        "tokenizer_class": "BertTokenizer" if tokenizer.kind == "wordpiece" else "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **names,
    }
    if tokenizer.kind == "wordpiece":
        # strip_accents null: as do_lower_case.
        config |= {"do_lower_case": tokenizer.lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    (directory / VOCABULARY_FILES[tokenizer.kind]).write_bytes(tokenizer.vocabulary)
    (directory / TOKENIZER_FILE).write_text(engine.to_str(pretty=True) + "\n", encoding="utf-8")
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def differing(tokenizer: Tokenizer, directory: Path, lines: Sequence[str]) -> list[tuple[str, list[int], list[int]]]:
    """The lines whose ids, without [CLS] and [SEP], are others by the directory's tokenizer.json: (line, ours, its).

    Raises UserError where the directory has no tokenizer.json that can be read.
    """
    path = directory / TOKENIZER_FILE
    try:
        exported = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"cannot read {path} ({error}); it should be a tokenizer of Hugging Face's library") from error
    theirs = [encoding.ids for encoding in exported.encode_batch_fast(lines, add_special_tokens=False)]
    ours = tokenizer.encode_batch(lines)
    return [(line, a, b) for line, a, b in zip(lines, ours, theirs, strict=True) if a != b]


def read_tokenizer(source: Path) -> Tokenizer:
    """The tokenizer of a model's directory, or of one file: a vocab.txt, a SentencePiece .model or a tokenizer.json.

    In a directory: what spanbert_tokenizer.json names, spiece.model or the one *.model, vocab.txt, or a tokenizer.json
    that holds a WordPiece. Whether WordPiece lowercases, `lowercase_of` the file's directory says.
    Raises UserError where there is no vocabulary, or none that this program's tokenizers can use.
    """
    if (source / METADATA_FILE).exists():
        return load_tokenizer(source)
    path = _find_vocabulary(source) if source.is_dir() else source
    if path.suffix == ".model":
        return sentencepiece_from_model(path)
    if path.name == TOKENIZER_FILE:
        tokenizer = Tokenizer("wordpiece", _vocabulary_of_json(path), source=str(path))
    else:
        tokenizer = wordpiece_from_vocab(path, lowercase=False)
    lowercase, _ = lowercase_of(path.parent, [tokenizer.piece(i) for i in range(tokenizer.vocab_size)])
    return Tokenizer("wordpiece", tokenizer.vocabulary, lowercase=True, source=str(path)) if lowercase else tokenizer


def lowercase_of(directory: Path, pieces: Sequence[str]) -> tuple[bool, str]:
    """Whether the WordPiece `pieces` of a directory were made for lowercased text; and why, a line for the user.

    A vocabulary with capitals is cased whatever tokenizer_config.json says: without that file transformers
    lowercases, so the released SpanBERT, which lacks it, has many descendants that say do_lower_case true and whose
    capitals are never used. Elsewhere what the files say counts, and without a word in them, the missing capitals.
    """
    words = [piece for piece in pieces if not re.fullmatch(r"\[[A-Za-z]+\d*\]", piece)]  # not [CLS], not [unused7]
    capitals = sum(piece != piece.lower() for piece in words)
    share = f"{capitals} of {len(words)} pieces have capital letters"
    setting, source, unknown = _casing_setting(directory)
    if capitals > _CASED_SHARE * len(words):
        why = f"cased: {share}" + (f", although {source} says do_lower_case true" if setting else "")
        return False, why + unknown
    if setting is not None:
        return setting, f"{'lowercased' if setting else 'cased'}: {source} says so{unknown}"
    return True, f"lowercased: {share}, and no file says otherwise{unknown}"


def _special_names(tokenizer: Tokenizer) -> dict[str, str]:
    return {
        "pad_token": tokenizer.piece(tokenizer.pad_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
        "cls_token": tokenizer.piece(tokenizer.cls_id),
        "sep_token": tokenizer.piece(tokenizer.sep_id),
        "mask_token": tokenizer.piece(tokenizer.mask_id),
    }


def _wordpiece(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    ids = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    engine = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    engine.normalizer = normalizers.BertNormalizer(lowercase=tokenizer.lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    return engine


def _sentencepiece(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same model in `tokenizers`; a text's pieces never cross a space, so that each word is looked up alone."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.vocabulary)  # type: ignore[attr-defined]
    spec = proto.normalizer_spec
    if proto.trainer_spec.treat_whitespace_as_suffix or not spec.escape_whitespaces:
        raise UserError(
            "this SentencePiece model marks spaces at the end of words, or not at all; tokenizer.json cannot say that: "
            "use a model trained with treat_whitespace_as_suffix=false and escape_whitespaces=true"
        )
    engine = tokenizers.Tokenizer(_unigram(proto) if tokenizer.kind == "unigram" else _bpe(proto))
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # Not the space at the left: that one says whether a word begins after a mask. Not Strip: it takes more
        # than spaces (U+0085).
        steps += [normalizers.Replace(tokenizers.Regex(pattern), to) for pattern, to in ((" {2,}", " "), (" \\z", ""))]
    engine.normalizer = normalizers.Sequence(steps)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(_SPACE, "first" if spec.add_dummy_prefix else "never"),
            # "<0x41>" in text is text, not the piece that stands for a byte.
            pre_tokenizers.Split(tokenizers.Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous"),
        ]
    )
    engine.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1 if spec.add_dummy_prefix else 0, 0),
        ]
    )
    user_defined = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    engine.add_tokens([tokenizers.AddedToken(name, special=False, normalized=False) for name in user_defined])
    return engine


def _unigram(proto: Any) -> models.Unigram:
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> models.BPE:
    """SentencePiece joins the two neighbours that make the best piece; here every such pair is a merge, best first."""
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    merges = [
        (-piece.score, ids[left], ids[right], (left, right))
        for piece in proto.pieces
        if piece.type == _NORMAL
        for left, right in _halves(piece.piece)
        if left in ids and right in ids
    ]
    return models.BPE(
        ids,
        [pair for *_, pair in sorted(merges)],
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _halves(piece: str) -> Iterator[tuple[str, str]]:
    return ((piece[:i], piece[i:]) for i in range(1, len(piece)))


def _find_vocabulary(directory: Path) -> Path:
    sentencepieces = sorted(directory.glob("*.model"))
    named = directory / VOCABULARY_FILES["unigram"]
    if len(sentencepieces) > 1 and named not in sentencepieces:
        found = ", ".join(path.name for path in sentencepieces)
        raise UserError(f"{directory} has {len(sentencepieces)} SentencePiece models ({found}); name one with --vocab")
    for path in (named, *sentencepieces, directory / VOCABULARY_FILES["wordpiece"], directory / TOKENIZER_FILE):
        if path.exists():
            return path
    raise UserError(
        f"{directory} has no vocabulary (spiece.model, vocab.txt or tokenizer.json); SpanBERT's released archives have "
        "none, and BERT's cased one is theirs: give the vocabulary that the model was trained with, --vocab vocab.txt"
    )


def _vocabulary_of_json(path: Path) -> bytes:
    """The vocab.txt of a tokenizer.json that holds a WordPiece; its added pieces are pieces like all others."""
    content = _read_json(path)
    model = content["model"] if isinstance(content.get("model"), dict) else {}
    kind = model.get("type", "nameless")
    if kind != "WordPiece" or model.get("continuing_subword_prefix") != "##":
        raise UserError(
            f"{path} holds a {kind} model; only BERT's WordPiece (with ##) can be read from there: give the vocab.txt "
            "or the SentencePiece .model that the model was trained with, --vocab FILE"
        )
    try:
        ids = dict(model["vocab"]) | {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        pieces = sorted(ids, key=ids.__getitem__)
        contiguous = [ids[piece] for piece in pieces] == list(range(len(pieces)))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no readable vocabulary ({error!r}); give the vocab.txt, --vocab FILE") from error
    if not contiguous or any("\n" in piece for piece in pieces):
        raise UserError(
            f"{path} has {len(pieces)} pieces whose ids are not 0 to {len(pieces) - 1}, or a piece with a line break; "
            "give the vocab.txt that the model was trained with, --vocab FILE"
        )
    return "".join(piece + "\n" for piece in pieces).encode()


def _casing_setting(directory: Path) -> tuple[bool | None, str, str]:
    """What the files say of lowercasing, the file that says it, and what they say that our tokenizer cannot do."""
    config, content = (
        _read_json(path) if (path := directory / name).exists() else {} for name in (CONFIG_FILE, TOKENIZER_FILE)
    )
    normalizer = _bert_normalizer(content.get("normalizer"))
    source, said = CONFIG_FILE, config.get("do_lower_case")
    if not isinstance(said, bool):
        source, said = TOKENIZER_FILE, normalizer.get("lowercase")
    setting = said if isinstance(said, bool) else None
    accents = config.get("strip_accents", normalizer.get("strip_accents"))
    chinese = config.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars"))
    unknown = f"; strip_accents {accents} is ignored" if accents not in (None, setting) else ""
    unknown += "; Chinese characters are set apart, although the files say not to" if chinese is False else ""
    return setting, source, unknown


def _bert_normalizer(normalizer: Any) -> dict[str, Any]:
    """The BertNormalizer in a tokenizer.json's normalizer, which may be one of a sequence; {} if there is none."""
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    return next((step for step in steps if step.get("type") == "BertNormalizer"), {})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON ({error}); restore it, or remove it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds JSON, but no object; restore it, or remove it")
    return content
