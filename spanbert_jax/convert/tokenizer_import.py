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

from spanbert_jax.convert.wordpiece_files import added_pieces, rebuilds_bert, setting, unlike_bert
from spanbert_jax.errors import UserError, listed, quoted
from spanbert_jax.text import wordpiece
from spanbert_jax.text.tokenizer import (
    METADATA_FILE,
    SPECIALS,
    VOCABULARY_FILES,
    Tokenizer,
    load_tokenizer,
    sentencepiece_from_model,
)
from spanbert_jax.text.tokenizer_files import (
    CONFIG_FILE,
    GENERAL_CLASS,
    TOKENIZER_FILE,
    TokenizerFiles,
    listed_pieces,
    prefix_space,
    refuse_code,
    serialised_tokenizer,
)
from spanbert_jax.text.tokenizer_json import read_engine
from spanbert_jax.text.wordpiece import WordPieceSettings

# A vocabulary with capitals in a larger share of its pieces is cased. In BERT's cased English vocabulary 29% of the
# pieces have capitals, in the uncased one none.
_CASED_SHARE = 0.01
_NO_WORD = re.compile(r"\[[A-Za-z]+\d*\]")  # [CLS], [unused7]: their capitals do not count


def read_tokenizer(source: Path) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer of `source`, and lines for people that say how it reads text, and why.

    source: a model's directory, or one file: a vocab.txt, a SentencePiece .model or a tokenizer.json. In a directory
    the first of these counts: the tokenizer that spanbert_tokenizer.json names, spiece.model, the only *.model,
    vocab.txt, tokenizer.json. Where SentencePiece or BERT's WordPiece would give other ids than the files ask for,
    tokenizer.json counts. Casing, settings, special and added pieces come from the files beside the vocabulary. Raises
    UserError where there is no vocabulary, or none that can be followed.
    """
    if (source / METADATA_FILE).exists():
        return load_tokenizer(source), ()
    path = _find_vocabulary(source) if source.is_dir() else source
    described = TokenizerFiles.beside(path)
    if path.suffix == ".model":
        refuse_code(described)
        reason = _unlike_sentencepiece(described)
        if reason and source.is_dir() and described.serialised:
            return _read_json(described)
        if reason:
            raise UserError(_without_json(reason, "SentencePiece's own ids"))
        try:
            tokenizer = sentencepiece_from_model(path)
            _check_sentencepiece_added(tokenizer, path, described)
        except UserError:  # for example because the special pieces are not BERT's, as in XLM-RoBERTa
            if not source.is_dir() or not described.serialised:
                raise
            return _read_json(described)
        return tokenizer, ()
    return _read_words(path, described, source.is_dir())


def _unlike_sentencepiece(described: TokenizerFiles) -> str:
    """Why the files beside a SentencePiece model ask for other ids than the model's; "" where they do not."""
    for file, name in described.classes():
        if not GENERAL_CLASS.fullmatch(name):
            return f"{file}: tokenizer_class is {quoted(name)}, which may change text before SentencePiece reads it"
    if described.config.get("do_lower_case") is True:
        return f"{described.directory / CONFIG_FILE}: do_lower_case is true, and SentencePiece reads text as it is"
    return ""


def _read_json(described: TokenizerFiles) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer of the tokenizer.json, and lines for people."""
    tokenizer = serialised_tokenizer(described)
    names = ", ".join(f"{tokenizer.piece(i)} {i}" for i in tokenizer.special_ids)
    notes = [f"Text: as {described.path.name} says, a {described.model_type} model; special pieces {names}"]
    if rebuilds_bert(described):
        notes.append(
            f"Text: transformers 5 reads the pieces of {described.path.name} alone and splits text as BERT does, "
            "because of the tokenizer's class; this program follows the file, as transformers 4 did"
        )
    said, there = described.config.get("add_prefix_space"), prefix_space(described.serialised)
    if said is not None and there is not None and bool(said) != there:
        notes.append(f"Text: {described.path.name} contradicts add_prefix_space in {CONFIG_FILE}, and counts")
    return tokenizer, tuple(notes)


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
    described = TokenizerFiles.beside(directory / TOKENIZER_FILE)
    refuse_code(described)
    reason = unlike_bert(described, None)
    if reason:
        raise UserError(_without_json(reason))
    raise UserError(
        f"{directory} has no vocabulary (spiece.model, vocab.txt or tokenizer.json); put the one that the model was "
        "trained with beside the weights, or import them with it: python tools/convert_from_pytorch.py --input WEIGHTS "
        "--vocab vocab.txt --output DIRECTORY. SpanBERT's released archives have none, and need that of cased BERT"
    )


def _read_words(path: Path, described: TokenizerFiles, may_choose: bool) -> tuple[Tokenizer, tuple[str, ...]]:
    """BERT's WordPiece of a vocab.txt or a tokenizer.json; where the files are not BERT's, that of the tokenizer.json.

    may_choose: whether the tokenizer.json may be read where `path` is a vocab.txt.
    """
    engine = read_engine(described.path.read_bytes(), str(described.path)) if described.serialised else None
    refuse_code(described)
    reason = unlike_bert(described, engine)
    if path == described.path:
        if engine is None:
            raise UserError(f"{path} holds no tokenizer; give the vocab.txt that the model was trained with")
        if reason:
            return _read_json(described)
        vocabulary = _vocabulary_of(engine, path)
        return _wordpiece(path, described, vocabulary, wordpiece.read_vocabulary(vocabulary, str(path)), engine)
    try:
        vocabulary = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); it should be a vocab.txt") from error
    pieces = wordpiece.read_vocabulary(vocabulary, str(path))
    if engine is not None and isinstance(engine.model, WordPiece):
        _check_same(pieces, engine, path)
    if reason and engine is None:
        raise UserError(_without_json(reason))
    if reason and not may_choose:
        raise UserError(f"{reason}, so {path.name} alone does not say how text is read; give {described.path}")
    return _read_json(described) if reason else _wordpiece(path, described, vocabulary, pieces, engine)


def _without_json(reason: str, what: str = "BERT's tokenizer") -> str:
    """The message for a tokenizer that is not `what`, for a reason, and has no tokenizer.json."""
    return (
        f"{reason}; without a {TOKENIZER_FILE} only {what} can be followed: let transformers write one, "
        "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
    )


def _wordpiece(
    path: Path, described: TokenizerFiles, vocabulary: bytes, pieces: Sequence[str], engine: tokenizers.Tokenizer | None
) -> tuple[Tokenizer, tuple[str, ...]]:
    """BERT's WordPiece with the pieces of a vocabulary, and the settings that the files have."""
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
                f"{path} and {TOKENIZER_FILE} beside it are two vocabularies: {quoted(piece)} has the id "
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
            f"{path.parent}: its files add {len(unknown)} pieces to {path.name} ({listed([*map(repr, unknown)], 3)}); "
            "only a WordPiece vocabulary takes added pieces: train the SentencePiece with them (user_defined_symbols)"
        )
