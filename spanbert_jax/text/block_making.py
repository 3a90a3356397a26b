"""Documents to blocks: split into sentences, tokenised, packed, serialised.

Invariant: the blocks of a document depend on its text and on the `BlockMaker` alone. With a tokenizer.json the blocks,
one after another, hold the ids of the text as one string. Worker processes run this module, so it imports neither
TensorFlow nor JAX.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spanbert_jax.text.packing import FEATURE, pack, serialize
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.tokenizer import Tokenizer


class MadeBlocks(NamedTuple):
    """The blocks of a few documents, in order. Keys of the dictionaries: whether the documents are held out."""

    records: dict[bool, list[bytes]]  # serialised tf.train.Examples
    lengths: dict[bool, list[int]]  # pieces in each record
    counts: dict[bool, np.ndarray]  # int64[3]: documents, sentences, pieces
    piece_counts: np.ndarray  # int64[vocab_size]: how often each piece occurs in documents that are not held out


@dataclasses.dataclass(frozen=True)
class BlockMaker:
    """Everything that turns a document into blocks; sent to each worker process once."""

    tokenizer: Tokenizer
    language: str  # ISO code of the text's language, for the sentence splitter
    splitter: str  # "sentencex" or "none"
    max_pieces: int  # in a block, without [CLS] and [SEP]

    def __call__(self, documents: Sequence[tuple[str, bool]]) -> MadeBlocks:
        """The blocks of documents, each given as (text, whether it is held out)."""
        sentences = [split_sentences(text, self.language, self.splitter) for text, _ in documents]
        pieces = self.tokenizer.tokenize_sentences([text for text, _ in documents], sentences)
        records: dict[bool, list[bytes]] = {False: [], True: []}
        lengths: dict[bool, list[int]] = {False: [], True: []}
        counts = {side: np.zeros(3, dtype=np.int64) for side in records}
        seen: list[np.ndarray] = []
        for (_, held_out), document in zip(documents, pieces, strict=True):
            blocks = [np.array(block) for block in pack(document, self.max_pieces)]
            records[held_out] += [serialize({FEATURE: block}) for block in blocks]
            lengths[held_out] += map(len, blocks)
            counts[held_out] += (1, len(document), sum(map(len, blocks)))
            if not held_out:
                seen += blocks
        joined = np.concatenate([np.zeros(0, np.int64), *seen])
        return MadeBlocks(records, lengths, counts, np.bincount(joined, minlength=self.tokenizer.vocab_size))
