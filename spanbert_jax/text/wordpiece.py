"""BERT's WordPiece: its vocabulary file, its settings, and the engine that applies them.

Invariant: `engine` makes the only WordPiece of this program. An exported tokenizer is that engine with the special
pieces added.
"""

import codecs
import dataclasses
import functools
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from spanbert_jax.errors import UserError
from spanbert_jax.text.lines import Content, numbered_lines

CONTINUES = "##"  # the beginning of a piece that continues a word
UNKNOWN = "[UNK]"
CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)  # the blocks that BERT's BasicTokenizer sets apart
MAX_WORD = 100  # characters; a longer word is [UNK], as in Google's BERT


@dataclasses.dataclass(frozen=True)
class AddedPiece:
    """A piece that is found in text as a whole, before the text is split into words: `tokenizers.AddedToken`."""

    content: str
    single_word: bool = False  # found only where no letter, digit or _ touches it
    lstrip: bool = False  # takes the white space before it
    rstrip: bool = False  # takes the white space after it
    normalized: bool = True  # found in normalised text, else in the text as it is given
    special: bool = False  # left out by `decode`


@dataclasses.dataclass(frozen=True)
class WordPieceSettings:
    """How text becomes words, beside lowercasing. The defaults are those of Google's BERT."""

    strip_accents: bool | None = None  # None: accents are stripped where text is lowercased
    handle_chinese_chars: bool = True  # each Chinese character is a word
    clean_text: bool = True  # control characters are dropped, and each character of white space becomes a space
    added: tuple[AddedPiece, ...] = ()  # in the order of their ids; a piece of the vocabulary file may be among them

    def to_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "WordPieceSettings":
        """The settings that `to_dict` made the dict of; raises TypeError on an unknown field."""
        added = tuple(AddedPiece(**piece) for piece in fields.get("added", ()))
        return cls(**{**fields, "added": added})


def read_vocabulary(vocabulary: bytes, source: str) -> list[str]:
    """The pieces of a vocab.txt in the order of their ids: a piece's id is the number of its line, from 0.

    A piece is all that stands before its line's end ("\\n" or "\\r\\n", or "\\r" where a file has no other), so a piece
    may be a no-break space. A byte order mark and empty lines at the end belong to no piece; other empty lines are
    empty pieces. As in transformers, text gets the last id of equal pieces, and the others are never used.
    Raises UserError, naming `source`, where the bytes are not UTF-8.
    """
    try:
        text = vocabulary.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        for _ in numbered_lines(source, Content(io.BytesIO(vocabulary))):  # raises, with advice that suits the bytes
            pass
        raise UserError(f"{source} is a compressed file; decompress it, and give the vocab.txt in it") from error
    if "\n" not in text:
        text = text.replace("\r", "\n")
    pieces = [line.removesuffix("\r") for line in text.split("\n")]
    while pieces and not pieces[-1]:
        pieces.pop()
    return pieces


def is_own_word(char: str) -> bool:
    """Whether BERT makes the character a word: punctuation (category P*, and every ASCII symbol) and CJK characters."""
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char)[0] == "P" or any(low <= ord(char) <= high for low, high in CJK)


@functools.cache
def growing() -> re.Pattern[str]:
    """Matches a character that lowercasing or the stripping of accents may turn into several: "İ", and those that
    Unicode decomposes into more than a letter and accents, as Korean syllables."""

    def length(char: str) -> int:
        return sum(unicodedata.category(part) != "Mn" for part in unicodedata.normalize("NFD", char))

    chars = map(chr, range(0x80, 0x30000))  # Unicode decomposes none of the others.
    return re.compile(f"[{''.join(char for char in chars if length(char) > 1 or len(char.lower()) > 1)}]")


def engine(pieces: Sequence[str], lowercase: bool, settings: WordPieceSettings) -> tokenizers.Tokenizer:
    """BERT's tokenizer for the pieces of a vocabulary file and the added pieces. It treats no piece as special, so that
    "[MASK]" in text is text."""
    last = {piece: i for i, piece in enumerate(pieces)}
    # Equal pieces but the last get a name with a line break, which no word has, so text never gets their ids.
    ids = {piece if last[piece] == i else f"\n{i}": i for i, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            ids, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUES, max_input_chars_per_word=MAX_WORD
        )
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=settings.clean_text,
        handle_chinese_chars=settings.handle_chinese_chars,
        strip_accents=settings.strip_accents,
        lowercase=lowercase,
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_tokens([tokenizers.AddedToken(**dataclasses.asdict(piece)) for piece in settings.added])
    return made


def all_pieces(pieces: Sequence[str], settings: WordPieceSettings) -> list[str]:
    """Every piece by its id: those of a vocabulary file, then the added ones that the file lacks."""
    known = set(pieces)
    return [*pieces, *(piece.content for piece in settings.added if piece.content not in known)]
