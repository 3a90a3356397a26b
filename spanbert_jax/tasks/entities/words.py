"""The words of plain text, as columns of tagged words have them.

Invariant: words are slices of the text, in order and apart; every character that is no white space is in exactly one; a
combining mark is in the word of the character before it.
"""

import bisect
import unicodedata
from collections.abc import Iterator

Place = tuple[int, int]  # first character, the one after the last

# First and last code points of scripts that are written without spaces between words.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x3007),  # marks that stand for Han characters
    (0x3031, 0x312F),  # kana, Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo
    (0x31F0, 0x31FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),  # Han
    (0xA000, 0xA48F),  # Yi
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAA7F),  # Myanmar
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # kana of half width
    (0x1B000, 0x1B16F),  # kana
    (0x20000, 0x323AF),  # Han
)
_FIRST = [first for first, _ in _UNSPACED]
_JOINERS = "\u200c\u200d"  # zero width: the characters around them are one
_MODIFIERS = range(0x1F3FB, 0x1F400)  # an emoji's skin


def find_words(text: str) -> tuple[Place, ...]:
    """The place of each word: of letters and digits with all between them, of a mark of punctuation, or of a character
    of a script that is written without spaces."""
    return tuple(place for run in _runs(text) for place in _words_of(text, run))


def _runs(text: str) -> Iterator[list[Place]]:
    """The characters of each run without white space, every one with the marks that belong to it."""
    run: list[Place] = []
    for place, character in enumerate(text):
        if character.isspace():
            if run:
                yield run
            run = []
        elif run and (_belongs_to_the_one_before(character) or text[place - 1] == "\u200d"):
            run[-1] = run[-1][0], place + 1
        else:
            run.append((place, place + 1))
    if run:
        yield run


def _words_of(text: str, run: list[Place]) -> Iterator[Place]:
    kinds = [_kind(text[start]) for start, _ in run]
    place = 0
    while place < len(run):
        # A word of letters ends with the run's last letter, or with the last before a script without spaces.
        end = next((i for i in range(place, len(run)) if kinds[i] == "unspaced"), len(run))
        letters = [i for i in range(place, end) if kinds[i] == "letter"]
        if kinds[place] == "letter":
            yield run[place][0], run[letters[-1]][1]
            place = letters[-1] + 1
        else:
            yield run[place]
            place += 1


def _kind(character: str) -> str:
    """ "letter", "unspaced", or "mark" for punctuation and symbols."""
    if not (character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"):
        return "mark"
    row = bisect.bisect_right(_FIRST, ord(character)) - 1
    is_unspaced = row >= 0 and ord(character) <= _UNSPACED[row][1] and not character.isdigit()
    return "unspaced" if is_unspaced else "letter"


def _belongs_to_the_one_before(character: str) -> bool:
    if character.isascii():
        return False
    category = unicodedata.category(character)
    return category[0] == "M" or character in _JOINERS or ord(character) in _MODIFIERS
