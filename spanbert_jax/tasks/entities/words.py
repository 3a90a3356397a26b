"""Cuts plain text into words as the training data are cut.

Invariant: words are slices of the text, in order, that do not overlap. Every character that is no white space is in
exactly one word. A combining mark is in the word of the character before it.
"""

import bisect
import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

Place = tuple[int, int]  # the characters [start, end)


@dataclasses.dataclass(frozen=True)
class WordStyle:
    """How a data set cuts text into words. The default is the cut without a data set.

    Attributes:
      apart: punctuation marks that are words of their own even between letters: "-" in "drug - induced".
      leading: marks that belong to the letters after them: "@" in "@user".
      repeated: marks of which several in a row are one word: "." in "...".
      endings: words that are the ends of other words in plain text: "'s", "n't".
      unspaced: the data's words of two or more characters in scripts without spaces. A character that begins none of
        them is a word. Empty where the data cut such scripts into characters.
    """

    apart: str = ""
    leading: str = ""
    repeated: str = ""
    endings: tuple[str, ...] = ()
    unspaced: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "WordStyle":
        """The style of `saved`, which is the JSON of `dataclasses.asdict(style)`. Raises TypeError where it is not."""
        fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in saved.items()}
        texts = [one for x in fields.values() for one in (x if isinstance(x, tuple) else (x,))]
        if not all(isinstance(one, str) for one in texts):
            raise TypeError("a mark or a word in it is no text")
        return cls(**fields)


NO_STYLE = WordStyle()  # without a data set

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
_JOINERS = "\u200c\u200d"  # of zero width; they join the characters around them
_MODIFIERS = range(0x1F3FB, 0x1F400)  # skin tones of emoji
_ENDINGS = {mark + letters for mark in "'\u2019" for letters in ("s", "m", "d", "re", "ve", "ll")} | {"n't", "n\u2019t"}
# A mark is in `apart` where it is a word at least this many times as often as it is inside a word. A mark is in
# `leading` where it leads letters more often than this, and more often than it is a word.
_RARE = 20
_KEPT = 20_000  # most words of scripts without spaces in a style
_LONGEST = 8  # most characters of such a word


def joined(words: Sequence[str]) -> tuple[str, tuple[Place, ...]]:
    """The words with a space between them, and the place of each word."""
    starts = accumulate((len(word) + 1 for word in words), initial=0)
    return " ".join(words), tuple((start, start + len(word)) for start, word in zip(starts, words, strict=False))


def find_words(text: str, style: WordStyle = NO_STYLE) -> tuple[Place, ...]:
    """The place of each word. A word is a run from a first to a last letter or digit, a punctuation mark, a character
    of a script without spaces, or another word of `style`."""
    known, longest = frozenset(style.unspaced), max(map(len, style.endings), default=0)
    return tuple(place for run in _runs(text) for place in _words_of(text, run, style, known, longest))


def learn_style(sentences: Iterable[Sequence[str]]) -> WordStyle:
    """The style of sentences that are cut into words. Where words disagree, the majority decides; where there are too
    few, the default holds."""
    counts = Counter(word for words in sentences for word in words)
    alone: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    before: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    characters: Counter[int] = Counter()  # counts of words in scripts without spaces, by length: 1, or 2 and more
    unspaced: Counter[str] = Counter()
    for word, count in counts.items():
        if word.isascii() and word.isalnum():
            continue
        kinds = [_kind(word[start]) for run in _runs(word) for start, _ in run]
        letters = [i for i, kind in enumerate(kinds) if kind != "mark"]
        if set(kinds) == {"unspaced"}:
            characters[min(len(kinds), 2)] += count
            if len(kinds) > 1:
                unspaced[word] += count
        elif not letters:
            (alone if len(word) == 1 else repeated)[word[0]] += count * (len(set(word)) == 1)
        elif len(kinds) == len(word):
            if word in _ENDINGS:
                endings[word] += count
            elif kinds[0] == "mark" and letters == list(range(1, len(kinds))):
                before[word[0]] += count
            for mark in {word[i] for i in range(letters[0], letters[-1]) if kinds[i] == "mark"}:
                inside[mark] += count
    glued = Counter({e: sum(n for word, n in counts.items() if word.endswith(e) and word != e) for e in endings})
    cuts_words = 10 * characters[2] > characters[1]  # about half of the words of Chinese are one character
    kept = [word for word, _ in unspaced.most_common(_KEPT)] if cuts_words else []
    return WordStyle(
        apart="".join(sorted(mark for mark in alone if alone[mark] >= _RARE * max(inside[mark], 1))),
        leading="".join(sorted(mark for mark in before if before[mark] > max(alone[mark], _RARE))),
        repeated="".join(sorted(mark for mark in repeated if repeated[mark])),
        endings=tuple(sorted(e for e in endings if endings[e] > glued[e])),
        unspaced=tuple(sorted(kept)),
    )


def _runs(text: str) -> Iterator[list[Place]]:
    """For each run without white space, the places of its characters, each with the marks that belong to it."""
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


def _words_of(text: str, run: list[Place], style: WordStyle, known: frozenset[str], longest: int) -> Iterator[Place]:
    """The words of a run. longest: of the style's endings, in characters."""
    kinds = [_kind(text[start]) for start, _ in run]
    place = 0
    while place < len(run):
        end = place + 1
        if kinds[place] == "unspaced":
            end = _longest_known(text, run, place, known)
        elif kinds[place] == "letter" or _leads(text, run, kinds, place, style, longest):
            stop = next((i for i in range(end, len(run)) if _ends_word(text[run[i][0]], kinds[i], style)), len(run))
            end = max(i for i in range(place, stop) if kinds[i] == "letter") + 1
            begins = range(max(place + 1, end - longest), end)
            first = next((i for i in begins if text[run[i][0] : run[end - 1][1]] in style.endings), end)
            yield run[place][0], run[first - 1][1]
            place = first
            if first == end:
                continue
        else:
            mark = text[run[place][0] : run[place][1]]
            while mark in style.repeated and end < len(run) and text[run[end][0] : run[end][1]] == mark:
                end += 1
        yield run[place][0], run[end - 1][1]
        place = end


def _leads(text: str, run: list[Place], kinds: list[str], place: int, style: WordStyle, longest: int) -> bool:
    """Whether a mark belongs to the letters after it, or begins an ending that stands alone."""
    if kinds[place + 1 : place + 2] != ["letter"]:
        return False
    start, end = run[place][0], run[-1][1]
    return text[start] in style.leading or (end - start <= longest and text[start:end] in style.endings)


def _ends_word(character: str, kind: str, style: WordStyle) -> bool:
    return kind == "unspaced" or (kind == "mark" and character in style.apart)


def _longest_known(text: str, run: list[Place], place: int, known: frozenset[str]) -> int:
    """The end of the longest known word that begins at `place`, or of the character there."""
    longest = min(len(run), place + _LONGEST) if known else place + 1
    ends = range(longest, place, -1)
    return next((end for end in ends if text[run[place][0] : run[end - 1][1]] in known), place + 1)


def _kind(character: str) -> str:
    """The kind of a character: "letter", "unspaced" (of a script without spaces), or "mark" (punctuation, symbols)."""
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
