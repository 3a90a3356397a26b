"""Text to pieces and back: BERT's WordPiece and SentencePiece behind one class.

Invariant: no text can produce a special id. "[CLS]" or "[MASK]" written in text is split like any other text.
(transformers' BertTokenizer turns such text into the special id, which is the one intended difference.) The three
boolean tables of `Tokenizer` hold all that masking needs to know about words.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from spanbert_jax.errors import UserError
from spanbert_jax.files import written_aside
from spanbert_jax.text import wordpiece
from spanbert_jax.text.wordpiece import WordPieceSettings

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in the order of Tokenizer's pad_id, unk_id, ..., mask_id
METADATA_FILE = "spanbert_tokenizer.json"
VOCABULARY_FILES = {"wordpiece": "vocab.txt", "unigram": "spiece.model", "bpe": "spiece.model"}
_SPACE = "▁"  # SentencePiece's mark of a word's beginning
CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)  # the blocks that BERT's BasicTokenizer sets apart
_BERT = WordPieceSettings()


class Tokenizer:
    """Text to ids. Equal vocabularies and settings give equal tokenizers in every process; a pickle holds only these.

    Attributes:
      kind: "wordpiece", "unigram" or "bpe".
      lowercase: WordPiece only: text is lowercased, and stripped of accents unless the settings say otherwise.
      settings: WordPiece only: how text becomes words, and the pieces that are added to those of the vocabulary file.
      vocabulary: the bytes of the vocabulary file.
      vocab_size: the number of ids, added pieces included.
      pad_id, unk_id, cls_id, sep_id, mask_id: the special ids.
      fingerprint: sha256, in hex, of all that the ids depend on.
      starts_word: bool[vocab_size], whether the piece begins a word.
      ends_word: bool[vocab_size], whether the next piece begins a word in any case (after punctuation and CJK).
      joins_next: bool[vocab_size], whether the next piece never begins a word (after SentencePiece's lone "▁").
    """

    def __init__(
        self,
        kind: str,
        vocabulary: bytes,
        lowercase: bool = False,
        source: str = "the vocabulary",
        settings: WordPieceSettings = _BERT,
    ) -> None:
        """Raises UserError, naming `source`, where the bytes are no vocabulary of that kind."""
        self.kind, self.lowercase, self.vocabulary, self.settings = kind, lowercase, vocabulary, settings
        if kind == "wordpiece":
            lines = wordpiece.read_vocabulary(vocabulary, source)
            special_ids = _wordpiece_special_ids(lines, source)
            self._engine: Any = wordpiece.engine(lines, lowercase, settings)
            self._pieces = wordpiece.all_pieces(lines, settings)
            tables: Callable[[str], tuple[bool, bool, bool]] = _wordpiece_boundaries
        else:
            self._engine = _sentencepiece_engine(vocabulary, source)
            special_ids = _sentencepiece_special_ids(self._engine, source)
            self._pieces = [self._engine.id_to_piece(i) for i in range(len(self._engine))]
            tables = _sentencepiece_boundaries
        self.vocab_size = len(self._pieces)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = special_ids
        unusual = "" if settings == _BERT else " " + json.dumps(settings.to_dict())
        self.fingerprint = hashlib.sha256(f"{kind} lowercase={lowercase}{unusual}\n".encode() + vocabulary).hexdigest()
        boundaries = np.array([tables(piece) for piece in self._pieces], dtype=np.bool_)  # [vocab, 3]
        if kind != "wordpiece":
            boundaries[self.unk_id] = False  # An unknown character is taken as part of the word around it.
        self.starts_word, self.ends_word, self.joins_next = np.ascontiguousarray(boundaries.T)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.kind, self.vocabulary, self.lowercase, "the vocabulary", self.settings)

    def tokenize(self, text: str) -> list[int]:
        """The ids of one text, without [CLS] and [SEP]."""
        return self.tokenize_batch([text])[0]

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, without [CLS] and [SEP]; faster than `tokenize` of each."""
        if self.kind == "wordpiece":
            return [e.ids for e in self._engine.encode_batch_fast(texts, add_special_tokens=False)]
        return self._engine.encode(texts, num_threads=1)

    def tokenize_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and for each id the (start, end) of its characters in `text`, without surrounding white space.

        Where SentencePiece falls back to bytes, a character belongs to its last byte; the offsets of the others are
        empty.
        """
        if self.kind == "wordpiece":
            encoding = self._engine.encode(text, add_special_tokens=False)
            if not self.settings.added:
                return encoding.ids, encoding.offsets
            return encoding.ids, [_strip(text, start, end) for start, end in encoding.offsets]
        mapping = self._engine.encode_as_offset_mapping(text)
        return mapping["ids"], [_strip(text, start, end) for start, end in mapping["offsets"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special pieces other than [UNK]; with SentencePiece, the normalised text exactly."""
        if self.kind != "wordpiece":
            return self._engine.decode([int(i) for i in ids])
        special = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
        return self._engine.decode([int(i) for i in ids if i not in special])

    def piece(self, id: int) -> str:
        """The piece as the vocabulary writes it ("##ing", "▁the")."""
        return self._pieces[id]

    def save(self, directory: Path) -> None:
        """Writes the vocabulary, byte for byte, and spanbert_tokenizer.json, which makes the directory loadable."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / VOCABULARY_FILES[self.kind]).write_bytes(self.vocabulary)
        metadata: dict[str, Any] = {
            "kind": self.kind,
            "lowercase": self.lowercase,
            "vocabulary": VOCABULARY_FILES[self.kind],
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
        }
        if self.settings != _BERT:
            metadata["settings"] = self.settings.to_dict()
        with written_aside(directory / METADATA_FILE) as aside:
            aside.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def word_starts(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """bool[len(ids)]: whether each piece begins a word; the piece at position 0 always does.

    With WordPiece, words are those of the reference, whose masking.py joins runs of "##" pieces to the piece before.
    With SentencePiece, words are the same, found by "▁", punctuation and CJK characters.
    """
    ids = np.asarray(ids, dtype=np.int64)
    starts = tokenizer.starts_word[ids]
    starts[1:] |= tokenizer.ends_word[ids[:-1]]
    starts[1:] &= ~tokenizer.joins_next[ids[:-1]]
    starts[:1] = True
    return starts


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that `save` wrote; raises UserError where a file is missing or was changed since."""
    path = directory / METADATA_FILE
    try:
        metadata = json.loads(_read(path, "a tokenizer saved by this program"))
        kind, lowercase, name = metadata["kind"], metadata["lowercase"], metadata["vocabulary"]
        if kind not in VOCABULARY_FILES:
            raise ValueError(f"kind {kind!r} is none of {', '.join(VOCABULARY_FILES)}")
        vocab_size, fingerprint = metadata["vocab_size"], metadata["fingerprint"]
        settings = WordPieceSettings.from_dict(metadata.get("settings", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a tokenizer's metadata ({error!r}); restore it or train the tokenizer again"
        ) from error
    tokenizer = Tokenizer(kind, _read(directory / name, "a vocabulary"), lowercase, str(directory / name), settings)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{directory / name} has {tokenizer.vocab_size} pieces and fingerprint {tokenizer.fingerprint[:12]}; "
            f"{path.name} beside it was written for {vocab_size} and {fingerprint[:12]}: restore the vocabulary file"
        )
    return tokenizer


def wordpiece_from_vocab(path: str | Path, lowercase: bool) -> Tokenizer:
    """BERT's WordPiece from a vocab.txt, one piece a line; raises UserError, naming the file, where it is none."""
    return Tokenizer("wordpiece", _read(Path(path), "a vocab.txt"), lowercase, str(path))


def sentencepiece_from_model(path: str | Path) -> Tokenizer:
    """The tokenizer of a SentencePiece .model, unigram or BPE.

    Raises UserError where the file is no such model, or lacks [PAD], [CLS], [SEP] or [MASK] among its control pieces.
    """
    from sentencepiece import sentencepiece_model_pb2  # imported here, because workers need no protobuf

    data = _read(Path(path), "a SentencePiece model")
    _sentencepiece_engine(data, str(path))
    proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    kind = {1: "unigram", 2: "bpe"}.get(proto.trainer_spec.model_type)
    if kind is None:
        raise UserError(f"{path} is a SentencePiece model of words or characters; give a unigram or a BPE model")
    return Tokenizer(kind, data, source=str(path))


def is_own_word(char: str) -> bool:
    """Whether BERT makes the character a word: punctuation (category P*, and every ASCII symbol) and CJK characters."""
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char)[0] == "P" or any(low <= ord(char) <= high for low, high in CJK)


