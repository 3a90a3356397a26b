"""A sentence to its words, on which rules find spans.

Invariant: the words of a sentence hold all its characters but white space, in order. The words depend on the sentence
alone, not on a vocabulary, so one list of rules finds the same spans for every tokenizer.

The words are nearly those of the Penn Treebank, because the part-of-speech tagger has its lexicon from there: a mark of
punctuation is a word, "don't" is "do" and "n't", "well-known" is one word, and so are "3,500.5", "U.S.", "i.e." and
the "J." of "J. Smith". Each Chinese character is a word, as in BERT.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from spanbert_jax.text.wordpiece import CJK

_NOT = "[nN]['’][tT]"  # of "don't"
_SHORT = "(?:s|d|m|re|ve|ll|S|D|M|RE|VE|LL)"  # after an apostrophe, as in "it's"


class Words(NamedTuple):
    """A sentence and its words."""

    text: str  # of the sentence
    words: list[str]

    def places(self) -> list[tuple[int, int]]:
        """(begin, end) of each word in the text. The places are computed at each call, because most sentences of a
        build need none."""
        places, at = [], 0
        for word in self.words:
            begin = self.text.index(word, at)
            at = begin + len(word)
            places.append((begin, at))
        return places


def split_words(sentence: str) -> Words:
    """The words of a sentence."""
    return Words(sentence, word_pattern(sentence.isascii()).findall(sentence))


def is_inside_word(text: str, place: int) -> bool:
    """Whether the characters before and after `place` belong to one run of letters, digits and their marks."""
    pair = text[max(place - 1, 0) : place + 1]
    return len(pair) == 2 and place > 0 and all(char.isalnum() or _is_mark(char) for char in pair)


def _is_mark(char: str) -> bool:
    """Whether the character combines with the one before, as accents and many scripts' vowels do."""
    return unicodedata.category(char)[0] == "M"


@functools.cache
def word_pattern(is_ascii: bool) -> re.Pattern[str]:
    r"""Matches one word. ASCII has a simpler pattern, which finds the same words 1.6 times as fast.

    Python's \w has no combining marks, so they are added.
    """
    if is_ascii:
        run = r"\w+"
    else:
        marks = _ranges(code for code in range(0x300, sys.maxunicode + 1) if _is_mark(chr(code)))
        letters = rf"[^\W{''.join(f'{chr(low)}-{chr(high)}' for low, high in CJK)}]+"
        # No text matches in two ways, so no text takes exponentially many steps.
        run = rf"{letters}(?:[{marks}]+{letters})*[{marks}]*"
    kinds = (
        r"[A-Za-z][a-z]*(?![^\s,;:)])",  # most words, for speed: without this line they match the last but one
        r"[A-Za-z]\.(?:[A-Za-z]\.)+",
        r"\d+(?:[.,]\d+)+",
        r"(?:Mr|Mrs|Ms|Dr|St|Prof)\.",
        r"[A-Z]\.(?=\s+[A-Z])",
        rf"{run}(?={_NOT}(?!{run}))|{_NOT}(?!{run})|['’]{_SHORT}(?!{run})",
        rf"{run}(?:-{run}|['’](?!{_SHORT}(?!{run})){run})*",
        r"\S",
    )
    return re.compile("|".join(kinds))


def _ranges(codes: Iterator[int]) -> str:
    """Ascending code points as ranges in a set of a regular expression."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
