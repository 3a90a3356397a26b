"""Writes our tokenizers as Hugging Face's: tokenizer.json, tokenizer_config.json and the vocabulary beside them.

Invariant: with the files written here, `tokenizers` and transformers give our ids. The exception are the names of
special pieces in text: both libraries read "[MASK]" in text as the mask, as a user of theirs needs, and we read it as
text. WordPiece and a tokenizer.json have no other exception. SentencePiece has rare ones, which `differing` finds (2
lines in 100,000 of English Wikipedia and novels):
  - `tokenizers` applies SentencePiece's character map to graphemes, not characters. It drops or leaves the characters
    that the map does not join: a letter with two or more separate combining marks, a mark after a character that the
    map changes, unjoined Hangul, half-width kana with a separate sound mark;
  - two ways to split a run of digits may score the same, and SentencePiece adds in 32 bits, `tokenizers` in 64;
  - the space before a user-defined piece of a model from elsewhere.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from spanbert_jax import json_files
from spanbert_jax.errors import UserError, shortened
from spanbert_jax.text import wordpiece
from spanbert_jax.text.tokenizer import VOCABULARY_FILES, Tokenizer
from spanbert_jax.text.tokenizer_files import CONFIG_FILE, ROLES, TOKENIZER_FILE, prefix_space
from spanbert_jax.text.tokenizer_json import KIND, JsonSettings, whole_engine
from spanbert_jax.text.wordpiece import WordPieceSettings

_SPACE = "▁"
_NORMAL, _USER_DEFINED = 1, 4  # ModelProto.SentencePiece.Type


def write_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int, token_types: bool = True) -> None:
    """Writes tokenizer.json, tokenizer_config.json and vocab.txt or spiece.model into an existing directory.

    max_length: the most ids, special ones included, that transformers keeps when it truncates. token_types: whether the
    model reads token_type_ids, 1 for the second of two texts.
    Raises UserError, before anything is written, for a SentencePiece model that tokenizer.json cannot express.
    """
    names = dict(zip(ROLES, map(tokenizer.piece, tokenizer.special_ids), strict=True))
    if isinstance(tokenizer.settings, JsonSettings):
        content = _serialised(tokenizer, tokenizer.settings, token_types)
    else:
        content = _converted(tokenizer, names, token_types)
    # transformers rebuilds a BertTokenizer from the vocabulary and the settings below. clean_text is not among these
    # settings, so a tokenizer without it needs the other class, which takes tokenizer.json as it is.
    rebuilt = isinstance(tokenizer.settings, WordPieceSettings) and tokenizer.settings.clean_text
    config: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer" if tokenizer.kind == "wordpiece" and rebuilt else "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **names,
    }
    if tokenizer.kind == "wordpiece" and isinstance(tokenizer.settings, WordPieceSettings):
        settings = tokenizer.settings
        config |= {
            "do_lower_case": tokenizer.lowercase,
            "strip_accents": settings.strip_accents,  # null: as do_lower_case
            "tokenize_chinese_chars": settings.handle_chinese_chars,
        }
    space = prefix_space(json_files.parse(content)) if tokenizer.kind == KIND else None
    if space is not None:
        config["add_prefix_space"] = space  # transformers 4 sets it in the tokenizer.json, to false where it is missing
    (directory / VOCABULARY_FILES[tokenizer.kind]).write_bytes(tokenizer.vocabulary)
    (directory / TOKENIZER_FILE).write_bytes(content)
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _converted(tokenizer: Tokenizer, names: dict[str, str], token_types: bool) -> bytes:
    """The tokenizer.json of a WordPiece or a SentencePiece. names: role -> the special piece's name."""
    if isinstance(tokenizer.settings, WordPieceSettings) and tokenizer.kind == "wordpiece":
        lines = wordpiece.read_vocabulary(tokenizer.vocabulary, VOCABULARY_FILES["wordpiece"])
        engine = wordpiece.engine(lines, tokenizer.lowercase, tokenizer.settings)
    else:
        engine = _sentencepiece(tokenizer)
    _add_special(engine, list(names.values()), names["mask_token"] if tokenizer.kind != "wordpiece" else "")
    engine.post_processor = _template(tokenizer, token_types)
    return (engine.to_str(pretty=True) + "\n").encode()


