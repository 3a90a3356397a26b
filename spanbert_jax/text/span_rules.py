"""The rules that find spans in the words of a document by patterns, one class a rule.

Invariant: a rule's spans depend on the document and on the rule alone. Within a sentence they ascend and do not
overlap. A rule can be pickled, and a worker process loads what it needs (a lexicon, a model) when it first uses it.

Patterns are run by RE2, which has neither look-around nor back-references. Of the matches that begin at the leftmost
place the longest is taken. RE2 looks for each match up to the sentence's end, so a sentence with many matches takes the
square of its length. `MAX_CHARACTERS` and `MOST_STEPS` bound this time: a|a.*b takes 0.15 s for the longest sentence
of a's, and the slowest patterns take some seconds.
"""

import abc
import contextlib
import importlib.util
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from spanbert_jax.errors import UserError, quoted, shortened
from spanbert_jax.text import tagger
from spanbert_jax.text.words import Words

# A longer sentence is none. Rules whose time may grow with the square of its length find no spans in it.
MAX_WORDS, MAX_CHARACTERS = 5000, 10_000
MOST_STEPS = 400  # of a pattern: a|.*c.{100}b has 210, and takes 1.5 s for the longest sentence of random a's and c's
_MEMORY = 2**25  # bytes of RE2's automaton; with 2**23 it often falls back to a search 30 times slower
_KEPT_RUNS = 2**16  # in the table of a `pos:` rule, which is emptied when it is full
INSTALL = "pip install -r requirements-spans.txt"


# (begin, end, kind): words of a sentence, from 0, of which `end` is the place after the last one, and a kind's number.
# A plain tuple, since there are 50,000 in 1 MB of text.
Span = tuple[int, int, int]


class Document(NamedTuple):
    """A document as rules see it."""

    text: str
    sentences: Sequence[Words]


class Rule(abc.ABC):
    """A rule for spans.

    Attributes:
      kinds: the names of its spans' kinds.
      numbers: the number of each of these kinds in its spans; `SpanFinder` sets them.
      has_limit: whether it gets no sentences of more than `MAX_WORDS` words or `MAX_CHARACTERS` characters.
      files: the paths of the files that it was read from.
      made_by: the libraries and models on which its spans depend, with their versions.
    """

    kinds: tuple[str, ...]
    numbers: list[int]
    has_limit = False
    files: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()

    @abc.abstractmethod
    def find(self, document: Document) -> list[list[Span]]:
        """The spans of each sentence."""


class Sentences(Rule):
    """`sentence`: each sentence is a span."""

    kinds = ("sentence",)

    def find(self, document: Document) -> list[list[Span]]:
        return [[(0, len(words), self.numbers[0])] if words else [] for _, words in document.sentences]


class TextPattern(Rule):
    """`regex:NAME=PATTERN`: matches in the text of a sentence, widened to whole words."""

    has_limit = True

    def __init__(self, name: str, pattern: str, rule: str) -> None:
        """Raises UserError where RE2 cannot read the pattern, or is not installed."""
        self.kinds = (name,)
        self._pattern = _compiled(pattern, rule)

    def find(self, document: Document) -> list[list[Span]]:
        found = []
        for sentence in document.sentences:
            text = sentence.text
            ranges = [match.span() for match in self._pattern.finditer(text.encode() if text.isascii() else text)]
            places = sentence.places() if ranges else []
            found.append(flat([widened(begin, end, places, self.numbers[0]) for begin, end in ranges]))
        return found


