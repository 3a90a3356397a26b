"""The JSON files beside a vocabulary, as transformers reads them: class, settings and added pieces of a tokenizer.

Invariant: a file that asks for another tokenizer than BERT's is refused, and the error names the file and the field.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spanbert_jax.convert.tokenizer_export import CONFIG_FILE, TOKENIZER_FILE
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import SPECIALS
from spanbert_jax.text.wordpiece import AddedPiece

_ADDED_FILE, _SPECIAL_FILE = "added_tokens.json", "special_tokens_map.json"
_ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
_CLASSES = re.compile(r"(Bert|DistilBert|Electra|MobileBert)Tokenizer(Fast)?")  # all are BERT's tokenizer
_TAKES_JSON = re.compile(r"PreTrainedTokenizerFast|TokenizersBackend")  # take a tokenizer.json as it is


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The JSON files beside a vocabulary; an empty dict for each that is missing."""

    directory: Path
    config: dict[str, Any]  # tokenizer_config.json
    serialised: dict[str, Any]  # tokenizer.json
    special: dict[str, Any]  # special_tokens_map.json
    added: dict[str, Any]  # added_tokens.json: content -> id

    @property
    def takes_json(self) -> bool:
        """Whether transformers takes the tokenizer.json as it is."""
        return bool(_TAKES_JSON.fullmatch(str(self.config.get("tokenizer_class"))))

    @classmethod
    def beside(cls, vocabulary: Path) -> "TokenizerFiles":
        """Reads the files in the vocabulary's directory; raises UserError where one is no JSON object."""
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


def check_class(described: TokenizerFiles) -> None:
    """Raises UserError for a tokenizer that is not BERT's WordPiece as `tokenizers` has it."""
    files = {CONFIG_FILE: described.config, _SPECIAL_FILE: described.special}
    model = described.directory / "config.json"
    classes = {CONFIG_FILE: described.config, model.name: _read_json(model) if model.exists() else {}}
    for file, content in classes.items():
        name = content.get("tokenizer_class")
        if name is not None and not any(known.fullmatch(str(name)) for known in (_CLASSES, _TAKES_JSON)):
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


def setting(described: TokenizerFiles, name: str, serialised: bool | None) -> bool | None:
    """The value of a setting by the files; None where no file has it.

    serialised: the value in tokenizer.json. Where tokenizer_config.json and tokenizer.json contradict each other, the
    first counts, because transformers rebuilds BERT's tokenizer from it; for a class that takes a tokenizer.json as it
    is, the second counts. Raises UserError where the value is neither true nor false.
    """
    said = described.config.get(name)
    if said is not None and not isinstance(said, bool):
        raise UserError(f"{described.directory / CONFIG_FILE}: {name} is {said!r}; expected true or false")
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
                f"{described.directory / file}: the added piece {piece.content!r} has the id {given}, and after the "
                f"pieces of {path.name} it gets {ids[piece.content]}; correct the id, or give the vocabulary that the "
                "piece was added to (--vocab)"
            )
        if added.setdefault(piece.content, piece) != piece:
            raise UserError(
                f"{described.directory}: its files add {piece.content!r} in two ways, {added[piece.content]} and "
                f"{piece}; correct the wrong one"
            )
    return tuple(sorted(added.values(), key=lambda piece: ids[piece.content]))


def listed_pieces(described: TokenizerFiles) -> Iterator[tuple[AddedPiece, int | None, str]]:
    """(added piece, its id, the file that adds it), as transformers 5.23 collects them.

    Pieces that are special by name alone come last, with None for the id. Raises UserError where a file's entries
    cannot be read.
    """
    config, decoder = described.config, described.config.get("added_tokens_decoder")
    # special_tokens_map.json and added_tokens.json are older than added_tokens_decoder, and are read only without it.
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
            # additional_special_tokens is left out here: transformers 5.23 looks for its new name alone.
            names = set(map(_content, [*(named[role] for role in roles), *(named.get("extra_special_tokens") or ())]))
            for content, i in described.added.items():
                if content not in known:
                    known.add(content)
                    yield _added_piece({"content": content, "special": content in names}), int(i), _ADDED_FILE
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{described.directory}: its files have added pieces that cannot be read ({error!r}); correct them, or "
            "give the vocabulary in a directory of its own (--vocab)"
        ) from error
    for token in special:
        if _content(token) not in known:
            known.add(_content(token))
            fields = token if isinstance(token, dict) else {"content": token}
            yield _added_piece(fields | {"special": True}), None, _SPECIAL_FILE


def _added_piece(fields: dict[str, Any]) -> AddedPiece:
    """The piece of an AddedToken's fields. As in `tokenizers`, special pieces are by default looked for in the text
    before normalization."""
    flags = {name: bool(fields.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
    return AddedPiece(str(fields["content"]), normalized=bool(fields.get("normalized", not flags["special"])), **flags)
