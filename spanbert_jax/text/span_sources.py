"""The rules that find spans by what others made: a list of entries, a spaCy model, offsets in a file.

Invariant: as in `span_rules`.
"""

import collections
import functools
import importlib.metadata
import importlib.util
import unicodedata
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

from spanbert_jax import json_files
from spanbert_jax.errors import UserError, quoted, reason
from spanbert_jax.text.documents import hash_text
from spanbert_jax.text.lines import read_lines
from spanbert_jax.text.span_rules import INSTALL, Document, Rule, Span, flat, widened
from spanbert_jax.text.span_syntax import check_kind
from spanbert_jax.text.words import is_inside_word, split_words


class Gazetteer(Rule):
    """`gazetteer:FILE`: the entries of a file, one a line, as they are written there; the longest of those that match.

    The kind is the file's name without its ending.
    """

    def __init__(self, path: str, rule: str) -> None:
        """Raises UserError where the file cannot be read or has no entry."""
        self.files = (path,)
        self.kinds = (check_kind(Path(path).name.split(".")[0], rule),)
        entries = (split_words(line).words for _, line in read_lines(Path(path)))
        self._entries = {tuple(words) for words in entries if words}
        if not self._entries:
            raise UserError(f"rule {quoted(rule)}: {path} has no entry; give one a line")
        self._lengths: dict[str, list[int]] = {}  # first word -> the lengths of the entries with it, longest first
        for first, length in sorted({(words[0], len(words)) for words in self._entries}, reverse=True):
            self._lengths.setdefault(first, []).append(length)

    def find(self, document: Document) -> list[list[Span]]:
        return [self._find(words) for _, words in document.sentences]

    def _find(self, words: list[str]) -> list[Span]:
        found: list[Span] = []
        at = 0
        for begin, word in enumerate(words):
            if begin < at or word not in self._lengths:
                continue
            for length in self._lengths[word]:
                entry = tuple(words[begin : begin + length])
                if entry in self._entries:
                    at = begin + len(entry)
                    found.append((begin, at, self.numbers[0]))
                    break
        return found


# Entities that are quantities and not names; the paper masks the others (section 4.3, "non-numerical").
_NUMERICAL = ("DATE", "TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL")


class SpacyModel(Rule):
    """`spacy:MODEL`: the entities of a spaCy pipeline by their labels, numerical ones apart, and, where the pipeline
    has a parser, its noun chunks as "NP", pronouns and quantities apart. An entity wins over a noun chunk."""

    has_limit = True

    def __init__(self, model: str, rule: str) -> None:
        """Raises UserError where spaCy or the model is not installed, or the model finds no spans."""
        pipeline = _spacy_pipeline(model, rule)
        labels = pipeline.get_pipe("ner").labels if pipeline.has_pipe("ner") else ()
        self._has_chunks = pipeline.has_pipe("parser") and "noun_chunks" in pipeline.Defaults.syntax_iterators
        self.kinds = (*(label for label in labels if label not in _NUMERICAL), *(("NP",) if self._has_chunks else ()))
        if not self.kinds:
            raise UserError(
                f"rule {quoted(rule)}: the model has neither entities nor a parser ({', '.join(pipeline.pipe_names)}); "
                "give one that has"
            )
        self._model, self._rule = model, rule
        self.made_by = (
            f"spacy {importlib.metadata.version('spacy')}",
            f"{pipeline.meta['lang']}_{pipeline.meta['name']} {pipeline.meta['version']}",
        )

    def find(self, document: Document) -> list[list[Span]]:
        from spacy.tokens import Doc

        pipeline = _spacy_pipeline(self._model, self._rule)
        number = dict(zip(self.kinds, self.numbers, strict=True))
        docs = []
        for sentence in document.sentences:
            spaces = [before < begin for (_, before), (begin, _) in pairwise(sentence.places())]
            docs.append(Doc(pipeline.vocab, words=sentence.words, spaces=[*spaces, False][: len(sentence.words)]))
        found = []
        for doc in pipeline.pipe(docs, batch_size=64):
            entities = [(e.start, e.end, number[e.label_]) for e in doc.ents if e.label_ in number]
            chunks = [
                (chunk.start, chunk.end, number["NP"])
                for chunk in (doc.noun_chunks if self._has_chunks else ())
                if (len(chunk) > 1 or chunk.root.pos_ != "PRON") and chunk.root.ent_type_ not in _NUMERICAL
            ]
            found.append(flat([entities, chunks]))
        return found


@functools.cache
def _spacy_pipeline(model: str, rule: str) -> Any:
    if importlib.util.find_spec("spacy") is None:
        raise UserError(f"rule {quoted(rule)} needs spaCy, which is not installed: {INSTALL}")
    import spacy

    try:
        return spacy.load(model, exclude=["lemmatizer"])
    except (OSError, ValueError) as error:
        raise UserError(
            f"rule {quoted(rule)}: spaCy cannot load {quoted(model)} ({str(error).splitlines()[0]}); install it with "
            "pip, or give its directory"
        ) from error


