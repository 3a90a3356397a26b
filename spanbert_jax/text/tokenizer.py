"""Text to pieces and back: BERT's WordPiece and SentencePiece behind one class.

Invariant: no text can produce a special id. "[CLS]" or "[MASK]" written in text is split like any other text
(transformers' BertTokenizer turns it into the special id instead; that is the one intended difference), and
everything a mask generator needs to know about words is in the three boolean tables of `Tokenizer`.
"""

import functools
import hashlib
import io
import itertools
import json
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from spanbert_jax.errors import UserError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in the order that names Tokenizer's attributes
METADATA_FILE = "spanbert_tokenizer.json"
VOCABULARY_FILES = {"wordpiece": "vocab.txt", "unigram": "spiece.model", "bpe": "spiece.model"}
_SPACE = "▁"  # SentencePiece's mark of a word's beginning
_CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)  # the blocks that BERT's BasicTokenizer sets apart
_DELIMITER = "\ue000"  # private use; marks, in training text only, where no piece may cross
# Pieces even where the text has few of them: a punctuation mark that falls back to bytes is no word of its own.
_REQUIRED_CHARS = string.punctuation + "¡§«·»¿–—‘’‚“”„†‡•′″‹›"
_TRAINING_THREADS = 8  # the unigram vocabulary depends on it, so it is fixed and not the number of cores
_MAX_TRAINING_CHARS = 1000  # SentencePiece silently drops lines over 4192 bytes


