"""Span tags: what a block keeps of the spans in its text, one byte a piece.

A tag is 0 outside every span, 2 * kind + 1 where a span begins and 2 * kind inside it.

Invariant: a span covers every piece that has one of its characters. A piece of two spans belongs to the first.
`tokenize_and_tag` gives the tags that `piece_tags` gives for the places of the pieces.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np

from spanbert_jax.text.span_rules import Span
from spanbert_jax.text.spans import MOST_KINDS, FoundSpans, SpanFinder
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.text.words import Words, split_words

_INSIDE = [bytes([2 * kind]) for kind in range(MOST_KINDS + 1)]  # by the kind: the tag inside a span


def piece_tags(
    sentences: Iterable[Words], spans: Iterable[Sequence[Span]], places: Iterable[Sequence[tuple[int, int]]]
) -> np.ndarray:
    """uint8 [pieces]: the span tags of the pieces of sentences, one after another.

    Args:
      sentences, spans: as `FoundSpans` has them.
      places: for each sentence, (begin, end) of each piece in the sentence's text, ascending (`Tokenizer`).
    """
    tags = bytearray()
    for sentence, of_sentence, of_pieces in zip(sentences, spans, places, strict=True):
        at, last = len(tags), 0
        tags += bytes(len(of_pieces))
        of_words = sentence.places() if of_sentence else []
        for begin, end, kind in of_sentence:
            start = of_words[begin][0]
            first = bisect_left(of_pieces, (start,), last)
            while first > last and of_pieces[first - 1][1] > start:
                first -= 1
            last = bisect_left(of_pieces, (of_words[end - 1][1],), first)
            if first < last:
                tags[at + first : at + last] = _INSIDE[kind] * (last - first)
                tags[at + first] += 1
    return np.frombuffer(tags, np.uint8)


class _Numbers(NamedTuple):
    """What tags need to know of sentences, one after another. Names with `_in` are int64 [sentences]: how many of these
    things each sentence has."""

    pieces: np.ndarray  # int64 [pieces]: the characters of each, white space apart (`Tokenizer.lengths`)
    pieces_in: np.ndarray
    words: np.ndarray  # int64 [words]: the characters of each
    words_in: np.ndarray
    spans: np.ndarray  # int64 [spans, 3]: `Span`s
    spans_in: np.ndarray

    def only(self, chosen: np.ndarray) -> "_Numbers":
        """The same of some sentences. chosen: bool [sentences]."""
        pairs = zip(self[::2], self[1::2], strict=True)
        return _Numbers(*chain.from_iterable((of[np.repeat(chosen, of_in)], of_in[chosen]) for of, of_in in pairs))


def tokenize_and_tag(
    tokenizer: Tokenizer, finder: SpanFinder, texts: Sequence[str], sentences: Sequence[Sequence[str]]
) -> tuple[list[list[list[int]]], list[np.ndarray], int]:
    """The ids of `Tokenizer.tokenize_sentences`, the span tags of each text's pieces, uint8 [pieces], and the number of
    sentences that are too long to be searched (`FoundSpans.left_out`).

    Tokenizers take long to say where pieces lie. So the tags are made without the places in every sentence whose
    pieces have as many characters as its words: white space apart, both are the characters of the sentence in order.

    Args:
      texts, sentences: as there.
    """
    found = map(finder.find, texts, sentences)
    lengths = tokenizer.lengths
    if lengths is None:
        ids, places = tokenizer.tokenize_sentences_with_places(texts, sentences)
        all_found = list(found)
        tags = [piece_tags(of.sentences, of.spans, at) for of, at in zip(all_found, places, strict=True)]
        return ids, tags, sum(of.left_out for of in all_found)
    # A document's words become numbers before the next document is searched, while they are in the processor's cache.
    numbers, left_out = zip(*((_words_and_spans(of), of.left_out) for of in found), strict=True)
    ids = tokenizer.tokenize_sentences(texts, sentences)
    of_sentences = list(chain.from_iterable(ids))
    pieces = lengths[np.fromiter(chain.from_iterable(of_sentences), np.int64)]
    pieces_in = np.fromiter(map(len, of_sentences), np.int64)
    whole = _Numbers(pieces, pieces_in, *map(np.concatenate, zip(*numbers, strict=True)))
    joined = _tags_of_sentences(tokenizer, list(chain.from_iterable(sentences)), whole)
    return ids, np.split(joined, _edges(pieces_in)[np.cumsum(list(map(len, ids)))[:-1]]), sum(left_out)


def _words_and_spans(found: FoundSpans) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`_Numbers` of a document from `words` on."""
    words = [of.words for of in found.sentences]
    spans = np.fromiter(chain.from_iterable(chain.from_iterable(found.spans)), np.int64).reshape(-1, 3)
    return (
        np.fromiter(map(len, chain.from_iterable(words)), np.int64),
        np.fromiter(map(len, words), np.int64),
        spans,
        np.fromiter(map(len, found.spans), np.int64),
    )


