"""Text to pieces and back: BERT's WordPiece, SentencePiece and any tokenizer.json behind one class.

Invariant: no text can produce a special id. "[CLS]" or "[MASK]" written in text is split like any other text.
(transformers turns such text into the special id, which is the one intended difference.) The three
boolean tables of `Tokenizer` hold all that masking needs to know about words.
"""

import bisect
import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sentencepiece

from spanbert_jax import json_files
from spanbert_jax.errors import UserError, quoted, reason
from spanbert_jax.files import is_plain_name, written_aside
from spanbert_jax.text import tokenizer_json, wordpiece
from spanbert_jax.text.tokenizer_json import JsonEngine, JsonSettings
from spanbert_jax.text.wordpiece import WordPieceSettings, is_own_word

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in the order of Tokenizer's pad_id, unk_id, ..., mask_id
METADATA_FILE = "spanbert_tokenizer.json"
VOCABULARY_FILES = {
    "wordpiece": "vocab.txt",
    "unigram": "spiece.model",
    "bpe": "spiece.model",
    tokenizer_json.KIND: "tokenizer.json",
}
_SPACE = "▁"  # SentencePiece's mark of a word's beginning
NO_LENGTH = 2**30  # of a piece that may stand for other characters than it is written with: more than any text has

Places = Sequence[tuple[int, int]]  # where each piece of a sentence begins in its text, and where it ends
_SENTENCEPIECE = ("unigram", "bpe")
_BERT = WordPieceSettings()
_T = TypeVar("_T")