def _wordpiece_boundaries(piece: str) -> tuple[bool, bool, bool]:
    return not piece.startswith(wordpiece.CONTINUES), False, False


def _wordpiece_special_ids(pieces: Sequence[str], source: str) -> list[int]:
    ids = {piece: i for i, piece in enumerate(pieces)}
    missing = [special for special in SPECIALS if special not in ids]
    if missing:
        raise UserError(
            f"{source} has {len(pieces)} pieces and lacks {', '.join(missing)}; it must be BERT's vocab.txt, with "
            f"{', '.join(SPECIALS)}, each on a line of its own"
        )
    return [ids[special] for special in SPECIALS]


def _sentencepiece_boundaries(piece: str) -> tuple[bool, bool, bool]:
    """(starts_word, ends_word, joins_next) of one piece."""
    text = piece.replace(_SPACE, "")
    if not text:
        return True, False, True
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return piece.startswith(_SPACE), False, False
    return piece.startswith(_SPACE) or is_own_word(text[0]), piece.endswith(_SPACE) or is_own_word(text[-1]), False


def _sentencepiece_engine(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    try:
        if model:
            return sentencepiece.SentencePieceProcessor(model_proto=model)
        raise RuntimeError("empty")
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{source} ({len(model)} bytes) is not a SentencePiece model; give a .model file") from error


def _sentencepiece_special_ids(engine: sentencepiece.SentencePieceProcessor, source: str) -> list[int]:
    ids = {name: engine.piece_to_id(name) for name in SPECIALS}
    ids["[UNK]"] = engine.unk_id()
    missing = [name for name, i in ids.items() if name != "[UNK]" and not engine.is_control(i)]
    if missing:
        raise UserError(
            f"{source} has {len(engine)} pieces, but not as control pieces: {', '.join(missing)}; train it with them "
            "(SentencePiece's control_symbols), or let this program train one: --config.tokenizer.vocab_file=''"
        )
    return [ids[name] for name in SPECIALS]


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """The (start, end) of the same characters without the white space before and after them."""
    surface = text[start:end]
    start += len(surface) - len(surface.lstrip())
    return start, max(start, end - len(surface) + len(surface.rstrip()))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory; give the file that is {what}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); it should be {what}") from error