def _tags_of_sentences(tokenizer: Tokenizer, texts: list[str], numbers: _Numbers) -> np.ndarray:
    """uint8 [pieces]: the span tags of the pieces of sentences that are tokenised one by one."""
    fits = np.fromiter(map(tokenizer.adds_no_character, texts), np.bool_)  # [sentences]
    fits &= _sums(numbers.pieces, numbers.pieces_in) == _sums(numbers.words, numbers.words_in)
    if fits.all():
        return _tags_by_length(numbers)
    tags, in_fitting = np.zeros(len(numbers.pieces), np.uint8), np.repeat(fits, numbers.pieces_in)
    tags[in_fitting] = _tags_by_length(numbers.only(fits))
    others = list(compress(texts, ~fits))
    _, [places] = tokenizer.tokenize_sentences_with_places([" ".join(others)], [others])
    of_others = numbers.only(~fits)
    spans = np.split(of_others.spans, np.cumsum(of_others.spans_in)[:-1])
    tags[~in_fitting] = piece_tags(map(split_words, others), [of.tolist() for of in spans], places)
    return tags


def _tags_by_length(numbers: _Numbers) -> np.ndarray:
    """uint8 [pieces]: the span tags of the pieces of sentences whose pieces and words have as many characters."""
    pieces, pieces_in, words, words_in, spans, spans_in = numbers
    begin, end, kind = spans.T
    sentence = np.repeat(np.arange(len(spans_in)), spans_in)  # [spans], like begin, end and kind
    at, word_edges = _edges(words_in)[sentence], _edges(words)
    piece_of = np.repeat(np.arange(len(pieces)), pieces)  # [characters]
    first, last = piece_of[word_edges[at + begin]], piece_of[word_edges[at + end] - 1] + 1
    # A piece without characters stands for a space, and is in no span that begins after this space. Only as a
    # sentence's first piece it stands for none, and is in a span that begins with the sentence.
    first = np.where(begin == 0, _edges(pieces_in)[sentence], first)
    first[1:] = np.maximum(first[1:], last[:-1])
    has_pieces = first < last
    first, last, kind = first[has_pieces], last[has_pieces], kind[has_pieces]
    steps = np.zeros(len(pieces) + 1, np.int64)
    steps[first] += 2 * kind
    steps[last] -= 2 * kind
    tags = np.cumsum(steps)[:-1].astype(np.uint8)
    tags[first] += 1
    return tags


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64 [counts]: the sums of the first counts[0] values, of the next counts[1] values, and so on."""
    return np.diff(_edges(values)[_edges(counts)])


def _edges(lengths: np.ndarray) -> np.ndarray:
    """int64 [lengths + 1]: where each of things that lie one after another begins, then where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)])


def begin_anew(tags: np.ndarray) -> np.ndarray:
    """Tags that were cut out of a document's, for a block of their own, where a span that was cut begins anew."""
    tags = tags.copy()
    if len(tags) and tags[0]:
        tags[0] |= 1
    return tags


def count_spans(tags: Sequence[np.ndarray], kinds: int) -> np.ndarray:
    """int64 [kinds]: how many spans of each kind begin in these tags."""
    begun: Any = [part[part % 2 == 1] >> 1 for part in tags]
    return np.bincount(np.concatenate([np.zeros(0, np.uint8), *begun]), minlength=kinds + 1)[1:]
