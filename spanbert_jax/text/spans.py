"""Spans that rules find in documents: names, phrases, entries of a list. Worker processes run them.

Invariant: the spans of a document depend on its text, its sentences and the rules alone. They are flat: where spans of
two rules overlap, the earlier rule in the list wins, and within a rule the leftmost, then the longest. No span crosses
a sentence's end.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from spanbert_jax.errors import UserError
from spanbert_jax.text.lines import hash_file
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.span_rules import (
    MAX_CHARACTERS,
    MAX_WORDS,
    Capitals,
    Document,
    Rule,
    Sentences,
    Span,
    TagPattern,
    TextPattern,
    flat,
)
from spanbert_jax.text.span_sources import Gazetteer, SpacyModel, SpanFile
from spanbert_jax.text.span_syntax import Parsed, parse_rules
from spanbert_jax.text.words import Words, split_words

MOST_KINDS = 127  # as a span tag is a byte (span_tags.py)

_ALONE: Mapping[str, Callable[[], Rule]] = {"sentence": Sentences, "capitals": Capitals}
_BY_PATTERN: Mapping[str, Callable[[str, str, str], Rule]] = {"regex": TextPattern, "pos": TagPattern}
_BY_SOURCE: Mapping[str, Callable[[str, str], Rule]] = {"gazetteer": Gazetteer, "spacy": SpacyModel, "file": SpanFile}
_EMPTY = Words("", [])


class FoundSpans(NamedTuple):
    """The spans of a document's sentences."""

    sentences: list[Words]
    spans: list[list[Span]]  # of each sentence, ascending; kinds from 1, as `SpanFinder.kinds` has them
    left_out: int  # sentences of more than `MAX_WORDS` or `MAX_CHARACTERS`, which patterns and models do not search


class TextSpans(NamedTuple):
    """The spans of a text by characters: (begin, end, kind from 1), ascending; and `FoundSpans.left_out`."""

    spans: list[tuple[int, int, int]]
    left_out: int


class SpanFinder:
    """Finds the spans of documents. Can be pickled, and is sent to each worker process.

    Attributes:
      kinds: the names of the kinds of spans; kind i + 1 is kinds[i]. Rules that name the same kind share it.
      files: path -> sha256, in hex, of the files that the rules read.
      made_by: the libraries and models on which the spans depend, with their versions.
    """

    def __init__(self, rules: str) -> None:
        """rules: config.corpus.spans, not "". Raises UserError, naming the rule, where one cannot be used."""
        self._rules = [_made(rule) for rule in parse_rules(rules)]
        self.kinds = tuple(dict.fromkeys(kind for rule in self._rules for kind in rule.kinds))
        if len(self.kinds) > MOST_KINDS:
            raise UserError(f"config.corpus.spans has {len(self.kinds)} kinds of spans; {MOST_KINDS} are the most")
        place = {kind: i for i, kind in enumerate(self.kinds, 1)}
        for rule in self._rules:
            rule.numbers = [place[kind] for kind in rule.kinds]
        paths = [path for rule in self._rules for path in rule.files]
        self.files = {path: hash_file(Path(path)) for path in paths}
        self.made_by = sorted({name for rule in self._rules for name in rule.made_by})

    def check_documents(self, texts: Callable[[], Iterable[str]]) -> None:
        """Compares the files of `file:` rules with the documents of a corpus, which are read only where there is such a
        rule. Raises UserError, naming file and line, for a span or a document that the corpus lacks."""
        files = [rule for rule in self._rules if isinstance(rule, SpanFile)]
        if files:
            keys: list[set[str]] = [set() for _ in files]
            for text in texts():
                for rule, of in zip(files, keys, strict=True):
                    of.add(rule.check(text))
            for rule, of in zip(files, keys, strict=True):
                rule.check_keys(of)

    def find(self, text: str, sentences: Sequence[str]) -> FoundSpans:
        """The spans of a document, given its sentences, in order."""
        words = [split_words(sentence) for sentence in sentences]
        long = {i for i, of in enumerate(words) if len(of.words) > MAX_WORDS or len(of.text) > MAX_CHARACTERS}
        whole = Document(text, words)
        short = Document(text, [_EMPTY if i in long else of for i, of in enumerate(words)]) if long else whole
        by_rule = [rule.find(short if rule.has_limit else whole) for rule in self._rules]
        left_out = len(long) if any(rule.has_limit for rule in self._rules) else 0
        spans = by_rule[0] if len(by_rule) == 1 else [flat(of) for of in zip(*by_rule, strict=True)]
        return FoundSpans(words, spans, left_out)


def spans_of_text(text: str, finder: SpanFinder, language: str, splitter: str) -> TextSpans:
    """The spans of a text by characters. language, splitter: as for `split_sentences`."""
    found = finder.find(text, split_sentences(text, language, splitter))
    spans, place = [], 0
    for sentence, of in zip(found.sentences, found.spans, strict=True):
        place = text.index(sentence.text, place)
        places = sentence.places()
        spans += [(place + places[begin][0], place + places[end - 1][1], kind) for begin, end, kind in of]
        place += len(sentence.text)
    return TextSpans(spans, found.left_out)


def _made(rule: Parsed) -> Rule:
    if rule.name in _ALONE:
        return _ALONE[rule.name]()
    if rule.name in _BY_PATTERN:
        return _BY_PATTERN[rule.name](rule.kind, rule.argument, rule.written)
    return _BY_SOURCE[rule.name](rule.argument, rule.written)