class Tokenizer:
    """Text to ids. Equal vocabularies give equal tokenizers in every process; pickles as its vocabulary.

    Attributes:
      kind: "wordpiece", "unigram" or "bpe".
      lowercase: WordPiece only: text is lowercased and stripped of accents first, as BERT's uncased models do.
      vocabulary: the bytes of the vocabulary's file.
      vocab_size: number of ids.
      pad_id, unk_id, cls_id, sep_id, mask_id: the special ids.
      fingerprint: sha256, in hex, of all that the ids depend on.
      starts_word: bool[vocab_size], this piece begins a word.
      ends_word: bool[vocab_size], the piece after this one begins a word (punctuation, CJK).
      joins_next: bool[vocab_size], the piece after this one never begins a word (SentencePiece's lone "▁").
    """

    def __init__(self, kind: str, vocabulary: bytes, lowercase: bool = False, source: str = "the vocabulary") -> None:
        """Raises UserError, naming `source`, where the bytes are no vocabulary of that kind."""
        self.kind, self.lowercase, self.vocabulary = kind, lowercase, vocabulary
        if kind == "wordpiece":
            self._engine: Any = _wordpiece_engine(vocabulary, lowercase, source)
            pieces = self._pieces = _read_vocab(vocabulary, source)
            tables: Callable[[str], tuple[bool, bool, bool]] = _wordpiece_boundaries
        else:
            self._engine = _sentencepiece_engine(vocabulary, source)
            pieces = self._pieces = [self._engine.id_to_piece(i) for i in range(len(self._engine))]
            tables = _sentencepiece_boundaries
        self.vocab_size = len(pieces)
        ids = (
            [pieces.index(name) for name in SPECIALS]
            if kind == "wordpiece"
            else _sentencepiece_special_ids(self._engine, source)
        )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        digest = hashlib.sha256(f"{kind} lowercase={lowercase}\n".encode() + vocabulary)
        self.fingerprint = digest.hexdigest()
        boundaries = np.array([tables(piece) for piece in pieces], dtype=np.bool_)  # [vocab, 3]
        if kind != "wordpiece":
            boundaries[self.unk_id] = False  # an unknown character stands inside a word
        self.starts_word, self.ends_word, self.joins_next = np.ascontiguousarray(boundaries.T)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.kind, self.vocabulary, self.lowercase)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without [CLS] and [SEP]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text; the fast path."""
        if self.kind == "wordpiece":
            return [e.ids for e in self._engine.encode_batch_fast(texts, add_special_tokens=False)]
        return self._engine.encode(texts, num_threads=1)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the (start, end) of its characters in `text`, without surrounding white space.

        A character that SentencePiece falls back to bytes for belongs to the last byte; its others are empty.
        """
        if self.kind == "wordpiece":
            encoding = self._engine.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        mapping = self._engine.encode_as_offset_mapping(text)
        return mapping["ids"], [_strip(text, start, end) for start, end in mapping["offsets"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text again, special pieces left out; exact for SentencePiece up to its normalisation."""
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
        metadata = {
            "kind": self.kind,
            "lowercase": self.lowercase,
            "vocabulary": VOCABULARY_FILES[self.kind],
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
        }
        partial = directory / (METADATA_FILE + ".partial")
        partial.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        partial.rename(directory / METADATA_FILE)


def word_starts(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """bool[len(ids)]: which pieces begin a word; position 0 always does.

    WordPiece: the reference's words (its masking.py joins runs of "##" pieces to the piece before). SentencePiece:
    the same words, told by "▁", punctuation and CJK characters.
    """
    ids = np.asarray(ids, dtype=np.int64)
    starts = tokenizer.starts_word[ids]
    starts[1:] |= tokenizer.ends_word[ids[:-1]]
    starts[1:] &= ~tokenizer.joins_next[ids[:-1]]
    starts[:1] = True
    return starts


def load_tokenizer(directory: Path) -> Tokenizer:
    """What `save` wrote; raises UserError where a file is missing or was changed since."""
    path = directory / METADATA_FILE
    try:
        metadata = json.loads(_read(path, "a tokenizer saved by this program"))
        kind, lowercase, name = metadata["kind"], metadata["lowercase"], metadata["vocabulary"]
        vocab_size, fingerprint = metadata["vocab_size"], metadata["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a tokenizer's metadata ({error!r}); restore it or train the tokenizer again"
        ) from error
    tokenizer = Tokenizer(kind, _read(directory / name, "a vocabulary"), lowercase, str(directory / name))
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{directory / name} has {tokenizer.vocab_size} pieces and fingerprint {tokenizer.fingerprint[:12]}; "
            f"{path.name} beside it was written for {vocab_size} and {fingerprint[:12]}: restore that file"
        )
    return tokenizer


def wordpiece_from_vocab(path: str | Path, lowercase: bool) -> Tokenizer:
    """BERT's WordPiece from a vocab.txt, one piece a line; raises UserError naming file and line."""
    return Tokenizer("wordpiece", _read(Path(path), "a vocab.txt"), lowercase, str(path))


def sentencepiece_from_model(path: str | Path) -> Tokenizer:
    """A SentencePiece .model, unigram or BPE, with [PAD], [CLS], [SEP] and [MASK] among its control pieces."""
    from sentencepiece import sentencepiece_model_pb2  # here alone: workers need no protobuf

    data = _read(Path(path), "a SentencePiece model")
    _sentencepiece_engine(data, str(path))
    proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    kind = {1: "unigram", 2: "bpe"}.get(proto.trainer_spec.model_type)
    if kind is None:
        raise UserError(f"{path} is a SentencePiece model of words or characters; give a unigram or a BPE model")
    return Tokenizer(kind, data, source=str(path))


def train_sentencepiece(sentences: Iterable[str], kind: str, vocab_size: int) -> Tokenizer:
    """Trains a SentencePiece ("unigram" or "bpe"); the same sentences in the same order give the same bytes.

    Pieces never cross punctuation or CJK characters, so that words are the ones of BERT's tokenizer, and what the
    vocabulary lacks falls back to bytes, so that nothing is unknown.
    Raises UserError where the text is too little for `vocab_size`, with the largest that is possible.
    """
    model = io.BytesIO()
    lines = (line for sentence in sentences for line in _training_lines(sentence))
    first = next(lines, None)
    if first is None:
        raise UserError("there is no text to train a tokenizer on; check config.corpus")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], lines),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece="[PAD]",
            unk_piece="[UNK]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            control_symbols=["[MASK]"],
            byte_fallback=True,
            required_chars=_REQUIRED_CHARS,
            pretokenization_delimiter=_DELIMITER,
            input_sentence_size=0,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from error
    return Tokenizer(kind, model.getvalue(), source="the trained model")


