"""The files of others' tokenizers, as transformers reads them: special pieces, added pieces, and any tokenizer.json.

Invariant: a tokenizer.json is followed exactly, with the pieces and names that the files beside it add. A tokenizer
that cannot be followed is refused, and the error names the file and the field.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from spanbert_jax import json_files
from spanbert_jax.errors import UserError, quoted, reason, shortened
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from spanbert_jax.text.tokenizer_json import KIND, JsonSettings, read_engine, steps, whole_engine
from spanbert_jax.text.wordpiece import AddedPiece

TOKENIZER_FILE, CONFIG_FILE, MODEL_FILE = "tokenizer.json", "tokenizer_config.json", "config.json"
ADDED_FILE, SPECIAL_FILE = "added_tokens.json", "special_tokens_map.json"
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # in the order of SPECIALS
_OTHER_NAMES = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # RoBERTa's, in the same order
_FIELDS = dataclasses.fields(AddedPiece)
# The classes of transformers that take a tokenizer.json as it is.
GENERAL_CLASS = re.compile(r"PreTrainedTokenizerFast|TokenizersBackend")
# Classes of transformers 5.23 whose splitting of text is code in Python, with or without a tokenizer.json.
_IN_PYTHON = re.compile(
    "(Bartpho|BertGeneration|BertJapanese|Bertweet|BioGpt|BlenderbotSmall|ByT5|CTRL|Canine|CpmAnt|Cpm|Esm|FSMT|Flaubert"
    "|GPTNeoXJapanese|GPTSw3|M2M100|Marian|MyT5|PLBart|Perceiver|Phobert|ProphetNet|RoCBert|Siglip|Speech2Text|SpeechT5"
    "|Tapas|XLM)Tokenizer|BertTokenizerLegacy"
)


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The JSON files beside a vocabulary; an empty dict for each that is missing."""

    directory: Path
    config: dict[str, Any]  # tokenizer_config.json
    path: Path  # the file of `serialised`: tokenizer.json, or a vocabulary of another name that ends in .json
    serialised: dict[str, Any]
    special: dict[str, Any]  # special_tokens_map.json
    added: dict[str, Any]  # added_tokens.json: content -> id
    model: dict[str, Any]  # config.json

    @classmethod
    def beside(cls, vocabulary: Path) -> "TokenizerFiles":
        """Reads the files in the vocabulary's directory; raises UserError where one is no JSON object."""
        folder = vocabulary.parent
        path = vocabulary if vocabulary.suffix == ".json" else folder / TOKENIZER_FILE
        config, serialised, *others = (
            _read_json(file) if file.exists() else {}
            for file in (folder / CONFIG_FILE, path, folder / SPECIAL_FILE, folder / ADDED_FILE, folder / MODEL_FILE)
        )
        return cls(folder, config, path, serialised, *others)

    @property
    def named(self) -> dict[str, Any]:
        """tokenizer_config.json with the special pieces that special_tokens_map.json names. That file and
        added_tokens.json are older than added_tokens_decoder, and transformers reads them only without it."""
        if self.config.get("added_tokens_decoder") is not None:
            return self.config
        return self.config | {name: value for name, value in self.special.items() if value is not None}

    @property
    def takes_json(self) -> bool:
        """Whether transformers takes the tokenizer.json as it is, and does not build the tokenizer of a class anew."""
        is_general = GENERAL_CLASS.fullmatch(str(self.config.get("tokenizer_class")))
        return bool(is_general) or str(self.model.get("model_type")).startswith("modernbert")

    @property
    def model_type(self) -> str:
        """The type of the model in the tokenizer.json, "WordPiece", "BPE", "Unigram" or "WordLevel"."""
        return str(self.serialised["model"].get("type") or "WordPiece")  # files of 2020 do not name BERT's

    def classes(self) -> Iterator[tuple[Path, str]]:
        """(file, the class of the tokenizer that the file names), for each file that names one."""
        for file, fields in ((CONFIG_FILE, self.config), (MODEL_FILE, self.model)):
            if fields.get("tokenizer_class") is not None:
                yield self.directory / file, str(fields["tokenizer_class"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json_files.read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON ({shortened(error)}); restore it, or remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds JSON, but no object; restore it, or remove it")
    return found


def tokenizer_json_from_file(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json of any kind, with the pieces and names that the files beside it add.

    Raises UserError where the file cannot be read or followed, or where a special piece is missing.
    """
    if not Path(path).is_file():
        raise UserError(f"cannot read {path}; it should be a tokenizer.json")
    return serialised_tokenizer(TokenizerFiles.beside(Path(path)))


def serialised_tokenizer(described: TokenizerFiles) -> Tokenizer:
    """The tokenizer of `described.path`; raises UserError as `tokenizer_json_from_file`."""
    refuse_code(described)
    mapped = described.config.get("auto_map") or ()
    code = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped
    if code and any([code] if isinstance(code, str) else code):
        raise UserError(
            f"{described.directory / CONFIG_FILE}: auto_map names {quoted(code)}, code of the model's own, which is "
            "not run; remove it there if tokenizer.json gives the same pieces"
        )
    _check_prefix_space(described)
    path = described.path
    vocabulary = path.read_bytes()
    there = read_engine(vocabulary, str(path)).get_added_tokens_decoder().values()
    known = [AddedPiece(**{field.name: getattr(one, field.name) for field in _FIELDS}) for one in there]
    # transformers adds the pieces in the order of the ids that the files give them, special names without id last.
    listed = sorted(listed_pieces(described), key=lambda row: (row[1] is None, row[1] or 0))
    added = tuple(dict.fromkeys(piece for piece, _, _ in listed if piece not in known))
    engine = whole_engine(vocabulary, JsonSettings((), added), str(path))
    for piece, given, file in listed:
        found = engine.token_to_id(piece.content)
        if given not in (None, found):
            raise UserError(
                f"{described.directory / file}: the added piece {quoted(piece.content)} has the id {quoted(given)}, "
                f"and the tokenizers library gives it {found}; correct the id"
            )
    return Tokenizer(KIND, vocabulary, False, str(path), JsonSettings(_special_names(described, engine), added))


def refuse_code(described: TokenizerFiles) -> None:
    """Raises UserError where text is split by code, or by a setting, that no tokenizer.json has."""
    for file, name in described.classes():
        if _IN_PYTHON.fullmatch(name):
            raise UserError(
                f"{file}: tokenizer_class is {quoted(name)}, which splits text in Python and cannot be followed"
            )
    config = described.config
    given = config.get("never_split") or []
    never_split = set(map(str, given if isinstance(given, list) else [given])) - set(SPECIALS)
    unusual = {
        "do_basic_tokenize false": config.get("do_basic_tokenize") is False,
        "split_special_tokens true": config.get("split_special_tokens") is True,
        f"never_split {quoted(sorted(never_split))}": bool(never_split),
    }
    for name, is_asked in unusual.items():
        if is_asked:
            raise UserError(
                f"{described.directory / CONFIG_FILE}: {name} cannot be followed; remove it there if the model was "
                "trained without it"
            )


def prefix_space(spec: dict[str, Any]) -> bool | None:
    """Whether a tokenizer.json puts a space before a text; None where its words have no spaces."""
    for step in steps(spec.get("pre_tokenizer")):
        if step["type"] in ("ByteLevel", "Metaspace"):
            scheme = step.get("prepend_scheme")
            return bool(step.get("add_prefix_space", True)) if scheme is None else scheme != "never"
    return None


def _check_prefix_space(described: TokenizerFiles) -> None:
    """Raises UserError where transformers would build a tokenizer with another prefix space than the tokenizer.json."""
    said, there = described.config.get("add_prefix_space"), prefix_space(described.serialised)
    if said is not None and there is not None and bool(said) != there and not described.takes_json:
        raise UserError(
            f"{described.directory / CONFIG_FILE}: add_prefix_space is {quoted(said)}, and {described.path.name} has "
            f"{there}; correct the one that the model was not trained with"
        )


def _special_names(described: TokenizerFiles, engine: tokenizers.Tokenizer) -> tuple[str, ...]:
    """The names of the special pieces, in the order of ROLES."""
    said = _said_in_json(described.serialised)
    found: dict[str, str] = {}
    for role, *usual in zip(ROLES, SPECIALS, _OTHER_NAMES, strict=True):
        known = [name for name in usual if engine.token_to_id(name) is not None]
        if described.named.get(role):
            found[role] = content(described.named[role])
        elif role in said or len(known) == 1:
            found[role] = said.get(role) or known[0]
    missing = {role: name for role, name in zip(ROLES, SPECIALS, strict=True) if role not in found}
    if missing:
        raise UserError(
            f"{described.path} does not say which pieces are {', '.join(missing)}; name pieces of it in {CONFIG_FILE} "
            f"beside it, or new ones: {json.dumps(missing)}"
        )
    for role, name in found.items():
        same = [other for other in found if found[other] == name and other != role]
        if same:
            raise UserError(
                f"{described.path}: {quoted(name)} is {role} and {same[0]}; name another piece for one of them in "
                f"{CONFIG_FILE} beside it"
            )
    return tuple(found[role] for role in ROLES)


def _said_in_json(spec: dict[str, Any]) -> dict[str, str]:
    """Role -> name, for the roles that a tokenizer.json's post-processor, model and padding name."""
    said: dict[str, str] = {}
    for step in steps(spec.get("post_processor")):
        if "cls" in step:  # of BERT and RoBERTa
            said |= {"cls_token": step["cls"][0], "sep_token": step["sep"][0]}
        elif step["type"] == "TemplateProcessing":
            for role, part in (("cls_token", step["single"][0]), ("sep_token", step["single"][-1])):
                said |= {role: part["SpecialToken"]["id"]} if "SpecialToken" in part else {}
    model, padding = spec["model"], spec.get("padding")
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:  # Unigram
        unknown = model["vocab"][model["unk_id"]][0]
    said |= {"unk_token": unknown} if unknown else {}
    return said | ({"pad_token": padding["pad_token"]} if padding else {})


def content(token: Any) -> str:
    """The text of a token that a file gives as a string or as the fields of an AddedToken."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def listed_pieces(described: TokenizerFiles) -> Iterator[tuple[AddedPiece, int | None, str]]:
    """(added piece, its id, the file that adds it), as transformers 5.23 collects them.

    Pieces that are special by name alone come last, with None for the id. Raises UserError where a file's entries
    cannot be read.
    """
    decoder, named = described.config.get("added_tokens_decoder"), described.named
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or ()
    roles = sorted(name for name, value in named.items() if name.endswith("_token") and isinstance(value, str | dict))
    known: set[str] = set()
    try:
        special = [named[name] for name in roles] + [*(extra.values() if isinstance(extra, dict) else extra)]
        for token in described.serialised.get("added_tokens") or ():
            known.add(token["content"])
            yield _added_piece(token), int(token["id"]), described.path.name
        for i, token in (decoder or {}).items():
            known.add(token["content"])
            yield _added_piece(token), int(i), CONFIG_FILE
        if decoder is None:
            # additional_special_tokens is left out here: transformers 5.23 looks for its new name alone.
            names = set(map(content, [*(named[role] for role in roles), *(named.get("extra_special_tokens") or ())]))
            for piece, i in described.added.items():
                if piece not in known:
                    known.add(piece)
                    yield _added_piece({"content": piece, "special": piece in names}), int(i), ADDED_FILE
        for token in special:
            if content(token) not in known:
                known.add(content(token))
                fields = token if isinstance(token, dict) else {"content": token}
                yield _added_piece(fields | {"special": True}), None, SPECIAL_FILE
    except json_files.OTHER_SHAPE as error:
        raise UserError(
            f"{described.directory}: its files have added pieces that cannot be read ({reason(error)}); "
            "correct them, or give the vocabulary in a directory of its own (--vocab)"
        ) from error


def _added_piece(fields: dict[str, Any]) -> AddedPiece:
    """The piece of an AddedToken's fields. As in `tokenizers`, special pieces are by default looked for in the text
    before normalization."""
    flags = {name: bool(fields.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
    return AddedPiece(str(fields["content"]), normalized=bool(fields.get("normalized", not flags["special"])), **flags)