class TagPattern(Rule):
    """`pos:NAME=PATTERN`: runs of words whose parts of speech match, in the letters of `tagger.LETTERS`."""

    has_limit = True

    def __init__(self, name: str, pattern: str, rule: str) -> None:
        """Raises UserError where the pattern has other letters, RE2 cannot read it, or a library is not installed."""
        letters = {char for char in pattern if char.isalpha()}
        unknown = sorted(letters - {*tagger.LETTERS, tagger.OTHER})
        if unknown:
            raise UserError(
                f"rule {quoted(rule)}: {unknown[0]!r} stands for no part of speech; the letters are "
                f"{', '.join((*tagger.LETTERS, tagger.OTHER))} (docs/spans.md)"
            )
        self.kinds, self.made_by = (name,), (tagger.version(),)
        self._pattern = _compiled(pattern, rule)
        # Without signs that stand for other letters, all letters of a match are those of the pattern. So a sentence is
        # searched run by run of these letters, and the few thousand runs that texts have are searched once.
        is_plain = letters and not set(pattern) & set(r".^$\-")
        self._runs = re.compile(f"[{''.join(sorted(letters))}]+" if is_plain else "(?s).+")
        self._found: dict[str, list[tuple[int, int]]] = {}  # run -> its matches

    def find(self, document: Document) -> list[list[Span]]:
        runs, found, kind = self._runs.finditer, self._found, self.numbers[0]
        spans = []
        for _, words in document.sentences:
            of: list[Span] = []
            for run in runs(tagger.pos_letters(words)):
                letters, at = run[0], run.start()
                if letters not in found:
                    self._search(letters)
                for begin, end in found[letters]:
                    of.append((at + begin, at + end, kind))
            spans.append(of)
        return spans

    def _search(self, letters: str) -> None:
        """Adds the matches in a run of letters to the table."""
        if len(self._found) >= _KEPT_RUNS:
            self._found.clear()
        matches = (match.span() for match in self._pattern.finditer(letters.encode()))
        self._found[letters] = [(begin, end) for begin, end in matches if begin < end]


class Capitals(Rule):
    """`capitals`: names, as runs of capitalised words (`tagger.name_letters`)."""

    kinds = ("capitals",)
    _pattern = re.compile("(?:N|n(?=N))(?:b?N)*")

    def __init__(self) -> None:
        """Raises UserError where the tagger is not installed."""
        self.made_by = (tagger.version(),)

    def find(self, document: Document) -> list[list[Span]]:
        letters = [tagger.name_letters(words) for _, words in document.sentences]
        return [[(*match.span(), self.numbers[0]) for match in self._pattern.finditer(of)] for of in letters]


def flat(by_priority: Sequence[Sequence[Span]]) -> list[Span]:
    """The spans of one sentence, ascending, without those that overlap one of an earlier sequence or an earlier span of
    their own."""
    kept: list[Span] = []
    taken: set[int] = set()
    for spans in by_priority:
        for span in spans:
            if taken.isdisjoint(range(span[0], span[1])):
                taken.update(range(span[0], span[1]))
                kept.append(span)
    return sorted(kept)


def widened(begin: int, end: int, places: Sequence[tuple[int, int]], kind: int) -> list[Span]:
    """The words (`Words.places`) that a range of a sentence's characters touches, as one span; none where it touches
    no word."""
    first, last = bisect_right(places, begin, key=itemgetter(1)), bisect_left(places, (end,))
    return [(first, last, kind)] if begin < end and first < last else []


def _compiled(pattern: str, rule: str) -> Any:
    """The pattern in RE2; raises UserError where RE2 cannot read it, it has too many steps, or RE2 is not installed."""
    if importlib.util.find_spec("re2") is None:
        raise UserError(f"the rules 'regex:' and 'pos:' need google-re2, which is not installed: {INSTALL}")
    import re2

    options = re2.Options()
    options.longest_match, options.log_errors, options.max_mem = True, False, _MEMORY
    try:
        made = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:  # the latter of a lone surrogate
        found = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else error
        raise UserError(
            f"rule {quoted(rule)}: the pattern does not parse: {shortened(found)}; patterns are RE2's, without "
            "look-around and back-references"
        ) from error
    steps = made.programsize
    # In UTF-8 a class such as \pL has 1,200 steps for its bytes, of which few count at a time. In Latin-1 it has six.
    options.encoding = re2.Options.Encoding.LATIN1
    with contextlib.suppress(re2.error):  # \x{4e2d} is no character of Latin-1
        steps = re2.compile(re.sub("[^\0-\xff]", "\xff", pattern).encode("latin-1"), options).programsize
    if steps > MOST_STEPS:
        raise UserError(
            f"rule {quoted(rule)}: the pattern has {steps:,} steps, and {MOST_STEPS} are the most; repeat less in it, "
            "or list words in a file for gazetteer:FILE"
        )
    return made
