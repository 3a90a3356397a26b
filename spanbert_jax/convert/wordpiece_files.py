"""The JSON files beside a WordPiece vocabulary, as transformers reads them: class, settings and added pieces.

Invariant: files that ask for another tokenizer than BERT's are told from BERT's, and the reason names file and field.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from spanbert_jax.errors import UserError, quoted, shortened
from spanbert_jax.text import wordpiece
from spanbert_jax.text.tokenizer import SPECIALS
from spanbert_jax.text.tokenizer_files import (
    CONFIG_FILE,
    GENERAL_CLASS,
    ROLES,
    SPECIAL_FILE,
    TokenizerFiles,
    content,
    listed_pieces,
)
from spanbert_jax.text.wordpiece import AddedPiece

_CLASSES = re.compile(r"(Bert|DistilBert|Electra|MobileBert)Tokenizer(Fast)?")  # all are BERT's tokenizer
_TYPES = ("bert", "distilbert", "electra", "mobilebert")  # the model types whose tokenizer is BERT's by default


def unlike_bert(described: TokenizerFiles, engine: tokenizers.Tokenizer | None) -> str | None:
    """The reason why the files are not those of BERT's WordPiece, by file and field; None where they are.

    engine: the tokenizer in the tokenizer.json, None where there is none.
    """
    for path, name in described.classes():
        if not _CLASSES.fullmatch(name) and not GENERAL_CLASS.fullmatch(name):
            return f"{path}: tokenizer_class is {quoted(name)}"
    for file, fields in ((CONFIG_FILE, described.config), (SPECIAL_FILE, described.special)):
        for role, expected in zip(ROLES, SPECIALS, strict=True):
            if fields.get(role) is not None and content(fields[role]) != expected:
                return f"{described.directory / file}: {role} is {quoted(content(fields[role]))}, not {expected!r}"
    return None if engine is None else _unlike_berts_engine(engine, described.path)


def _unlike_berts_engine(engine: tokenizers.Tokenizer, path: Path) -> str | None:
    model = engine.model
    if not isinstance(model, WordPiece):
        return f"{path} holds a {type(model).__name__} model, not BERT's WordPiece"
    settings = {
        "unk_token": (model.unk_token, wordpiece.UNKNOWN),
        "continuing_subword_prefix": (model.continuing_subword_prefix, wordpiece.CONTINUES),
        "max_input_chars_per_word": (model.max_input_chars_per_word, wordpiece.MAX_WORD),
    }
    for name, (value, expected) in settings.items():
        if value != expected:
            return f"{path}: {name} is {quoted(value)}, not BERT's {expected!r}"
    for name, step, kind in (
        ("normalizer", engine.normalizer, BertNormalizer),
        ("pre_tokenizer", engine.pre_tokenizer, BertPreTokenizer),
    ):
        if not isinstance(step, kind):
            return f"{path}: its {name} is {quoted(step)}, not BERT's {kind.__name__}"
    return None


def rebuilds_bert(described: TokenizerFiles) -> bool:
    """Whether the files name a class for which transformers 5 builds BERT's tokenizer from the vocabulary alone."""
    names = [name for _, name in described.classes()]
    if names:
        return bool(_CLASSES.fullmatch(names[0])) and not described.takes_json
    return described.model.get("model_type") in _TYPES


def setting(described: TokenizerFiles, name: str, serialised: bool | None) -> bool | None:
    """The value of a setting by the files; None where no file has it.

    serialised: the value in tokenizer.json. Where tokenizer_config.json and tokenizer.json contradict each other, the
    first counts, because transformers rebuilds BERT's tokenizer from it; for a class that takes a tokenizer.json as it
    is, the second counts. Raises UserError where the value is neither true nor false.
    """
    said = described.config.get(name)
    if said is not None and not isinstance(said, bool):
        raise UserError(f"{described.directory / CONFIG_FILE}: {name} is {quoted(said)}; expected true or false")
    return serialised if said is None or (described.takes_json and serialised is not None) else said


def added_pieces(described: TokenizerFiles, pieces: Sequence[str], path: Path) -> tuple[AddedPiece, ...]:
    """The pieces that the files add to those of the vocabulary, in the order of their ids.

    pieces: the vocabulary's, in the order of their ids. path: the vocabulary, for messages. Raises UserError where a
    file gives an added piece another id than transformers does, or where two files add a piece in different ways.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    added: dict[str, AddedPiece] = {}
    following = len(pieces)
    for piece, given, file in sorted(listed_pieces(described), key=lambda row: (row[1] is None, row[1] or 0)):
        if piece.content in SPECIALS:
            continue
        if piece.content not in ids:
            ids[piece.content] = following
            following += 1
        if given not in (None, ids[piece.content]):
            raise UserError(
                f"{described.directory / file}: the added piece {quoted(piece.content)} has the id {quoted(given)}, "
                f"and after the pieces of {path.name} it gets {ids[piece.content]}; correct the id, or give the "
                "vocabulary that the piece was added to (--vocab)"
            )
        if added.setdefault(piece.content, piece) != piece:
            raise UserError(
                f"{described.directory}: its files add {quoted(piece.content)} in two ways, "
                f"{shortened(str(added[piece.content]))} and {shortened(str(piece))}; correct the wrong one"
            )
    return tuple(sorted(added.values(), key=lambda piece: ids[piece.content]))
