"""Reads others' tokenizers: vocab.txt, SentencePiece's .model, and the files that Hugging Face's libraries write.

Invariant: a tokenizer that is read gives the ids that transformers gives for the same files, special pieces written in
text apart. A file that asks for anything else is refused, with the name of what it asks for.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from spanbert_jax.convert.tokenizer_export import CONFIG_FILE, TOKENIZER_FILE
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
from spanbert_jax.text.wordpiece import AddedPiece, WordPieceSettings

_ADDED_FILE, _SPECIAL_FILE = "added_tokens.json", "special_tokens_map.json"
_ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
# BERT's tokenizer under all its names, and the class that takes a tokenizer.json as it is.
_CLASSES = re.compile(r"((Bert|DistilBert|Electra|MobileBert)Tokenizer|PreTrainedTokenizer)(Fast)?|TokenizersBackend")
# BERT's cased English vocabulary has capitals in 29% of its pieces, the uncased one in none.
_CASED_SHARE = 0.01


def read_tokenizer(source: Path) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer of a model's directory, or of one file: a vocab.txt, a SentencePiece .model or a tokenizer.json;
    and lines for people: how its text is read, and why.

    In a directory: the tokenizer that spanbert_tokenizer.json names, spiece.model or the one *.model, vocab.txt, or a
    tokenizer.json that holds a WordPiece. Casing, settings and added pieces come from the files beside the vocabulary.
    Raises UserError where there is no vocabulary, or where our tokenizers would give other ids.
    """
    if (source / METADATA_FILE).exists():
        return load_tokenizer(source), ()
    path = _find_vocabulary(source) if source.is_dir() else source
    described = _Described.beside(path)
    if path.suffix == ".model":
        tokenizer = sentencepiece_from_model(path)
        _check_sentencepiece_added(tokenizer, path, described)
        return tokenizer, ()
    return _read_wordpiece(path, described)


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


@dataclasses.dataclass(frozen=True)
class _Described:
    """The JSON files beside a vocabulary; an empty dict for each that is missing."""

    directory: Path
    config: dict[str, Any]
    serialised: dict[str, Any]  # tokenizer.json
    special: dict[str, Any]
    added: dict[str, Any]

    @classmethod
    def beside(cls, vocabulary: Path) -> "_Described":
        names = (CONFIG_FILE, TOKENIZER_FILE, _SPECIAL_FILE, _ADDED_FILE)
        paths = (vocabulary.parent / name for name in names)
        return cls(vocabulary.parent, *(_read_json(path) if path.exists() else {} for path in paths))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON ({error}); restore it, or remove it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds JSON, but no object; restore it, or remove it")
    return content


def _read_wordpiece(path: Path, described: _Described) -> tuple[Tokenizer, tuple[str, ...]]:
    engine = _read_engine(described.directory / TOKENIZER_FILE) if described.serialised else None
    _check_config(described)
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
    normalizer = engine.normalizer if engine is not None else None
    lowercase, why = _lowercase(pieces, described, normalizer)
    accents = _setting(described, "strip_accents", normalizer and normalizer.strip_accents)
    settings = WordPieceSettings(
        strip_accents=None if accents == lowercase else accents,
        handle_chinese_chars=_setting(
            described, "tokenize_chinese_chars", normalizer and normalizer.handle_chinese_chars
        )
        is not False,
        clean_text=normalizer is None or normalizer.clean_text,
        added=_added_pieces(described, pieces, path),
    )
    tokenizer = Tokenizer("wordpiece", vocabulary, lowercase, str(path), settings)
    return tokenizer, tuple(_notes(settings, why))


def _notes(settings: WordPieceSettings, why: str) -> Iterator[str]:
    said = f"Text: {why}"
    if settings.strip_accents is not None:
        said += "; accents are stripped" if settings.strip_accents else "; accents are kept"
    said += "" if settings.handle_chinese_chars else "; Chinese characters are not set apart"
    yield said + ("" if settings.clean_text else "; control characters are kept")
    if settings.added:
        names = ", ".join(repr(piece.content) for piece in settings.added[:5])
        yield f"Added: {len(settings.added)} pieces that are found in text as a whole: {names}" + (
            ", ..." if len(settings.added) > 5 else ""
        )