def _training_error(message: str, vocab_size: int) -> Exception:
    largest = re.search(r"value <= (\d+)", message)
    if largest:
        return UserError(
            f"config.tokenizer.vocab_size is {vocab_size}, more than the text supports: at most {largest[1]}; "
            f"lower it to that, or give more text"
        )
    smallest = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if smallest:
        return UserError(
            f"config.tokenizer.vocab_size is {vocab_size}, less than the {smallest[2]} that the special pieces, "
            "the bytes and the text's own characters take; raise it well above that"
        )
    return RuntimeError(f"SentencePiece could not train a vocabulary of {vocab_size}: {message}")


def _training_lines(sentence: str) -> Iterator[str]:
    """The sentence, normalised as SentencePiece will and marked, in lines that it does not drop for their length."""
    text = unicodedata.normalize("NFKC", sentence).replace(_DELIMITER, " ").replace("\0", " ").strip()
    text = _word_edges().sub(_DELIMITER, text)
    while len(text) > _MAX_TRAINING_CHARS:
        cut = text.rfind(" ", 1, _MAX_TRAINING_CHARS)
        cut = cut if cut > 0 else _MAX_TRAINING_CHARS
        yield text[:cut]
        text = text[cut:].strip()
    if text:
        yield text


@functools.cache
def _word_edges() -> re.Pattern[str]:
    """Matches the empty string before and after each character that is a word of its own, but not beside a space."""
    own = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in _own_word_ranges())
    return re.compile(f"(?<=\\S)(?=[{own}])|(?<=[{own}])(?=\\S)")


def _own_word_ranges() -> list[tuple[str, str]]:
    ranges: list[tuple[str, str]] = []
    for char in map(chr, range(sys.maxunicode + 1)):
        if not _is_own_word(char):
            continue
        if ranges and ord(ranges[-1][1]) == ord(char) - 1:
            ranges[-1] = (ranges[-1][0], char)
        else:
            ranges.append((char, char))
    return ranges


def _is_own_word(char: str) -> bool:
    """Punctuation as BERT has it (category P*, and every ASCII symbol), and the CJK characters."""
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char)[0] == "P" or any(low <= ord(char) <= high for low, high in _CJK)


def _wordpiece_boundaries(piece: str) -> tuple[bool, bool, bool]:
    return not piece.startswith("##"), False, False


def _sentencepiece_boundaries(piece: str) -> tuple[bool, bool, bool]:
    """(starts_word, ends_word, joins_next) of one piece."""
    text = piece.replace(_SPACE, "")
    if not text:
        return True, False, True
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return piece.startswith(_SPACE), False, False
    return piece.startswith(_SPACE) or _is_own_word(text[0]), piece.endswith(_SPACE) or _is_own_word(text[-1]), False


def _wordpiece_engine(vocabulary: bytes, lowercase: bool, source: str) -> tokenizers.Tokenizer:
    """BERT's tokenizer without its added tokens, so that special pieces in text are text."""
    ids = {piece: i for i, piece in enumerate(_read_vocab(vocabulary, source))}
    engine = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    engine.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    engine.decoder = tokenizers.decoders.WordPiece()
    return engine


def _read_vocab(vocabulary: bytes, source: str) -> list[str]:
    try:
        text = vocabulary.decode("utf-8")
    except UnicodeDecodeError as error:
        line = vocabulary.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}, line {line}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    pieces = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    lines: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if not piece.strip():
            raise UserError(
                f"{source}, line {number}: empty; a vocab.txt has one piece a line, its id the line's number"
            )
        if piece in lines:
            raise UserError(
                f"{source}, line {number}: {piece!r} stands in line {lines[piece]} already; a piece has one id"
            )
        lines[piece] = number
    missing = [special for special in SPECIALS if special not in lines]
    if missing:
        raise UserError(
            f"{source} has {len(pieces)} pieces and lacks {', '.join(missing)}; it must be BERT's vocab.txt, with "
            f"{', '.join(SPECIALS)}, each on a line of its own"
        )
    return pieces


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
    """The same characters without the white space before and after them."""
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