class Tokenizer:
    """Text to ids. Equal vocabularies and settings give equal tokenizers in every process; a pickle holds only these.

    Attributes:
      kind: "wordpiece" (BERT's), "unigram" or "bpe" (SentencePiece), or "tokenizer_json" (any other tokenizer of the
        `tokenizers` library).
      lowercase: WordPiece only: text is lowercased, and stripped of accents unless the settings say otherwise.
      settings: WordPiece: how text becomes words, and the pieces that are added to those of the vocabulary file. A
        tokenizer.json: the special pieces' names, and the pieces that other files add.
      vocabulary: the bytes of the vocabulary file.
      vocab_size: the number of ids, added pieces included.
      pad_id, unk_id, cls_id, sep_id, mask_id: the special ids; special_ids: all of them, in this order.
      fingerprint: sha256, in hex, of all that the ids depend on.
      starts_word: bool[vocab_size], whether the piece begins a word.
      ends_word: bool[vocab_size], whether the next piece begins a word in any case (after punctuation and CJK).
      joins_next: bool[vocab_size], whether the next piece never begins a word (after white space alone, as
        SentencePiece's lone "▁").
      marks_words: whether these three tables hold. They do not where the pieces do not show where words begin.
    """

    def __init__(
        self,
        kind: str,
        vocabulary: bytes,
        lowercase: bool = False,
        source: str = "the vocabulary",
        settings: WordPieceSettings | JsonSettings = _BERT,
    ) -> None:
        """Raises UserError, naming `source`, where the bytes are no vocabulary of that kind."""
        self.kind, self.lowercase, self.vocabulary, self.settings = kind, lowercase, vocabulary, settings
        self._json: JsonEngine | None = None
        if isinstance(settings, JsonSettings):
            self._json = JsonEngine(vocabulary, settings, source)
            self._engine: Any = self._json.of_text
            special_ids, self._pieces, boundaries = self._json.special_ids, self._json.pieces, self._json.boundaries
        elif kind == "wordpiece":
            lines = wordpiece.read_vocabulary(vocabulary, source)
            special_ids = _wordpiece_special_ids(lines, source)
            self._engine = wordpiece.engine(lines, lowercase, settings)
            self._pieces = wordpiece.all_pieces(lines, settings)
            boundaries = np.array([_wordpiece_boundaries(piece) for piece in self._pieces], dtype=np.bool_)
        else:
            self._engine = _sentencepiece_engine(vocabulary, source)
            special_ids = _sentencepiece_special_ids(self._engine, source)
            self._pieces = [self._engine.id_to_piece(i) for i in range(len(self._engine))]
            boundaries = np.array([_sentencepiece_boundaries(piece) for piece in self._pieces], dtype=np.bool_)
            boundaries[special_ids[1]] = False  # An unknown character is taken as part of the word around it.
        self.vocab_size = len(self._pieces)
        self.special_ids = list(special_ids)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = special_ids
        unusual = "" if settings == _BERT else " " + json.dumps(settings.to_dict())
        self.fingerprint = hashlib.sha256(f"{kind} lowercase={lowercase}{unusual}\n".encode() + vocabulary).hexdigest()
        self.starts_word, self.ends_word, self.joins_next = np.ascontiguousarray(boundaries.T)  # from [vocab, 3]
        self.marks_words = self._json.marks_words if self._json else True

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.kind, self.vocabulary, self.lowercase, "the vocabulary", self.settings)

    def tokenize(self, text: str) -> list[int]:
        """The ids of one text, without [CLS] and [SEP]."""
        return self.tokenize_batch([text])[0]

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, without [CLS] and [SEP]; faster than `tokenize` of each."""
        if self.kind in _SENTENCEPIECE:
            return self._engine.encode(texts, num_threads=1)
        return [e.ids for e in self._engine.encode_batch_fast(texts, add_special_tokens=False)]

    def tokenize_sentences(self, texts: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The ids of each text's sentences, without [CLS] and [SEP].

        WordPiece and SentencePiece read every sentence by itself. A tokenizer.json reads the whole text, without the
        white space around it, as one string: the ids of its sentences, one after another, are those of the text. White
        space between two sentences belongs to the second, and a piece with characters of both to the first.

        Args:
          texts: texts that are not blank.
          sentences: the sentences of each text, as `split_sentences` gives them.
        """
        if self._json is None:
            ids = iter(self.tokenize_batch([sentence for parts in sentences for sentence in parts]))
            return [[next(ids) for _ in parts] for parts in sentences]
        texts = [text.strip() for text in texts]
        encodings = self._engine.encode_batch(texts, add_special_tokens=False)
        found = zip(texts, sentences, encodings, strict=True)
        return [_cut(encoding.ids, encoding.offsets, _ends(text, parts)) for text, parts, encoding in found]

    def tokenize_sentences_with_places(
        self, texts: Sequence[str], sentences: Sequence[Sequence[str]]
    ) -> tuple[list[list[list[int]]], list[list[Places]]]:
        """The ids of `tokenize_sentences`, and the places of the pieces in each sentence's text.

        The places ascend. A piece may have white space around it. Pieces that share a character have all of it.
        """
        if self._json is None:
            ids, places = self._with_places([sentence for parts in sentences for sentence in parts])
            cuts = list(pairwise(accumulate(map(len, sentences), initial=0)))
            return [ids[begin:end] for begin, end in cuts], [places[begin:end] for begin, end in cuts]
        texts = [text.strip() for text in texts]
        encodings = self._engine.encode_batch(texts, add_special_tokens=False)
        all_ids: list[list[list[int]]] = []
        all_places: list[list[Places]] = []
        for text, parts, encoding in zip(texts, sentences, encodings, strict=True):
            ends = _ends(text, parts)
            all_ids.append(_cut(encoding.ids, encoding.offsets, ends))
            starts = (end - len(part) for end, part in zip(ends, parts, strict=True))
            cut = zip(_cut(encoding.offsets, encoding.offsets, ends), starts, strict=True)
            all_places.append([[(begin - at, end - at) for begin, end in of] for of, at in cut])
        return all_ids, all_places

    def _with_places(self, texts: Sequence[str]) -> tuple[list[list[int]], list[Places]]:
        """The ids and places of texts, with WordPiece or SentencePiece."""
        if self.kind in _SENTENCEPIECE:
            mappings = [self._engine.encode_as_offset_mapping(text) for text in texts]
            return [of["ids"] for of in mappings], [of["offsets"] for of in mappings]
        encodings = self._engine.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings], [encoding.offsets for encoding in encodings]

    @functools.cached_property
    def lengths(self) -> np.ndarray | None:
        """int64 [vocab_size]: the number of characters, white space apart, that each piece is written with; `NO_LENGTH`
        for [UNK], added pieces and bytes. None for a tokenizer.json, whose normalizer may be anything.

        Where `adds_no_character(text)` holds and the lengths of the text's pieces add up to its characters, white space
        apart, the pieces stand for these characters, one after another. Computing places from lengths is several
        times as fast as asking the engine, which also takes longer to tokenise then: SentencePiece 6 times as long.
        """
        if self._json:
            return None
        if self.kind in _SENTENCEPIECE:
            lengths = [len(piece.replace(_SPACE, "")) for piece in self._pieces]
            unclear = [id for id in range(self.vocab_size) if self._engine.is_byte(id)]
        else:
            lengths = [len(piece.removeprefix(wordpiece.CONTINUES)) for piece in self._pieces]
            added = {piece.content for piece in self.settings.added}
            unclear = [id for id, piece in enumerate(self._pieces) if piece in added]
        found = np.array(lengths, np.int64)
        found[[self.unk_id, *unclear]] = NO_LENGTH
        return found

    def adds_no_character(self, text: str) -> bool:
        """Whether the tokenizer reads each character of a text as one character or as none; not of a tokenizer.json."""
        if self.kind in _SENTENCEPIECE:  # SentencePiece's usual normalisations are NFKC with additions
            return text.isprintable() and unicodedata.is_normalized("NFKC", text)
        strips = isinstance(self.settings, WordPieceSettings) and self.settings.strip_accents
        return not (self.lowercase or strips) or text.isascii() or not wordpiece.growing().search(text)

    def tokenize_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and for each id the (start, end) of its characters in `text`, without surrounding white space.

        Where SentencePiece falls back to bytes, or the pieces of a tokenizer.json share a character, the character
        belongs to the last of them; the offsets of the others are empty.
        """
        if self.kind in _SENTENCEPIECE:
            mapping = self._engine.encode_as_offset_mapping(text)
            return mapping["ids"], [_strip(text, start, end) for start, end in mapping["offsets"]]
        # A batch, because `encode` holds Python's lock: for a long text, other threads would wait for seconds.
        (encoding,) = self._engine.encode_batch([text], add_special_tokens=False)
        if self._json:
            return encoding.ids, _disjoint(text, encoding.offsets)
        if not self.settings.added:
            return encoding.ids, encoding.offsets
        return encoding.ids, [_strip(text, start, end) for start, end in encoding.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special pieces other than [UNK]; with SentencePiece, the normalised text exactly."""
        if self.kind in _SENTENCEPIECE:
            return self._engine.decode([int(i) for i in ids])
        if self._json:
            kept = [int(i) for i in ids if i not in self._json.silent]
            return self._json.whole.decode(kept, skip_special_tokens=False)
        special = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
        return self._engine.decode([int(i) for i in ids if i not in special])

    def piece(self, id: int) -> str:
        """The piece as the vocabulary writes it ("##ing", "▁the", "Ġthe")."""
        return self._pieces[id]

    def surface(self, id: int) -> str:
        """The piece without its mark of a word's beginning ("ing", "the"); "\ufffd" for a part of a character."""
        if self._json:
            return self._json.surface(self._pieces[id]).strip()
        return self._pieces[id].removeprefix(wordpiece.CONTINUES).removeprefix(_SPACE)

    def written(self, id: int) -> str:
        """The piece in a text: `surface` with a space before it where its mark says that a word begins. WordPiece marks
        punctuation as a word, whether or not a space stood there."""
        if self._json:
            return self._json.surface(self._pieces[id])
        if self.kind in _SENTENCEPIECE:
            return self._pieces[id].replace(_SPACE, " ")
        piece = self._pieces[id]
        continues = piece.startswith(wordpiece.CONTINUES)
        return piece.removeprefix(wordpiece.CONTINUES) if continues else f" {piece}"

    def with_prefix_space(self) -> "Tokenizer":
        """The tokenizer that reads a text's first word as the words after it, with a space before it.

        SentencePiece and WordPiece do so anyway, and most of the others but byte-level BPE.
        """
        if self._json is None:
            return self
        changed = tokenizer_json.with_prefix_space(self.vocabulary, self._json.whole)
        return self if changed == self.vocabulary else Tokenizer(self.kind, changed, settings=self.settings)

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
    With SentencePiece and a tokenizer.json, words are the same, found by white space ("▁" and "Ġ" stand for it),
    punctuation and CJK characters. A part of a character is taken as part of the word around it.
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
        metadata = json_files.parse(_read(path, "a tokenizer saved by this program"))
        kind, lowercase, name = metadata["kind"], metadata["lowercase"], metadata["vocabulary"]
        if kind not in VOCABULARY_FILES:
            raise ValueError(f"kind {quoted(kind)} is none of {', '.join(VOCABULARY_FILES)}")
        if not is_plain_name(name):
            raise ValueError(f"vocabulary {quoted(name)} is not the name of a file beside it")
        vocab_size, fingerprint = metadata["vocab_size"], metadata["fingerprint"]
        of_kind: Any = JsonSettings if kind == tokenizer_json.KIND else WordPieceSettings
        settings = of_kind.from_dict(metadata.get("settings", {}))
        vocabulary = _read(directory / name, "a vocabulary")
        tokenizer = Tokenizer(kind, vocabulary, lowercase, str(directory / name), settings)
    except json_files.OTHER_SHAPE as error:
        raise UserError(
            f"{path} is not a tokenizer's metadata ({reason(error)}); restore it, or train the tokenizer again"
        ) from error
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{directory / name} has {tokenizer.vocab_size} pieces and fingerprint {tokenizer.fingerprint[:12]}; "
            f"{path.name} beside it was written for {quoted(vocab_size)} and {str(fingerprint)[:12]}: restore the "
            "vocabulary file"
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


def _ends(text: str, sentences: Sequence[str]) -> list[int]:
    """The place in `text` after each of its sentences, between which there is nothing but white space."""
    ends = [0]
    for sentence in sentences:
        ends.append(text.index(sentence, ends[-1]) + len(sentence))
    return ends[1:]


def _cut(ids: list[_T], offsets: Sequence[tuple[int, int]], ends: Sequence[int]) -> list[list[_T]]:
    """The ids in as many parts as there are ends: a piece belongs to the first part that ends after its first
    character."""
    begins = [start for start, _ in offsets]  # ascending
    cuts = [bisect.bisect_left(begins, end) for end in ends[:-1]]
    return [ids[start:end] for start, end in pairwise([0, *cuts, len(ids)])]


def _disjoint(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The offsets without white space around them, and without the characters of the pieces that follow."""
    found, limit = [], len(text)
    for start, end in reversed(offsets):
        start, end = _strip(text, min(start, limit), min(end, limit))
        limit = min(start, limit)
        found.append((start, end))
    return found[::-1]


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory; give the file that is {what}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); it should be {what}") from error
