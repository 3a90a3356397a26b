"""Random texts of the characters that trip tokenizers, and a small tokenizer of each kind."""

import functools
import pydoc_data.topics
import string

from hypothesis import strategies as st

from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer

KINDS = ("wordpiece", "uncased", "unigram")
# Letters, accents apart and together, emoji with joiners, every sort of space and line end, ligatures, no text at all.
ALPHABET = "abcdeEéñß.,-'([0129½ﬁ中한عا\u0301\u0327\u200d👩🏽‍🚀❤️🇪🇺 \u00a0\u2009\u3000\t\r\n\u0000\u00ad\ufeff▁"
TEXTS = st.lists(st.sampled_from([*ALPHABET, "\r\n", "the ", " cat", "e\u0301"]), max_size=60).map("".join)


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    """A small tokenizer of a kind in KINDS, which knows some of the characters of TEXTS."""
    if kind == "unigram":
        lines = [line.strip() for topic in pydoc_data.topics.topics.values() for line in topic.splitlines()]
        return train_sentencepiece([line for line in lines if line][:600], "unigram", 500)
    pieces = [*SPECIALS, *string.ascii_letters, *string.digits, *string.punctuation, *"éñß中", "the", "cat"]
    pieces += [f"##{piece}" for piece in [*string.ascii_letters, *string.digits, *"éñ\u0301", "at"]]
    return Tokenizer("wordpiece", "\n".join(pieces).encode(), lowercase=kind == "uncased")