class SpanFile(Rule):
    """`file:PATH`: spans of documents by the places of their characters, in JSON lines:

        {"key": "8c1f3d0a55e0b7e2", "spans": [[0, 12, "PERSON"], [22, 28, "PLACE"]]}

    "key" is `hash_text` of the document, in hex. A span is [begin, end, kind] in characters (code points) of the
    document's text without the white space around the text. `tools/find_spans.py --json` writes such a file, with
    equal lines for documents with the same text. A span is widened to whole words where it ends at a mark inside a
    word, as at a hyphen, and cut where a sentence ends. The kinds are those of the file, in the order in which they
    come.
    """

    def __init__(self, path: str, rule: str) -> None:
        """Raises UserError, naming file and line, where a line cannot be read."""
        self.files, self._path = (path,), path
        self._spans: dict[str, tuple[int, list[Span]]] = {}  # key -> (line, spans)
        kinds: dict[str, int] = {}
        for line, text in read_lines(Path(path)):
            if text.strip():
                key, spans = _parsed(text, f"{path}, line {line}", kinds, rule)
                first, others = self._spans.setdefault(key, (line, spans))
                if spans != others:
                    raise UserError(f"{path}, line {line}: line {first} has the same key and other spans; join the two")
        self.kinds = tuple(kinds)
        if not kinds:
            raise UserError(f"rule {quoted(rule)}: {path} holds no span; tools/find_spans.py --json writes such files")

    def find(self, document: Document) -> list[list[Span]]:
        """Raises UserError as `check`."""
        found: list[list[Span]] = [[] for _ in document.sentences]
        key = self.check(document.text)
        place, text = 0, document.text.strip()
        coming = collections.deque(self._spans[key][1] if key else ())
        touching: list[Span] = []  # those of the document that may touch the sentence
        for number, sentence in enumerate(document.sentences if key else ()):
            place, places, length = text.index(sentence.text, place), sentence.places(), len(sentence.text)
            while coming and coming[0][0] < place + length:
                touching.append(coming.popleft())
            touching = [span for span in touching if span[1] > place]
            inside = ((begin - place, end - place, self.numbers[kind]) for begin, end, kind in touching)
            found[number] = flat([widened(max(b, 0), min(e, length), places, kind) for b, e, kind in inside])
            place += length
        return found

    def check(self, text: str) -> str:
        """The key of a document with this text, "" where the file has no spans for the document.

        Raises UserError, naming file and line, for a span outside the text or with an end inside a word. The rules'
        words may end between letters, as "do" of "don't" and single Chinese characters do; spans may end there too.
        """
        key, text = hash_text(text).hex(), text.strip()
        if key not in self._spans:
            return ""
        line, spans = self._spans[key]
        inside = {place for span in spans for place in span[:2] if is_inside_word(text, place)}
        inside.difference_update(*(split_words(text).places() if inside else ()))
        for begin, end, _ in spans:
            where = f"{self._path}, line {line}: the span {quoted(begin)} to {quoted(end)}"
            if end > len(text):
                raise UserError(
                    f"{where} lies outside its document, which has {len(text):,} characters; count code points of the "
                    "text without the white space around it"
                )
            for place in (begin, end):
                if place in inside:
                    what = "a character" if unicodedata.combining(text[place]) else "a word"
                    parts = f"{text[max(0, place - 12) : place]!r} + {text[place : place + 12]!r}"
                    raise UserError(f"{where} has an end inside {what}, {parts}; give whole words")
        return key

    def check_keys(self, keys: Collection[str]) -> None:
        """Raises UserError, naming file and line, where a document of the file is none of those with these keys."""
        missing = [(line, key) for key, (line, _) in self._spans.items() if key not in keys]
        if missing:
            raise UserError(
                f"{self._path}, line {missing[0][0]}: the corpus has no document with the key {quoted(missing[0][1])}, "
                f"and lacks {len(missing):,} of {len(self._spans):,} documents in all; tools/find_spans.py --json "
                "writes the keys of documents"
            )


def _parsed(text: str, where: str, kinds: dict[str, int], rule: str) -> tuple[str, list[Span]]:
    """The key and the spans of a line; adds new kinds to `kinds` (name -> number, from 0)."""
    try:
        fields = json_files.parse(text)
        key, spans = fields["key"], []
        if not isinstance(key, str):
            raise TypeError(f"the key is {quoted(key)}")
        for begin, end, kind in fields["spans"]:
            if type(begin) is not int or type(end) is not int or not 0 <= begin < end or not isinstance(kind, str):
                raise ValueError(f"a span is {quoted([begin, end, kind])}")
            spans.append((begin, end, kinds.setdefault(check_kind(kind, rule), len(kinds))))
    except json_files.OTHER_SHAPE as error:
        raise UserError(
            f'{where}: should be like {{"key": "8c1f3d0a55e0b7e2", "spans": [[0, 12, "PERSON"]]}}, with begin before '
            f"end ({reason(error)})"
        ) from error
    return key.lower(), sorted(spans, key=lambda span: (span[0], -span[1]))  # of two that begin alike the longer one
