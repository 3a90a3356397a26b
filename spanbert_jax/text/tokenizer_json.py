"""Any tokenizer of the `tokenizers` library: the engines of a tokenizer.json, its pieces, and where its words begin.

Invariant: text gets the ids that the library gives with the same file, and the names of the five special pieces are
text. In the engine of text these five pieces have other names, which no text has, and are not looked for in text. All
other added pieces are found in text as a whole, with their flags.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tokenizers

from spanbert_jax import json_files
from spanbert_jax.errors import UserError, listed, shortened
from spanbert_jax.text.wordpiece import AddedPiece, is_own_word

KIND = "tokenizer_json"
# The beginning of the names that special pieces have in the engine of text: a code point that Unicode keeps free of
# characters, and a space, at which most tokenizers cut.
_NO_TEXT = "\ufdd0 "
_WHOLE_WORDS = ("WordPiece", "WordLevel")  # models that read one word at a time, so their unknown piece is a word
_MOST_IDS = 2**22  # XLM-V, which has the most pieces of all published models, has 901,629
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte of a character that the vocabulary lacks


@dataclasses.dataclass(frozen=True)
class JsonSettings:
    """The settings that ids depend on, beside the tokenizer.json."""

    special: tuple[str, ...]  # the names of the pieces that pad, are unknown, begin a row, end it, and mask
    added: tuple[AddedPiece, ...] = ()  # pieces that other files add, or give other flags, in the order of adding

    def to_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "JsonSettings":
        """The settings that `to_dict` made the dict of; raises TypeError on an unknown or missing field."""
        added = tuple(AddedPiece(**piece) for piece in fields.get("added", ()))
        return cls(**{**fields, "special": tuple(fields["special"]), "added": added})


class JsonEngine:
    """The engines of a tokenizer.json, and tables of its pieces.

    Attributes:
      whole: the tokenizer as transformers has it, which finds special pieces in text.
      of_text: the same tokenizer for text in which the names of special pieces are text.
      pieces: every piece by its id, added ones included; "" for an id without a piece.
      special_ids: the ids of `JsonSettings.special`.
      silent: the ids that decoding leaves out: those of special pieces, added ones included, but not the unknown piece.
      surface: gives the text of a piece, white space included, with "\\ufffd" for a part of a character. The text of a
        piece that begins a word without a mark (WordPiece's "cat" beside "##cat") begins with a space.
      marks_words: whether the pieces show where words begin. They do not where white space is cut away and leaves no
        mark, as in a BPE without prefixes and suffixes.
      boundaries: bool[vocab, 3], (starts_word, ends_word, joins_next) of each piece, as `Tokenizer` describes them.
    """

    def __init__(self, vocabulary: bytes, settings: JsonSettings, source: str) -> None:
        """Raises UserError, naming `source`, where the library cannot read the file, or a special piece is missing."""
        self.whole = whole_engine(vocabulary, settings, source)
        ids = {name: i for name in settings.special if (i := self.whole.token_to_id(name)) is not None}
        missing = [name for name in settings.special if name not in ids]
        if missing:
            raise UserError(f"{source} lacks {listed(list(map(repr, missing)))}, named as special; restore the file")
        spec = json_files.parse(self.whole.to_str())
        self.surface = _surface(spec)
        self.marks_words = _marks_words(self.whole, spec, self.surface)
        try:
            self.of_text = _engine_of_text(spec, ids)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"{source}: special pieces cannot be told from text in it ({shortened(error)}); restore the file"
            ) from error
        self.special_ids = list(ids.values())
        self.pieces = _all_pieces(self.whole)
        added = self.whole.get_added_tokens_decoder()
        self.silent = {i for i, token in added.items() if token.special} | set(self.special_ids)
        self.silent -= {self.special_ids[1]}
        self.boundaries = np.array([_boundaries(self.surface(piece)) for piece in self.pieces], dtype=np.bool_)
        for i, token in added.items():  # An added piece is a word.
            self.boundaries[i] = (True, False, True) if token.content.isspace() else (True, True, False)
        self.boundaries[self.special_ids] = True, True, False
        # An unknown piece is a word where the model reads word by word, and otherwise a part of the word around it.
        self.boundaries[self.special_ids[1]] = spec["model"]["type"] in _WHOLE_WORDS, False, False


def read_engine(vocabulary: bytes, source: str) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, without truncation and padding.

    Raises UserError, naming `source`, where the library cannot read the file, or where the ids would be random.
    """
    try:
        engine = tokenizers.Tokenizer.from_buffer(vocabulary)
    except BaseException as error:  # The library raises nothing narrower, and a panic of Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{source}: the tokenizers library cannot read it ({shortened(error)}){_steps_in(vocabulary)}; give the "
            "vocabulary that the model was trained with, in a directory of its own, --vocab FILE"
        ) from error
    largest = max(engine.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= _MOST_IDS:  # The library and this program have tables over all ids, pieces or not.
        raise UserError(f"{source}: a piece has the id {largest:,}; ids under {_MOST_IDS:,} are read: correct the id")
    if getattr(engine.model, "dropout", None):
        raise UserError(
            f"{source}: model.dropout is {engine.model.dropout:g}, which gives a text other ids each time; set it to "
            "null"
        )
    engine.no_truncation()
    engine.no_padding()
    return engine


def _steps_in(vocabulary: bytes) -> str:
    """The types of the steps of a file that the library cannot read, one of which may be unknown to it; "" where the
    file holds no steps."""
    try:
        spec = json_files.parse(vocabulary)
        types = {name: [str(step["type"]) for step in steps(spec[name])] for name in ("normalizer", "pre_tokenizer")}
    except json_files.OTHER_SHAPE:
        return ""
    return "".join(f"; its {name} is {listed(found)}" for name, found in types.items() if found)


def whole_engine(vocabulary: bytes, settings: JsonSettings, source: str) -> tokenizers.Tokenizer:
    """The tokenizer as transformers has it: with the added pieces, and special pieces found in text."""
    engine = read_engine(vocabulary, source)
    engine.add_tokens([tokenizers.AddedToken(**dataclasses.asdict(piece)) for piece in settings.added])
    return engine


def _engine_of_text(spec: dict[str, Any], special: Mapping[str, int]) -> tokenizers.Tokenizer:
    """The tokenizer of `spec`, which this function changes, for text in which the names of special pieces are text.
    special: name -> id."""
    hidden = {name: f"{_NO_TEXT}{i}" for name, i in special.items()}
    for token in spec["added_tokens"]:
        # `encode_special_tokens` below keeps the library from looking for pieces that are special.
        token["special"] = token["content"] in hidden
        token["content"] = hidden.get(token["content"], token["content"])
    model = spec["model"]
    if isinstance(model["vocab"], list):  # Unigram: (piece, score)
        model["vocab"] = [(hidden.get(piece, piece), score) for piece, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in model["vocab"].items()}
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        merged = ((left, right, left + right.removeprefix(prefix)) for left, right in model["merges"])
        model["merges"] = [(left, right) for left, right, both in merged if not hidden.keys() & {left, right, both}]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    spec["post_processor"] = None
    engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
    engine.encode_special_tokens = True
    return engine


def _all_pieces(engine: tokenizers.Tokenizer) -> list[str]:
    ids = engine.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(ids.values(), default=-1) + 1)
    for piece, i in ids.items():
        pieces[i] = piece
    return pieces


def steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The single steps of a tokenizer.json's normalizer, pre_tokenizer or post_processor."""
    if step is None:
        return
    inner = next((step[name] for name in ("normalizers", "pretokenizers", "processors") if name in step), None)
    if inner is None:
        yield step
    for one in inner or ():
        yield from steps(one)


def _surface(spec: Mapping[str, Any]) -> Callable[[str], str]:
    """`JsonEngine.surface` for the pieces of a tokenizer.json."""
    model = spec["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    all_steps = [*steps(spec["normalizer"]), *steps(spec["pre_tokenizer"])]
    is_bytes = any(step["type"] == "ByteLevel" for step in all_steps)
    spaces = {step["replacement"] for step in all_steps if step["type"] == "Metaspace"}
    spaces |= {step["content"] for step in all_steps if step["type"] == "Replace" and step["content"] == "▁"}
    falls_back, is_unmarked = bool(model.get("byte_fallback")), model["type"] in _WHOLE_WORDS or bool(prefix)

    def surface(piece: str) -> str:
        byte = _BYTE.fullmatch(piece) if falls_back else None
        if byte:
            return bytes.fromhex(byte[1]).decode("utf-8", "replace")
        continues = bool(prefix) and piece.startswith(prefix)
        text = piece.removeprefix(prefix) if continues else piece
        ends = bool(suffix) and text.endswith(suffix)
        text = text.removesuffix(suffix) if ends else text
        text = _decode_bytes(text) if is_bytes else text
        for space in spaces:
            text = text.replace(space, " ")
        return " " * (is_unmarked and not continues) + text + " " * ends

    return surface


def _marks_words(engine: tokenizers.Tokenizer, spec: Mapping[str, Any], surface: Callable[[str], str]) -> bool:
    model = spec["model"]
    if model["type"] in _WHOLE_WORDS or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return True
    return " b" in surface(_read(engine, "a b"))


def _read(engine: tokenizers.Tokenizer, text: str) -> str:
    """The text as the model of the engine gets it, its parts joined."""
    text = engine.normalizer.normalize_str(text) if engine.normalizer else text
    parts = engine.pre_tokenizer.pre_tokenize_str(text) if engine.pre_tokenizer else [(text, (0, len(text)))]
    return "".join(part for part, _ in parts)


def _boundaries(surface: str) -> tuple[bool, bool, bool]:
    """(starts_word, ends_word, joins_next) of a piece with this text."""
    if not surface or surface.isspace():
        return bool(surface), False, bool(surface)
    first, last = surface[0], surface[-1]
    return first.isspace() or is_own_word(first), last.isspace() or is_own_word(last), False


def with_prefix_space(vocabulary: bytes, engine: tokenizers.Tokenizer) -> bytes:
    """A tokenizer.json that reads every text with a space before it, if `engine`, the tokenizer of the given one, reads
    the first word of a text otherwise than the words after it; the same bytes where it does not."""
    if _read(engine, "b b") == 2 * _read(engine, "b"):
        return vocabulary
    spec = json_files.parse(vocabulary)
    byte_level = [step for step in steps(spec.get("pre_tokenizer")) if step["type"] == "ByteLevel"]
    for step in byte_level:
        step["add_prefix_space"] = True
    if not byte_level:
        before = [{"type": "Prepend", "prepend": " "}, *filter(None, [spec.get("normalizer")])]
        spec["normalizer"] = {"type": "Sequence", "normalizers": before}
    return json.dumps(spec, ensure_ascii=False).encode()


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level piece stands for (GPT-2's table): printable bytes for themselves,
    the others in order from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _decode_bytes(piece: str) -> str:
    """The text of a byte-level piece; the piece itself where it is not written in bytes."""
    table = _byte_of()
    if not all(char in table for char in piece):
        return piece
    return bytes(table[char] for char in piece).decode("utf-8", "replace")
