"""Documents to blocks: split into sentences, searched for spans, tokenised, packed or paired, serialised.

Invariant: the blocks of a document depend on its text and on the `BlockMaker` alone; blocks of pairs also on the other
documents of the task (pairs.py). With a tokenizer.json the packed blocks, one after another, hold the ids of the text
as one string. Worker processes run this module, so it imports neither TensorFlow nor JAX.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spanbert_jax.text.packing import FEATURE, SPANS_FEATURE, cut, pack, serialize
from spanbert_jax.text.pairs import PAIR, Lengths, Task, make_pairs
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.span_tags import begin_anew, count_spans, tokenize_and_tag
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.tokenizer import Tokenizer


class MadeBlocks(NamedTuple):
    """The blocks of a few documents, in order. Keys of the dictionaries: whether the documents are held out."""

    records: dict[bool, list[bytes]]  # serialised tf.train.Examples
    lengths: dict[bool, list[int]]  # pieces in each record
    counts: dict[bool, np.ndarray]  # int64[3]: documents, sentences, pieces
    piece_counts: np.ndarray  # int64[vocab_size]: how often each piece occurs in documents that are not held out
    # int64[1 + kinds]: sentences that are too long to be searched for spans, then the spans of each kind in the blocks
    span_counts: np.ndarray


class _Pieces(NamedTuple):
    """A document, tokenised."""

    key: bytes  # as `Document.key`
    sentences: Sequence[Sequence[int]]  # the pieces of each sentence
    tags: np.ndarray | None  # the span tags of all pieces; None without rules


@dataclasses.dataclass(frozen=True)
class BlockMaker:
    """Everything that turns a document into blocks; sent to each worker process once."""

    tokenizer: Tokenizer
    language: str  # ISO code of the text's language, for the sentence splitter
    splitter: str  # "sentencex" or "none"
    max_pieces: int  # in a block, without the special pieces of its row
    finder: SpanFinder | None = None  # None: blocks without span tags
    pairs: bool = False  # whether a block is a pair of texts

    @property
    def span_counters(self) -> int:
        """The length of `MadeBlocks.span_counts`."""
        return 1 + len(self.finder.kinds if self.finder else ())

    def __call__(self, documents: Task) -> MadeBlocks:
        """The blocks of documents, those held out apart from the others."""
        with _no_garbage_collection():
            return self._made(documents)

    def _made(self, documents: Task) -> MadeBlocks:
        pieces, left_out = self._pieces(documents)
        records: dict[bool, list[bytes]] = {False: [], True: []}
        lengths: dict[bool, list[int]] = {False: [], True: []}
        counts = {side: np.zeros(3, dtype=np.int64) for side in records}
        seen: list[np.ndarray] = []
        span_counts = np.array([left_out] + [0] * (self.span_counters - 1), dtype=np.int64)
        for side in records:
            mine = [of for of, (_, held_out, _) in zip(pieces, documents, strict=True) if held_out is side]
            features = list(self._paired(mine) if self.pairs else self._packed(mine))
            blocks = [of[FEATURE] for of in features]
            records[side] += map(serialize, features)
            lengths[side] += map(len, blocks)
            counts[side] += (len(mine), sum(len(of.sentences) for of in mine), sum(map(len, blocks)))
            if not side:
                seen += blocks
            if self.finder is not None:
                span_counts[1:] += count_spans([of[SPANS_FEATURE] for of in features], self.span_counters - 1)
        joined = np.concatenate([np.zeros(0, np.int64), *seen])
        piece_counts = np.bincount(joined, minlength=self.tokenizer.vocab_size)
        return MadeBlocks(records, lengths, counts, piece_counts, span_counts)

    def _pieces(self, documents: Task) -> tuple[list[_Pieces], int]:
        """The pieces of each document, and the number of sentences that are too long to be searched for spans."""
        texts, keys = [text for text, _, _ in documents], [key for _, _, key in documents]
        sentences = [split_sentences(text, self.language, self.splitter) for text in texts]
        if self.finder is None:
            pieces = self.tokenizer.tokenize_sentences(texts, sentences)
            return [_Pieces(key, of, None) for key, of in zip(keys, pieces, strict=True)], 0
        pieces, tags, left_out = tokenize_and_tag(self.tokenizer, self.finder, texts, sentences)
        return list(map(_Pieces, keys, pieces, tags)), left_out

    def _packed(self, documents: Sequence[_Pieces]) -> Iterator[dict[str, np.ndarray]]:
        """The features of the blocks of documents."""
        for document in documents:
            place = 0
            for block in pack(document.sentences, self.max_pieces):
                features = {FEATURE: np.array(block)}
                if document.tags is not None:
                    features[SPANS_FEATURE] = begin_anew(document.tags[place : place + len(block)])
                place += len(block)
                yield features

    def _paired(self, documents: Sequence[_Pieces]) -> Iterator[dict[str, np.ndarray]]:
        """The features of the pairs of documents."""
        parts = [list(cut(document.sentences, self.max_pieces)) for document in documents]
        whole = [np.concatenate([np.zeros(0, np.int64), *of]) for of in parts]  # int64[pieces] of each document
        lengths = [Lengths(of.key, list(map(len, cuts))) for of, cuts in zip(documents, parts, strict=True)]
        for pair in make_pairs(lengths, self.max_pieces):
            texts = pair.first, pair.second
            pieces = [whole[text.document][text.start : text.stop] for text in texts]
            features = {FEATURE: np.concatenate(pieces), PAIR: np.array([len(pieces[0]), pair.is_random])}
            tags = [of[text.start : text.stop] for text in texts if (of := documents[text.document].tags) is not None]
            if tags:
                features[SPANS_FEATURE] = np.concatenate(list(map(begin_anew, tags)))
            yield features


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spares the search for cycles among some 400,000 small objects a MB of text, which have none: it takes a fifth of
    the time of a build with span tags."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
