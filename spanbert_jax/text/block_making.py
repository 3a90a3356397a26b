"""Documents to blocks: split into sentences, searched for spans, tokenised, packed, serialised.

Invariant: the blocks of a document depend on its text and on the `BlockMaker` alone. With a tokenizer.json the blocks,
one after another, hold the ids of the text as one string. Worker processes run this module, so it imports neither
TensorFlow nor JAX.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spanbert_jax.text.packing import FEATURE, SPANS_FEATURE, pack, serialize
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.spans import SpanFinder, begin_anew, count_spans, piece_tags
from spanbert_jax.text.tokenizer import Tokenizer


class MadeBlocks(NamedTuple):
    """The blocks of a few documents, in order. Keys of the dictionaries: whether the documents are held out."""

    records: dict[bool, list[bytes]]  # serialised tf.train.Examples
    lengths: dict[bool, list[int]]  # pieces in each record
    counts: dict[bool, np.ndarray]  # int64[3]: documents, sentences, pieces
    piece_counts: np.ndarray  # int64[vocab_size]: how often each piece occurs in documents that are not held out
    # int64[1 + kinds]: sentences that are too long to be searched for spans, then the spans of each kind in the blocks
    span_counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class BlockMaker:
    """Everything that turns a document into blocks; sent to each worker process once."""

    tokenizer: Tokenizer
    language: str  # ISO code of the text's language, for the sentence splitter
    splitter: str  # "sentencex" or "none"
    max_pieces: int  # in a block, without [CLS] and [SEP]
    finder: SpanFinder | None = None  # None: blocks without span tags

    @property
    def span_counters(self) -> int:
        """The length of `MadeBlocks.span_counts`."""
        return 1 + len(self.finder.kinds if self.finder else ())

    def __call__(self, documents: Sequence[tuple[str, bool]]) -> MadeBlocks:
        """The blocks of documents, each given as (text, whether it is held out)."""
        pieces, tags, left_out = self._pieces([text for text, _ in documents])
        records: dict[bool, list[bytes]] = {False: [], True: []}
        lengths: dict[bool, list[int]] = {False: [], True: []}
        counts = {side: np.zeros(3, dtype=np.int64) for side in records}
        seen: list[np.ndarray] = []
        span_counts = np.array([left_out] + [0] * (self.span_counters - 1), dtype=np.int64)
        for (_, held_out), document, of_pieces in zip(documents, pieces, tags, strict=True):
            features = list(self._packed(document, of_pieces))
            blocks = [of[FEATURE] for of in features]
            records[held_out] += map(serialize, features)
            lengths[held_out] += map(len, blocks)
            counts[held_out] += (1, len(document), sum(map(len, blocks)))
            if not held_out:
                seen += blocks
            if of_pieces is not None:
                span_counts[1:] += count_spans([of[SPANS_FEATURE] for of in features], self.span_counters - 1)
        joined = np.concatenate([np.zeros(0, np.int64), *seen])
        piece_counts = np.bincount(joined, minlength=self.tokenizer.vocab_size)
        return MadeBlocks(records, lengths, counts, piece_counts, span_counts)

    def _pieces(self, texts: Sequence[str]) -> tuple[list[list[list[int]]], Sequence[np.ndarray | None], int]:
        """For each text: the pieces of its sentences, and the span tags of all its pieces (None without rules); and the
        number of sentences that are too long to be searched."""
        sentences = [split_sentences(text, self.language, self.splitter) for text in texts]
        if self.finder is None:
            return self.tokenizer.tokenize_sentences(texts, sentences), [None] * len(texts), 0
        pieces, places = self.tokenizer.tokenize_sentences_with_places(texts, sentences)
        found = list(map(self.finder.find, texts, sentences))
        return pieces, list(map(piece_tags, found, places)), sum(of.left_out for of in found)

    def _packed(self, document: Sequence[Sequence[int]], tags: np.ndarray | None) -> Iterator[dict[str, np.ndarray]]:
        """The features of the blocks of a document, given as the pieces of its sentences and their span tags."""
        place = 0
        for block in pack(document, self.max_pieces):
            features = {FEATURE: np.array(block)}
            if tags is not None:
                features[SPANS_FEATURE] = begin_anew(tags[place : place + len(block)])
            place += len(block)
            yield features