def _read_engine(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json, of whatever version; raises UserError where it is not BERT's."""
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


def _check_config(described: _Described) -> None:
    """Raises UserError for a tokenizer that is not BERT's WordPiece as `tokenizers` has it."""
    files = {CONFIG_FILE: described.config, _SPECIAL_FILE: described.special}
    model = described.directory / "config.json"
    classes = {CONFIG_FILE: described.config, model.name: _read_json(model) if model.exists() else {}}
    for file, content in classes.items():
        name = content.get("tokenizer_class")
        if name is not None and not _CLASSES.fullmatch(str(name)):
            raise UserError(
                f"{described.directory / file}: tokenizer_class is {name!r}; only BERT's tokenizer can be followed"
            )
    for file, content in files.items():
        for role, expected in _ROLES.items():
            if content.get(role) is not None and _content(content[role]) != expected:
                raise UserError(
                    f"{described.directory / file}: {role} is {_content(content[role])!r}; only {expected!r} can be "
                    "followed"
                )
    never_split = set(map(str, described.config.get("never_split") or ())) - set(SPECIALS)
    unusual = {
        "do_basic_tokenize false": described.config.get("do_basic_tokenize") is False,
        "split_special_tokens true": described.config.get("split_special_tokens") is True,
        f"never_split {sorted(never_split)}": bool(never_split),
    }
    for name, is_asked in unusual.items():
        if is_asked:
            raise UserError(
                f"{described.directory / CONFIG_FILE}: {name} cannot be followed; remove it there if the model was "
                "trained without it"
            )


def _content(token: Any) -> str:
    """The text of a token that a file gives as a string or as the fields of an AddedToken."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _vocabulary_of(engine: tokenizers.Tokenizer, path: Path) -> bytes:
    """The vocab.txt of a tokenizer.json; an id that no piece has is an empty line."""
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
        if piece and "\n" not in piece  # an id that no text gets
    }
    for piece in sorted(listed.keys() | serialised.keys()):
        here, there = listed.get(piece), serialised.get(piece)
        if here != there:
            raise UserError(
                f"{path} and {TOKENIZER_FILE} beside it are two vocabularies: {piece!r} has the id "
                f"{'(none)' if here is None else here} in the first and {'(none)' if there is None else there} in the "
                "second; remove the one that the model was not trained with"
            )


def _setting(described: _Described, name: str, serialised: bool | None) -> bool | None:
    """What the files say of a setting; raises UserError where tokenizer_config.json and tokenizer.json contradict each
    other."""
    said = described.config.get(name)
    if said is not None and not isinstance(said, bool):
        raise UserError(f"{described.directory / CONFIG_FILE}: {name} is {said!r}; expected true or false")
    if said is not None and serialised is not None and said != serialised:
        raise UserError(
            f"{described.directory / CONFIG_FILE} says {name} {str(said).lower()}, and the normalizer in "
            f"{TOKENIZER_FILE} the contrary; correct the one that the model was not trained with"
        )
    return serialised if said is None else said


def _lowercase(pieces: Sequence[str], described: _Described, normalizer: Any) -> tuple[bool, str]:
    """Whether the pieces were made for lowercased text; and why, for people.

    A vocabulary with capitals is cased whatever tokenizer_config.json says: without that file transformers
    lowercases, so the released SpanBERT, which lacks the file, has many descendants that say do_lower_case true and
    whose capitals are never used. Elsewhere the files decide, and without a word in them, the missing capitals.
    """
    words = [
        piece for piece in pieces if piece and not re.fullmatch(r"\[[A-Za-z]+\d*\]", piece)
    ]  # not [CLS], [unused7]
    capitals = sum(piece != piece.lower() for piece in words)
    share = f"{capitals} of {len(words)} pieces have capital letters"
    if capitals > _CASED_SHARE * len(words):
        said = described.config.get("do_lower_case")
        return False, f"cased: {share}" + (f", although {CONFIG_FILE} says do_lower_case true" if said is True else "")
    setting = _setting(described, "do_lower_case", normalizer and normalizer.lowercase)
    if setting is not None:
        source = CONFIG_FILE if described.config.get("do_lower_case") is not None else TOKENIZER_FILE
        return setting, f"{'lowercased' if setting else 'cased'}: {source} says so"
    return True, f"lowercased: {share}, and no file says otherwise"


def _added_pieces(described: _Described, pieces: Sequence[str], path: Path) -> tuple[AddedPiece, ...]:
    """The pieces that the files add to those of the vocabulary, in the order of their ids.

    Raises UserError where an added piece's id is not the one that transformers gives it.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    added: list[AddedPiece] = []
    following = len(pieces)
    for piece, given, file in sorted(_listed_pieces(described), key=lambda row: (row[1] is None, row[1] or 0)):
        if piece.content in SPECIALS:
            continue
        if piece.content not in ids:
            ids[piece.content] = following
            following += 1
        if given not in (None, ids[piece.content]):
            raise UserError(
                f"{described.directory / file}: the added piece {piece.content!r} has the id {given}, and after the "
                f"pieces of {path.name} it gets {ids[piece.content]}; correct the id, or give the vocabulary that the "
                "piece was added to (--vocab)"
            )
        if piece not in added:
            added.append(piece)
    twice = [piece.content for piece in added if sum(piece.content == other.content for other in added) > 1]
    if twice:
        raise UserError(f"{described.directory}: its files add {twice[0]!r} in two ways; correct the wrong one")
    return tuple(sorted(added, key=lambda piece: ids[piece.content]))


def _listed_pieces(described: _Described) -> Iterator[tuple[AddedPiece, int | None, str]]:
    """(added piece, its id, the file that says so), as transformers 5.23 collects them. Pieces that are special by name
    alone have no id: they come last."""
    config, decoder = described.config, described.config.get("added_tokens_decoder")
    # special_tokens_map.json and added_tokens.json are older than added_tokens_decoder, and read without it alone.
    named = config if decoder is not None else config | {k: v for k, v in described.special.items() if v is not None}
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or ()
    roles = sorted(name for name, value in named.items() if name.endswith("_token") and isinstance(value, str | dict))
    special = [named[name] for name in roles] + [*(extra.values() if isinstance(extra, dict) else extra)]
    known: set[str] = set()
    try:
        for token in described.serialised.get("added_tokens") or ():
            known.add(token["content"])
            yield _added_piece(token), int(token["id"]), TOKENIZER_FILE
        for i, token in (decoder or {}).items():
            known.add(token["content"])
            yield _added_piece(token), int(i), CONFIG_FILE
        if decoder is None:
            # Not those of additional_special_tokens: transformers 5.23 looks for its new name alone here.
            names = {_content(named[role]) for role in roles} | set(
                map(_content, named.get("extra_special_tokens") or ())
            )
            for content, i in described.added.items():
                if content not in known:
                    known.add(content)
                    yield _added_piece({"content": content, "special": content in names}), int(i), _ADDED_FILE
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{described.directory}: added pieces that cannot be read ({error!r})") from error
    for token in special:
        if _content(token) not in known:
            known.add(_content(token))
            fields = token if isinstance(token, dict) else {"content": token}
            yield _added_piece(fields | {"special": True}), None, _SPECIAL_FILE


def _added_piece(fields: dict[str, Any]) -> AddedPiece:
    """The piece of an AddedToken's fields; like there, a special piece is by default sought in text as it is given."""
    flags = {name: bool(fields.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
    return AddedPiece(str(fields["content"]), normalized=bool(fields.get("normalized", not flags["special"])), **flags)


def _check_sentencepiece_added(tokenizer: Tokenizer, path: Path, described: _Described) -> None:
    """Raises UserError where the files beside a SentencePiece model add pieces that the model does not find whole."""
    added = [piece.content for piece, _, _ in _listed_pieces(described) if piece.content not in SPECIALS]
    if not added:
        return
    from sentencepiece import sentencepiece_model_pb2  # protobuf: only here

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.vocabulary)  # type: ignore[attr-defined]
    whole = {piece.piece for piece in proto.pieces if piece.type in (2, 3, 4)}  # unknown, control, user-defined
    unknown = [content for content in added if content not in whole]
    if unknown:
        raise UserError(
            f"{path.parent}: its files add {len(unknown)} pieces to {path.name} ({', '.join(map(repr, unknown[:3]))}); "
            "pieces can be added to a WordPiece alone: train the SentencePiece with them (user_defined_symbols)"
        )
