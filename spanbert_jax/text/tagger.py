"""Parts of speech of English words, by textblob's tagger, whose lexicon is in its wheel: no download, no account.

Invariant: the tags are those of `textblob.en.parser.find_tags`. This tagger looks a word up in Brill's lexicon of the
Penn Treebank, and guesses an unknown word's tag from its form. So a word's tag depends on the word alone, and on
whether the word is a sentence's first, which is why the tags can be kept in a table.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from spanbert_jax.errors import UserError

KEPT_WORDS = 2**19  # words in a table, which is emptied when it is full: about 100 MB

# The letter that stands for a tag in the patterns of `pos:` rules.
LETTERS = {
    "D": ("DT", "PDT", "WDT", "PRP$", "WP$"),  # determiners and possessives: the, all, which, my, whose
    "A": ("JJ", "JJR", "JJS", "VBG", "VBN"),  # adjectives and participles
    "N": ("NN", "NNS", "NNP", "NNPS"),  # nouns and names
    "C": ("CD",),  # numbers
    "P": ("PRP", "WP", "EX"),  # pronouns: she, who, there
    "V": ("VB", "VBD", "VBP", "VBZ"),  # verbs
    "M": ("MD",),  # modal verbs: can, would
    "R": ("RB", "RBR", "RBS", "WRB", "RP"),  # adverbs and particles: soon, where, (give) up
    "I": ("IN", "TO"),  # prepositions: of, to
    "S": ("POS",),  # 's and '
    "K": ("CC",),  # and, or
}
OTHER = "O"  # the letter of all other tags: punctuation, symbols, interjections, foreign words
_LETTER = {tag: letter for letter, tags in LETTERS.items() for tag in tags}

# A name of one word at a sentence's beginning is taken for a name only where its tag is one of these.
_NAMES = ("NNP", "NNPS")
# Words with these tags begin no name, however they are written: "The", "He", "In", "However".
_FUNCTION = ("PRP", "PRP$", "DT", "IN", "CC", "WP", "WRB", "WDT", "RB", "TO", "MD", "EX")
_BETWEEN = ("of", "the", "de", "von", "van")  # inside names: Bank of England, Charles de Gaulle


class _Table(dict[str, str]):
    """word -> the value of a function, which is called once a word."""

    def __init__(self, function: Callable[[str], str]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, word: str) -> str:
        if len(self) >= KEPT_WORDS:
            self.clear()
        value = self[word] = self._function(word)
        return value


def tag_of(word: str, is_first: bool) -> str:
    """The Penn Treebank tag of a word, given whether the word is the first of its sentence."""
    return _parser().find_tags([word] if is_first else ["x", word])[-1][1]


def pos_letters(words: list[str]) -> str:
    """A sentence's words as one letter each (`LETTERS`)."""
    return _one_each(words, *tables("letter"))


def name_letters(words: list[str]) -> str:
    """A sentence's words as one letter each, for the rule `capitals`: "N" for a capitalised word of a name, "n" for
    such a word that is no name when it stands alone, "b" for a word between two of them, and "." for the others."""
    return _one_each(words, *tables("name"))


def _one_each(words: list[str], first: _Table, later: _Table) -> str:
    return first[words[0]] + "".join(map(later.__getitem__, words[1:])) if words else ""


@functools.cache
def tables(what: str) -> tuple[_Table, _Table]:
    """The tables of a sentence's first word and of the others. what: "letter" (`pos_letters`) or "name"
    (`name_letters`)."""

    def letter(word: str, is_first: bool) -> str:
        return _LETTER.get(tag_of(word, is_first), OTHER)

    def name(word: str, is_first: bool) -> str:
        if not word[0].isupper():
            return "b" if word in _BETWEEN else "."
        tag = tag_of(word, is_first)
        if tag in _FUNCTION:
            return "."
        return "n" if is_first and tag not in _NAMES else "N"

    function = letter if what == "letter" else name
    return _Table(lambda word: function(word, True)), _Table(lambda word: function(word, False))


def version() -> str:
    """The tagger's name and version; raises UserError where textblob is not installed."""
    try:
        return f"textblob {importlib.metadata.version('textblob')}"
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "the rules 'pos:' and 'capitals' need textblob's tagger, which is not installed: "
            "pip install -r requirements-spans.txt"
        ) from error


@functools.cache
def _parser() -> Any:
    with _no_init("textblob"), warnings.catch_warnings():
        from textblob.en import parser

        warnings.simplefilter("ignore", ResourceWarning)  # textblob leaves the file of its lexicon open
        parser.find_tags(["a"])  # reads the lexicon
    return parser


@contextlib.contextmanager
def _no_init(package: str) -> Iterator[None]:
    """Imports modules of a package without the package's own __init__, and forgets them afterwards, so that another
    import gets the whole package. textblob's __init__ imports NLTK and SciPy, which take each process 1.2 CPU seconds.
    The tagger uses neither."""
    spec = importlib.util.find_spec(package)
    if package in sys.modules or spec is None:
        yield
        return
    bare = types.ModuleType(package)
    bare.__path__ = spec.submodule_search_locations or []
    sys.modules[package] = bare
    try:
        yield
    finally:
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
            del sys.modules[name]