def _serialised(tokenizer: Tokenizer, settings: JsonSettings, token_types: bool) -> bytes:
    """The tokenizer.json as it is given. It is written anew where other files add pieces, where it does not find the
    special pieces in text, and where its rows are not those that the model is trained on, [CLS] A [SEP] B [SEP]."""
    engine = whole_engine(tokenizer.vocabulary, settings, VOCABULARY_FILES[KIND])
    found = {token.content for token in engine.get_added_tokens_decoder().values() if token.special}
    hidden = [name for name in settings.special if name not in found]
    is_ours = _has_our_rows(engine, tokenizer, token_types)
    if is_ours and not hidden and not settings.added:
        return tokenizer.vocabulary
    by_word = isinstance(engine.model, models.WordPiece | models.WordLevel)
    _add_special(engine, hidden, "" if by_word else settings.special[-1])
    if not is_ours:
        engine.post_processor = _template(tokenizer, token_types)
    return (engine.to_str(pretty=True) + "\n").encode()


def _add_special(engine: tokenizers.Tokenizer, names: Sequence[str], strips: str) -> None:
    """Lets the engine find special pieces in text. strips: the piece that takes the space before it, since pieces that
    begin with their space leave a masked word's space to its mask."""
    engine.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False, lstrip=name == strips) for name in names]
    )


def _template(tokenizer: Tokenizer, token_types: bool) -> processors.TemplateProcessing:
    """[CLS] A [SEP] B [SEP], with type 1 for B and the [SEP] after it where the model reads types."""
    second = int(token_types)
    cls, sep = tokenizer.piece(tokenizer.cls_id), tokenizer.piece(tokenizer.sep_id)
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:{second} {sep}:{second}",
        special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
    )


def _has_our_rows(engine: tokenizers.Tokenizer, tokenizer: Tokenizer, token_types: bool) -> bool:
    a = engine.encode("a", add_special_tokens=False).ids
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    one, two = engine.encode("a"), engine.encode("a", "a")
    types = [0] * (len(a) + 2) + [1] * (len(a) + 1)
    ids = one.ids == [cls, *a, sep] and two.ids == [cls, *a, sep, *a, sep]
    return ids and (not token_types or two.type_ids == types)


def differing(tokenizer: Tokenizer, directory: Path, lines: Sequence[str]) -> list[tuple[str, list[int], list[int]]]:
    """The lines to which the directory's tokenizer.json gives other ids: (line, our ids, its ids), without specials.

    Raises UserError where the directory has no tokenizer.json that can be read.
    """
    path = directory / TOKENIZER_FILE
    try:
        exported = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"cannot read {path} ({shortened(error)}); it should be a tokenizer of Hugging Face's library"
        ) from error
    exported.no_truncation()  # A tokenizer.json that is written as it was given may truncate and pad.
    exported.no_padding()
    theirs = [encoding.ids for encoding in exported.encode_batch_fast(lines, add_special_tokens=False)]
    ours = tokenizer.tokenize_batch(lines)
    return [(line, a, b) for line, a, b in zip(lines, ours, theirs, strict=True) if a != b]


def _sentencepiece(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same model as a tokenizer of `tokenizers`. No piece crosses a space, so each word is looked up alone."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.vocabulary)  # type: ignore[attr-defined]
    spec = proto.normalizer_spec
    if proto.trainer_spec.treat_whitespace_as_suffix or not spec.escape_whitespaces:
        raise UserError(
            "this SentencePiece model marks spaces at the end of words, or not at all, which tokenizer.json cannot "
            "express; use a model trained with treat_whitespace_as_suffix=false and escape_whitespaces=true"
        )
    engine = tokenizers.Tokenizer(_unigram(proto) if tokenizer.kind == "unigram" else _bpe(proto))
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # The space at the left stays, because it tells whether a word begins after a mask. Strip is not used, because
        # it removes more than spaces (U+0085).
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
    """The model's pieces as a list of merges. SentencePiece joins the two neighbours that make the piece of the best
    score; so every split of a piece into two pieces is a merge, and the best piece comes first."""
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
