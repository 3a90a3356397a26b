"""A guess without a model that looks at the text: each masked piece from the visible pieces beside the piece.

Invariant: between the pieces l and r, the guess gives a piece x a probability proportional to
f(x) [p(x | l) / f(x)] [p(x | r) / f(x)]. f is the frequency of x in the training blocks, with 1 added to every count.
p(x | l) is (count(l, x) + 5 f(x)) / (count(l) + 5), and p(x | r) likewise. The factor of a neighbour that is masked as
well is left out, so f alone guesses a piece in the middle of a span. Counts are those of the training blocks.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse

from spanbert_jax.batch import MASK
from spanbert_jax.corpus.blocks import Blocks, parse_records
from spanbert_jax.text.packing import FEATURE
from spanbert_jax.text.pairs import PAIR
from spanbert_jax.text.tokenizer import Tokenizer

SMOOTHING = 5.0  # observations of f that are added to those of each neighbour
MOST_COUNTED = 10_000_000  # pieces of the training blocks; where there are more, blocks at equal distances are counted
MOST_GUESSED = 500_000  # pieces of the held-out blocks, masked or not: `evaluated_blocks`

RECORDS = 4_096  # blocks parsed at once
PAIRS = 64  # pairs of neighbours guessed at once: their distributions have up to 2 * vocab_size entries each


class Guess(NamedTuple):
    """The guess for each masked piece."""

    probability: np.ndarray  # float64: of the masked piece, by the guess
    right: np.ndarray  # bool: whether the guess gives the masked piece the highest probability


class Neighbours:
    """The guess, made from counts of the training blocks."""

    def __init__(self, counts: scipy.sparse.csr_array, piece_counts: np.ndarray) -> None:
        """counts: int64 [vocab, vocab], sparse, how often the second piece follows the first. piece_counts: int64
        [vocab]."""
        self._following = counts.astype(np.float64)
        self._preceding = scipy.sparse.csr_array(self._following.T)
        self._frequency = (piece_counts + 1.0) / (piece_counts + 1.0).sum()

    def guess(self, left: np.ndarray, right: np.ndarray, pieces: np.ndarray) -> Guess:
        """The guess for `pieces` between `left` and `right`; int [n] each, -1 for a neighbour that is masked."""
        pairs, place = np.unique(np.stack([left, right], 1), axis=0, return_inverse=True)
        place = place.reshape(-1)
        order = np.argsort(place, kind="stable")
        guess = Guess(np.zeros(len(pieces)), np.zeros(len(pieces), bool))
        for first in range(0, len(pairs), PAIRS):
            scores, rest, likeliest = self._scores(pairs[first : first + PAIRS])
            bounds = np.searchsorted(place[order], [first, first + len(rest)])
            chosen = order[slice(*bounds)]
            row, piece = place[chosen] - first, pieces[chosen]
            total = scores.sum(axis=1) + rest
            guess.probability[chosen] = (scores[row, piece] + rest[row] * self._frequency[piece]) / total[row]
            guess.right[chosen] = likeliest[row] == piece
        return guess

    def _scores(self, pairs: np.ndarray) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray]:
        """For pairs of neighbours, int [pairs, 2], with f for `_frequency`: scores [pairs, vocab], sparse, and rest
        [pairs], so that scores + rest * f is proportional to the guess; and the likeliest piece of each pair.

        (a + 5 f) (b + 5 f) / f = a b / f + 5 a + 5 b + 25 f, where a and b count the piece beside either neighbour. A
        masked neighbour has the factor 1, which is a count of 0 with a smoothing of 1.
        """
        known = pairs >= 0
        smoothing = np.where(known, SMOOTHING, 1.0)
        before = self._following[np.maximum(pairs[:, 0], 0)].multiply(known[:, :1])
        behind = self._preceding[np.maximum(pairs[:, 1], 0)].multiply(known[:, 1:])
        both = before.multiply(behind).multiply(1 / self._frequency)
        scores = both + before.multiply(smoothing[:, 1:]) + behind.multiply(smoothing[:, :1])
        scores, rest = scipy.sparse.csr_array(scores), smoothing.prod(axis=1)
        whole = scores.copy()
        whole.data += np.repeat(rest, np.diff(whole.indptr)) * self._frequency[whole.indices]
        commonest = int(np.argmax(self._frequency))
        is_beside = whole.max(axis=1).toarray().ravel() > rest * self._frequency[commonest]
        return scores, rest, np.where(is_beside, whole.argmax(axis=1), commonest)


def count_neighbours(blocks: Blocks, tokenizer: Tokenizer) -> Neighbours:
    """Counts the bigrams of rows in about MOST_COUNTED pieces of `blocks`, or in all pieces if fewer.

    A core counts 5 million pieces a second. A distinct bigram takes 12 bytes in each of two tables, one sorted by the
    first piece and one by the second, which makes at most 240 MB.
    """
    vocab = tokenizer.vocab_size
    counts = scipy.sparse.csr_array((vocab, vocab), dtype=np.int64)
    whole = int(blocks.lengths.sum())
    taken = min(len(blocks), max(1, int(len(blocks) * MOST_COUNTED / max(whole, 1))))
    indices = np.linspace(0, len(blocks) - 1, taken).astype(np.int64)
    for first in range(0, taken, RECORDS):
        rows = _rows(blocks, indices[first : first + RECORDS], tokenizer)
        left, right = rows[:, :-1], rows[:, 1:]
        together = right >= 0
        pairs = left[together] * vocab + right[together]
        pairs, found = np.unique(pairs, return_counts=True)
        counts = counts + scipy.sparse.csr_array((found, (pairs // vocab, pairs % vocab)), shape=(vocab, vocab))
    return Neighbours(counts, blocks.metadata.piece_counts)


def evaluated_blocks(blocks: Blocks, limit: int) -> int:
    """The number of held-out blocks on which the guess is evaluated: at most `limit` (0: all), and about MOST_GUESSED
    pieces.

    These blocks are the first in the fixed random order in which the model's evaluation chooses its own. With a
    vocabulary of 29,000 pieces, the guess takes a few seconds.
    """
    wanted = limit or len(blocks)
    return min(wanted, max(1, int(MOST_GUESSED / max(blocks.lengths.mean(), 1))))


def _rows(blocks: Blocks, indices: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """int64 [rows, longest + 2]: [CLS] block [SEP], then -1; of pairs [CLS] A [SEP] B [SEP], which are one longer."""
    features = parse_records(blocks.read(indices), (FEATURE, PAIR))
    pieces, pairs = features[FEATURE].numpy(), features[PAIR].numpy()
    if pairs.size:
        place, first = np.arange(pieces.shape[1] + 1)[None, :], pairs[:, :1]
        shifted = np.take_along_axis(np.pad(pieces, [(0, 0), (0, 1)], constant_values=-1), place - (place > first), 1)
        pieces = np.where(place == first, tokenizer.sep_id, shifted)
    rows = np.pad(pieces, [(0, 0), (1, 1)], constant_values=-1)
    rows[:, 0] = tokenizer.cls_id
    rows[np.arange(len(rows)), (rows >= 0).sum(1)] = tokenizer.sep_id
    return rows


def visible_neighbours(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """int32 [rows, slots]: the pieces left and right of each masked piece; -1 where the neighbour is masked as well.
    Anything in unused slots. The pieces of a collapsed span (corpus/collapsing.py) have one position."""
    places, ids = batch["masked_positions"].astype(np.int64), batch["input_ids"]
    begins = ~np.isin(np.diff(places, prepend=-1, axis=1), (0, 1))  # no masked piece lies just before it
    ends = ~np.isin(np.diff(places, append=-1, axis=1), (0, 1))
    left = np.take_along_axis(ids, np.maximum(places - 1, 0), axis=1)
    right = np.take_along_axis(ids, np.minimum(places + 1, ids.shape[1] - 1), axis=1)
    return np.where(begins, left, -1), np.where(ends, right, -1)


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
        for values, found in zip((left, right), visible_neighbours(batch), strict=True):
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
