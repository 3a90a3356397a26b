"""Trains a SentencePiece vocabulary, unigram or BPE.

Invariant: the same sentences in the same order give the same bytes, on any machine. Pieces never cross punctuation or
CJK characters, so that words are those of BERT's tokenizer. Characters that the vocabulary lacks fall back to bytes, so
that no text is unknown.
"""

import functools
import io
import itertools
import re
import string
import sys
import unicodedata
from collections.abc import Iterable, Iterator

import sentencepiece

from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.text.wordpiece import CJK, is_own_word

_DELIMITER = "\ue000"  # private use; marks, in training text only, where no piece may cross
# These characters are always pieces, even rare ones: a mark that falls back to bytes would be no word of its own.
_REQUIRED_CHARS = string.punctuation + "¡§«·»¿–—‘’‚“”„†‡•′″‹›"
_TRAINING_THREADS = 8  # fixed, not the number of cores: the unigram vocabulary depends on the number of threads
_MAX_TRAINING_CHARS = 1000  # SentencePiece silently drops lines over 4192 bytes


def train_sentencepiece(sentences: Iterable[str], kind: str, vocab_size: int) -> Tokenizer:
    """Trains a SentencePiece of `vocab_size` pieces. kind: "unigram" or "bpe".

    Raises UserError where there is no text, where the text is too little for `vocab_size` (the error gives the largest
    possible size), or where `vocab_size` is too small for the pieces that every vocabulary has.
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
    """The sentence, NFKC-normalised as by SentencePiece, with delimiters at the edges of words that are one character,
    in lines so short that SentencePiece does not drop them."""
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
    """(first, last) of the runs of characters for which `is_own_word` is true."""
    chars = map(chr, range(sys.maxunicode + 1))
    # `is_own_word` is called for likely characters only: calls for all million characters take a second.
    candidates = [char for char in chars if char < "\x80" or unicodedata.category(char)[0] == "P"]
    ranges = [(chr(low), chr(high)) for low, high in CJK]
    for char in filter(is_own_word, candidates):
        if ord(ranges[-1][1]) == ord(char) - 1:
            ranges[-1] = (ranges[-1][0], char)
        else:
            ranges.append((char, char))
    return ranges
