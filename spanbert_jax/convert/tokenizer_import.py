"""Reads others' tokenizers: vocab.txt, SentencePiece's .model, and the files that Hugging Face's libraries write.

Invariant: a tokenizer that is read gives the ids that transformers gives with the same files, except for names of
special pieces written in text. A file that asks for a tokenizer that we cannot follow is refused, and the error names
the setting.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from spanbert_jax.convert.tokenizer_export import CONFIG_FILE, TOKENIZER_FILE
from spanbert_jax.convert.tokenizer_json import TokenizerFiles, added_pieces, check_class, listed_pieces, setting
from spanbert_jax.errors import UserError
from spanbert_jax.text import wordpiece
from spanbert_jax.text.tokenizer import (
    METADATA_FILE,
    SPECIALS,
    VOCABULARY_FILES,
    Tokenizer,
    load_tokenizer,
    sentencepiece_from_model,
)
from spanbert_jax.text.wordpiece import WordPieceSettings

# A vocabulary with capitals in a larger share of its pieces is cased. In BERT's cased English vocabulary 29% of the
# pieces have capitals, in the uncased one none.
_CASED_SHARE = 0.01
_NO_WORD = re.compile(r"\[[A-Za-z]+\d*\]")  # [CLS], [unused7]: their capitals do not count


def read_tokenizer(source: Path) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer of `source`, and lines for people that say how it reads text, and why.

    source: a model's directory, or one file: a vocab.txt, a SentencePiece .model or a tokenizer.json. In a directory
    the first of these counts: the tokenizer that spanbert_tokenizer.json names, spiece.model, the only *.model,
    vocab.txt, a tokenizer.json that holds a WordPiece. Casing, settings and added pieces come from the files beside the
    vocabulary. Raises UserError where there is no vocabulary, or where our tokenizers would give other ids.
    """
    if (source / METADATA_FILE).exists():
        return load_tokenizer(source), ()
    path = _find_vocabulary(source) if source.is_dir() else source
    described = TokenizerFiles.beside(path)
    if path.suffix == ".model":
        tokenizer = sentencepiece_from_model(path)
        _check_sentencepiece_added(tokenizer, path, described)
        return tokenizer, ()
    return _read_wordpiece(path, described)


def _find_vocabulary(directory: Path) -> Path:
    """The vocabulary's file in a directory; raises UserError where there is none, or several *.model."""
    sentencepieces = sorted(directory.glob("*.model"))
    named = directory / VOCABULARY_FILES["unigram"]
    if len(sentencepieces) > 1 and named not in sentencepieces:
        found = ", ".join(path.name for path in sentencepieces)
        raise UserError(f"{directory} has {len(sentencepieces)} SentencePiece models ({found}); name one with --vocab")
    for path in (named, *sentencepieces, directory / VOCABULARY_FILES["wordpiece"], directory / TOKENIZER_FILE):
        if path.exists():
            return path
    raise UserError(
        f"{directory} has no vocabulary (spiece.model, vocab.txt or tokenizer.json); give the one that the model was "
        "trained with: --vocab vocab.txt. SpanBERT's released archives have none, and need that of cased BERT"
    )


def _read_wordpiece(path: Path, described: TokenizerFiles) -> tuple[Tokenizer, tuple[str, ...]]:
    engine = _read_engine(described.directory / TOKENIZER_FILE) if described.serialised else None
    check_class(described)
    if path.name == TOKENIZER_FILE:
        if engine is None:
            raise UserError(f"{path} holds no tokenizer; give the vocab.txt that the model was trained with")
        vocabulary = _vocabulary_of(engine, path)
        pieces = wordpiece.read_vocabulary(vocabulary, str(path))
    else:
        try:
            vocabulary = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); it should be a vocab.txt") from error
        pieces = wordpiece.read_vocabulary(vocabulary, str(path))
        if engine is not None:
            _check_same(pieces, engine, path)
    serialised = _settings_of(engine)
    lowercase, why = _lowercase(pieces, described, serialised["do_lower_case"])
    accents = setting(described, "strip_accents", serialised["strip_accents"])
    chinese = setting(described, "tokenize_chinese_chars", serialised["tokenize_chinese_chars"])
    settings = WordPieceSettings(
        strip_accents=None if accents == lowercase else accents,
        handle_chinese_chars=chinese is not False,
        clean_text=serialised["clean_text"] is not False,
        added=added_pieces(described, pieces, path),
    )
    tokenizer = Tokenizer("wordpiece", vocabulary, lowercase, str(path), settings)
    contrary = [name for name, x in serialised.items() if x is not None and described.config.get(name) not in (None, x)]
    if contrary:
        counts, other = (TOKENIZER_FILE, CONFIG_FILE) if described.takes_json else (CONFIG_FILE, TOKENIZER_FILE)
        why += f" (on {', '.join(contrary)} {other} contradicts {counts}, which counts, as in transformers)"
    return tokenizer, tuple(_notes(settings, why))


def _settings_of(engine: tokenizers.Tokenizer | None) -> dict[str, bool | None]:
    """The settings in a tokenizer.json, None where there is none, under the names that tokenizer_config.json has for
    them (which has no clean_text)."""
    normalizer = engine.normalizer if engine is not None else None
    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
        "clean_text": "clean_text",
    }
    return {name: getattr(normalizer, theirs, None) for name, theirs in names.items()}


