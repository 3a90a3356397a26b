"""A guess without a model that looks at the text: each masked piece from the two visible pieces beside its span.

Invariant: between the pieces l and r, the guess gives a piece x the probability
(count(l, x) + 5) (count(x, r) + 5) / Z: the bigram distributions given either neighbour, each smoothed by 5, multiplied
and renormalised over the vocabulary. Every piece of a span has the same neighbours, l before the span and r behind it
([CLS] and [SEP] at the ends of a block). Counts are those of the training blocks.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse
import tensorflow as tf

from spanbert_jax.batch import MASK
from spanbert_jax.corpus.blocks import Blocks
from spanbert_jax.text.tokenizer import Tokenizer

SMOOTHING = 5.0  # added to every count
MOST_COUNTED = 10_000_000  # pieces of the training blocks; where there are more, blocks at equal distances are counted
MOST_GUESSED = 500_000  # pieces of the held-out blocks, masked or not: `evaluated_blocks`

_RECORDS = 4_096  # blocks parsed at once
_PAIRS = 64  # pairs of neighbours guessed at once: their distributions have up to 2 * vocab_size entries each


class Guess(NamedTuple):
    """The guess for each masked piece."""

    probability: np.ndarray  # float64: of the masked piece, by the guess
    right: np.ndarray  # bool: whether the guess gives the masked piece the highest probability


class Neighbours:
    """The guess, made from `counts`: int64 [vocab, vocab], sparse, how often the second piece follows the first."""

    def __init__(self, counts: scipy.sparse.csr_array) -> None:
        self._following = counts.astype(np.float64)
        self._preceding = scipy.sparse.csr_array(self._following.T)

    def guess(self, left: np.ndarray, right: np.ndarray, pieces: np.ndarray) -> Guess:
        """The guess for `pieces` between `left` and `right`; int [n] each. Of equally likely ids, the lowest wins."""
        vocab = self._following.shape[0]
        pairs, place = np.unique(np.stack([left, right], 1), axis=0, return_inverse=True)
        place = place.reshape(-1)
        order = np.argsort(place, kind="stable")
        guess = Guess(np.zeros(len(pieces)), np.zeros(len(pieces), bool))
        for first in range(0, len(pairs), _PAIRS):
            chunk = pairs[first : first + _PAIRS]
            before, behind = self._following[chunk[:, 0]], self._preceding[chunk[:, 1]]
            # For every piece (a + 5) (b + 5) - 25. It is 0 where neither neighbour was seen beside the piece, so the
            # table is sparse.
            scores = scipy.sparse.csr_array(before * behind + SMOOTHING * before + SMOOTHING * behind)
            scores.sort_indices()
            total = scores.sum(axis=1) + SMOOTHING**2 * vocab
            likeliest = scores.argmax(axis=1)
            bounds = np.searchsorted(place[order], [first, first + len(chunk)])
            chosen = order[slice(*bounds)]
            row = place[chosen] - first
            guess.probability[chosen] = (scores[row, pieces[chosen]] + SMOOTHING**2) / total[row]
            guess.right[chosen] = likeliest[row] == pieces[chosen]
        return guess


def count_neighbours(blocks: Blocks, tokenizer: Tokenizer) -> Neighbours:
    """Counts the bigrams of [CLS] block [SEP] in about MOST_COUNTED pieces of `blocks`, or in all pieces if fewer.

    A core counts 5 million pieces a second. A distinct bigram takes 12 bytes in each of two tables, one sorted by the
    first piece and one by the second, which makes at most 240 MB.
    """
    vocab = tokenizer.vocab_size
    counts = scipy.sparse.csr_array((vocab, vocab), dtype=np.int64)
    whole = int(blocks.lengths.sum())
    taken = min(len(blocks), max(1, int(len(blocks) * MOST_COUNTED / max(whole, 1))))
    indices = np.linspace(0, len(blocks) - 1, taken).astype(np.int64)
    for first in range(0, taken, _RECORDS):
        rows = _rows(blocks, indices[first : first + _RECORDS], tokenizer)
        left, right = rows[:, :-1], rows[:, 1:]
        together = right >= 0
        pairs = left[together] * vocab + right[together]
        pairs, found = np.unique(pairs, return_counts=True)
        counts = counts + scipy.sparse.csr_array((found, (pairs // vocab, pairs % vocab)), shape=(vocab, vocab))
    return Neighbours(counts)


def evaluated_blocks(blocks: Blocks, limit: int) -> int:
    """The number of held-out blocks on which the guess is evaluated: at most `limit` (0: all), and about MOST_GUESSED
    pieces.

    These blocks are the first in the fixed random order in which the model's evaluation chooses its own. With a
    vocabulary of 29,000 pieces, the guess takes a few seconds.
    """
    wanted = limit or len(blocks)
    return min(wanted, max(1, int(MOST_GUESSED / max(blocks.lengths.mean(), 1))))


def _rows(blocks: Blocks, indices: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """int64 [rows, longest + 2]: [CLS] block [SEP], then -1."""
    feature = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True, default_value=-1)
    pieces = tf.io.parse_example(blocks.read(indices), {"input_ids": feature})["input_ids"].numpy()
    rows = np.pad(pieces, [(0, 0), (1, 1)], constant_values=-1)
    rows[:, 0] = tokenizer.cls_id
    rows[np.arange(len(rows)), (rows >= 0).sum(1)] = tokenizer.sep_id
    return rows


def span_neighbours(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """int32 [rows, slots]: the visible pieces beside each masked piece's span, left and right; anything in unused
    slots."""
    places, used = batch["masked_positions"].astype(np.int64), batch["masked_weights"] > 0
    last = batch["input_ids"].shape[1] - 1
    starts = np.diff(places, prepend=-1, axis=1) != 1
    ends = used & (np.diff(places, append=-1, axis=1) != 1)
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    final = np.minimum.accumulate(np.where(ends, places, last)[:, ::-1], axis=1)[:, ::-1]
    ids = batch["input_ids"]
    beside = (np.maximum(first - 1, 0), np.minimum(final + 1, last))
    left, right = (np.take_along_axis(ids, np.where(used, place, 0), axis=1) for place in beside)
    return left, right


def guess_masked(
    neighbours: Neighbours, batches: Iterable[Mapping[str, np.ndarray]], weights: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """(accuracy, mean nats) of the guess on the pieces that became [MASK].

    weights: names of fields of a batch. Each field, as the weights of the slots, gives one result. A field that weighs
    no such slot is left out.
    """
    weights = list(weights)
    left: list[np.ndarray] = []
    right: list[np.ndarray] = []
    pieces, counted = [], []
    for batch in batches:
        masked = (batch["replacement"] == MASK) & (batch["masked_weights"] > 0)
        for values, found in zip((left, right), span_neighbours(batch), strict=True):
            values.append(found[masked])
        pieces.append(batch["masked_ids"][masked])
        counted.append(np.stack([batch[name][masked] for name in weights]))
    if not sum(map(len, pieces)):
        return {}
    guess = neighbours.guess(*(np.concatenate(values) for values in (left, right, pieces)))
    out = {}
    for name, weight in zip(weights, np.concatenate(counted, axis=1), strict=True):
        if weight.sum():
            nats = -np.log(guess.probability)
            out[name] = float(guess.right @ weight / weight.sum()), float(nats @ weight / weight.sum())
    return out
