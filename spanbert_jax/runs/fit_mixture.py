"""Fits the mixture of infilling on held-out spans: SBO's weights, the law of lengths, and how lengths are compared.

Invariant: each number is the best on the spans: a weight gives the pieces of its bucket the highest probability, and
alpha finds the most lengths. The log-probability of a piece is concave in the weight, so a grid finds its maximum.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from spanbert_jax.errors import UserError
from spanbert_jax.runs.held_out_spans import HeldOutSpan
from spanbert_jax.serving.decoding import Target, Task, fill
from spanbert_jax.serving.mixture import BUCKETS, LONGEST, Mixture, buckets, uniform_mixture
from spanbert_jax.serving.slot_scores import SlotScorer
from spanbert_jax.text.tokenizer import Tokenizer

GRID = tuple(i / 20 for i in range(21))  # of SBO's weight
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTH_SPANS = 128  # on which alpha is chosen, at most: each is filled with every number of pieces up to:
MOST_PIECES = 8
_FEWEST = 50  # pieces of a bucket; one with fewer takes the weight that suits all pieces
_AT_ONCE = 256  # spans that are scored between two reports

Show = Callable[[float, str], None]  # takes the fraction that is done and a few words


class Fit(NamedTuple):
    """A mixture, and what it was measured to be worth on the spans that it was fitted on."""

    mixture: Mixture
    pieces: tuple[int, ...]  # of each bucket
    nats: dict[str, tuple[float, ...]]  # a piece, of each bucket: "mlm", "sbo", "mixture"
    lengths_found: float  # share of up to LENGTH_SPANS spans whose number of pieces is found; NaN: no row has room
    lengths_commonest: float  # the same of the guess that is always the commonest number

    def measured(self) -> dict[str, Any]:
        """For the file, with the numbers of all buckets together."""
        counts = np.array(self.pieces)
        whole = {name: float(np.nansum(np.array(of) * counts) / counts.sum()) for name, of in self.nats.items()}
        by_bucket = {name: [_known(value) for value in of] for name, of in self.nats.items()}
        return {
            "pieces": int(counts.sum()),
            "pieces_by_bucket": list(self.pieces),
            "nats": whole,
            "nats_by_bucket": by_bucket,
            "lengths_found": _known(self.lengths_found),
            "lengths_commonest": _known(self.lengths_commonest),
        }


def _known(value: float) -> float | None:
    """The value for JSON, which has no NaN."""
    return None if np.isnan(value) else value


def fit_mixture(scorer: SlotScorer, tokenizer: Tokenizer, spans: Sequence[HeldOutSpan], show: Show) -> Fit:
    """The mixture that suits the spans. Raises UserError where the weights lack MLM or SBO."""
    if len(scorer.heads) < 2:
        raise UserError(f"the weights have {scorer.heads[0].upper()} alone, so there is nothing to mix")
    log_probs, where = _log_probs(scorer, spans, lambda done: show(done / 2, "weights"))
    weights, counts, nats = _fit_weights(log_probs, where)
    lengths = np.bincount([min(len(span.pieces), LONGEST) - 1 for span in spans], minlength=LONGEST) + 1.0
    mixture = Mixture(weights, tuple((lengths / lengths.sum()).tolist()))
    alpha, found, guessed = _fit_alpha(scorer, tokenizer, spans, mixture)
    show(1.0, "lengths")
    return Fit(Mixture(mixture.weights, mixture.lengths, alpha, True), counts, nats, found, guessed)


def _log_probs(
    scorer: SlotScorer, spans: Sequence[HeldOutSpan], show: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability of each piece at each weight of GRID, float32 [pieces, GRID]; the pieces' buckets, int
    [pieces])."""
    mixtures = [uniform_mixture(weight) for weight in GRID]
    values, where = [], []
    for first in range(0, len(spans), _AT_ONCE):
        some = spans[first : first + _AT_ONCE]
        found = scorer.given([span.query for span in some], [span.pieces for span in some], mixtures, True)
        values += [given.log_probs for given in found]
        where += [buckets(np.arange(len(span.pieces)), np.full(len(span.pieces), len(span.pieces))) for span in some]
        show(min(1.0, (first + _AT_ONCE) / len(spans)))
    return np.concatenate(values), np.concatenate(where)


def _fit_weights(
    log_probs: np.ndarray, where: np.ndarray
) -> tuple[tuple[float, ...], tuple[int, ...], dict[str, tuple[float, ...]]]:
    """(the weight of each bucket, the pieces of each bucket, their nats)."""
    everywhere = int(np.argmax(log_probs.mean(axis=0)))
    chosen, counts = [], np.bincount(where, minlength=len(BUCKETS))
    nats: dict[str, list[float]] = {"mlm": [], "sbo": [], "mixture": []}
    for bucket, count in enumerate(counts):
        mean = log_probs[where == bucket].mean(axis=0) if count else np.full(len(GRID), np.nan)
        best = int(np.argmax(mean)) if count >= _FEWEST else everywhere
        chosen.append(best)
        for name, place in (("mlm", 0), ("sbo", -1), ("mixture", best)):
            nats[name].append(-float(mean[place]))
    weights = tuple(GRID[place] for place in chosen)
    return weights, tuple(counts.tolist()), {name: tuple(values) for name, values in nats.items()}


def _fit_alpha(
    scorer: SlotScorer, tokenizer: Tokenizer, spans: Sequence[HeldOutSpan], mixture: Mixture
) -> tuple[float, float, float]:
    """(the alpha that most often ranks the span's own number of pieces first, the larger of equal ones; how often; how
    often the commonest number would be right)."""
    # A row must have room for the longest filling, whatever its own span's length is: the lengths stay as they are.
    known = [s for s in spans if len(s.pieces) <= MOST_PIECES and len(s.query.ids) + MOST_PIECES - 1 <= scorer.longest]
    spans = known[:LENGTH_SPANS]
    if not spans:
        return mixture.alpha, float("nan"), float("nan")
    tasks = [_task(span, length, tokenizer) for span in spans for length in range(1, MOST_PIECES + 1)]
    fillings = fill(tasks, "parallel", 1, lambda queries: scorer.best(queries, mixture, True), tokenizer.ends_word)
    log_probs = np.array([of[0].log_prob for of in fillings]).reshape(len(spans), MOST_PIECES)
    true, lengths = np.array([len(span.pieces) for span in spans]), np.arange(1, MOST_PIECES + 1)
    law = np.log(mixture.lengths[:MOST_PIECES])
    hits = [float(np.mean(np.argmax(log_probs / lengths**alpha + law, axis=1) + 1 == true)) for alpha in ALPHAS]
    best = max(range(len(ALPHAS)), key=lambda place: (hits[place], place))
    return ALPHAS[best], hits[best], float(np.bincount(true).max() / len(true))


def _task(span: HeldOutSpan, length: int, tokenizer: Tokenizer) -> Task:
    """The span's row with so many [MASK]s in the place of the span."""
    first, last = span.query.masked[0], span.query.masked[-1]
    ids = (*span.query.ids[:first], *[tokenizer.mask_id] * length, *span.query.ids[last + 1 :])
    masked = tuple(range(first, first + length))
    return Task(ids, masked, (Target(masked),))