def _notes(settings: WordPieceSettings, why: str) -> Iterator[str]:
    """Lines for people: how text is read, and why; then the pieces that the files add to the vocabulary."""
    said = f"Text: {why}"
    if settings.strip_accents is not None:
        said += "; accents are stripped" if settings.strip_accents else "; accents are kept"
    said += "" if settings.handle_chinese_chars else "; Chinese characters are not set apart"
    yield said + ("" if settings.clean_text else "; control characters are kept")
    if settings.added:
        names = ", ".join(repr(piece.content) for piece in settings.added[:5])
        more = ", ..." if len(settings.added) > 5 else ""
        yield f"Added: {len(settings.added)} pieces that are found in text as a whole: {names}{more}"


def _read_engine(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json of any version; raises UserError where it is not BERT's."""
    try:
        engine = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"{path}: the tokenizers library cannot read it ({error}); give the vocab.txt that the model was trained "
            "with, in a directory of its own, --vocab FILE"
        ) from error
    model = engine.model
    if not isinstance(model, WordPiece):
        raise UserError(
            f"{path} holds a {type(model).__name__} model; only BERT's WordPiece can be read from there: give the "
            "vocab.txt or the SentencePiece .model that the model was trained with, --vocab FILE"
        )
    found = {
        "unk_token": (model.unk_token, wordpiece.UNKNOWN),
        "continuing_subword_prefix": (model.continuing_subword_prefix, wordpiece.CONTINUES),
        "max_input_chars_per_word": (model.max_input_chars_per_word, wordpiece.MAX_WORD),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise UserError(f"{path}: {name} is {value!r}; only BERT's {expected!r} can be followed")
    steps = (
        ("normalizer", engine.normalizer, BertNormalizer),
        ("pre_tokenizer", engine.pre_tokenizer, BertPreTokenizer),
    )
    for name, step, expected_step in steps:
        if not isinstance(step, expected_step):
            raise UserError(
                f"{path}: its {name} is {step!r}; only {expected_step.__name__} can be followed, and with another "
                "one this program would give other ids than the model was trained on"
            )
    return engine


def _vocabulary_of(engine: tokenizers.Tokenizer, path: Path) -> bytes:
    """The content of a vocab.txt with the pieces of a tokenizer.json; an id without a piece is an empty line."""
    ids = {piece: i for piece, i in engine.get_vocab(with_added_tokens=False).items() if "\n" not in piece}
    lines = [""] * (max(ids.values(), default=-1) + 1)
    for piece, i in ids.items():
        lines[i] = piece
    vocabulary = "".join(f"{line}\n" for line in lines).encode()
    if wordpiece.read_vocabulary(vocabulary, str(path)) != lines:
        raise UserError(f"{path} has a piece that no vocab.txt can hold; give the vocab.txt of the model, --vocab FILE")
    return vocabulary


def _check_same(pieces: Sequence[str], engine: tokenizers.Tokenizer, path: Path) -> None:
    """Raises UserError where a vocab.txt and the tokenizer.json beside it have different pieces."""
    listed = {piece: i for i, piece in enumerate(pieces) if piece}
    serialised = {
        piece: i
        for piece, i in engine.get_vocab(with_added_tokens=False).items()
        if piece and "\n" not in piece  # No text gets the id of such a piece.
    }
    for piece in sorted(listed.keys() | serialised.keys()):
        here, there = listed.get(piece), serialised.get(piece)
        if here != there:
            raise UserError(
                f"{path} and {TOKENIZER_FILE} beside it are two vocabularies: {piece!r} has the id "
                f"{'(none)' if here is None else here} in the first and {'(none)' if there is None else there} in the "
                "second; remove the one that the model was not trained with"
            )


def _lowercase(pieces: Sequence[str], described: TokenizerFiles, serialised: bool | None) -> tuple[bool, str]:
    """Whether the pieces were made for lowercased text, and why, for people.

    A vocabulary with capitals is cased, whatever tokenizer_config.json says. The reason: transformers lowercases where
    this file is missing, as it is in the released SpanBERT. So many descendants of SpanBERT say do_lower_case true,
    although lowercased text never uses their capitals. For a vocabulary without capitals the files decide, and
    lowercased is the answer where no file says.
    """
    words = [piece for piece in pieces if piece and not _NO_WORD.fullmatch(piece)]
    capitals = sum(piece != piece.lower() for piece in words)
    share = f"{capitals} of {len(words)} pieces have capital letters"
    if capitals > _CASED_SHARE * len(words):
        said = described.config.get("do_lower_case")
        return False, f"cased: {share}" + (f", although {CONFIG_FILE} says do_lower_case true" if said is True else "")
    lowercases = setting(described, "do_lower_case", serialised)
    if lowercases is not None:
        is_config = described.config.get("do_lower_case") is not None and not described.takes_json
        source = CONFIG_FILE if is_config else TOKENIZER_FILE
        return lowercases, f"{'lowercased' if lowercases else 'cased'}: {source} says so"
    return True, f"lowercased: {share}, and no file says otherwise"


def _check_sentencepiece_added(tokenizer: Tokenizer, path: Path, described: TokenizerFiles) -> None:
    """Raises UserError where the files beside a SentencePiece model add pieces that the model would cut."""
    added = [piece.content for piece, _, _ in listed_pieces(described) if piece.content not in SPECIALS]
    if not added:
        return
    from sentencepiece import sentencepiece_model_pb2  # protobuf: only here

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.vocabulary)  # type: ignore[attr-defined]
    whole = {piece.piece for piece in proto.pieces if piece.type in (2, 3, 4)}  # unknown, control, user-defined
    unknown = [content for content in added if content not in whole]
    if unknown:
        raise UserError(
            f"{path.parent}: its files add {len(unknown)} pieces to {path.name} ({', '.join(map(repr, unknown[:3]))}); "
            "only a WordPiece vocabulary takes added pieces: train the SentencePiece with them (user_defined_symbols)"
        )
