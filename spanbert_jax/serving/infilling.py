"""Fills the gaps of texts with whole words: by the masked-language-model and the span-boundary head together, or by the
span decoder (decoder_search.py).

Invariant: the text outside of the gaps stays as it is, character by character, and the filling of a text does not
depend on the texts beside it.

With the two heads, every number of pieces that a gap may have is a row of its own. A gap of open length takes the
number of pieces n that has the highest log p / n^alpha + log q(n), where p is the probability of the filling and q the
law of lengths (mixture.py). In a text with several gaps, each gap chooses its length while the other open gaps have the
likeliest length of the law. All gaps are then filled in one row.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import NamedSharding

from spanbert_jax.errors import UserError, quoted
from spanbert_jax.serving.decoder_search import written
from spanbert_jax.serving.decoding import ORDERS, Candidate, Choice, Query, Scores
from spanbert_jax.serving.gap_lengths import Found, Solution, search
from spanbert_jax.serving.gaps import GappedText, Span, Words, piece_classes, read_gaps
from spanbert_jax.serving.mixture import BUCKETS, Mixture, default_mixture, read_mixture
from spanbert_jax.serving.predictor import Params
from spanbert_jax.serving.slot_scores import BEST, SlotScorer
from spanbert_jax.serving.span_writer import SpanWriter
from spanbert_jax.serving.weights import Weights
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.text.wordpiece import CONTINUES
from spanbert_jax.training.progress import Show, quiet

WORDS = (1, 4)  # fewest and most words of a gap of open length
ORDER, BEAM, ALTERNATIVES = "confidence", 5, 5
MIXTURE, DECODER = "mixture", "decoder"  # what fills gaps: MLM and SBO together, or the span decoder
MOST_MASKED = 128  # pieces in the gaps of a text
# WordPiece does not say where a space stood. None stands before the first, behind the second, on either side of the
# third.
_NO_SPACE_BEFORE, _NO_SPACE_BEHIND, _NO_SPACE_BESIDE = ".,;:!?)]}%", "([{$", "'’-/"


@dataclasses.dataclass(frozen=True)
class PieceChoice:
    """A piece that may stand somewhere, with its probability by the mixture and by each head that predicts there."""

    piece: str  # as the vocabulary writes it: "##ing", "▁the"
    probability: float
    heads: dict[str, float]  # "mlm", "sbo"; or "decoder"


@dataclasses.dataclass(frozen=True)
class FilledPiece(PieceChoice):
    """A piece that was filled in."""

    start: int  # the characters [start, end) of the filled text
    end: int
    step: int  # from 0: when the piece was filled in
    alternatives: tuple[PieceChoice, ...]  # the likeliest pieces at that step, the chosen one among them, best first


@dataclasses.dataclass(frozen=True)
class OtherFilling:
    """A filling of a gap that was found and not taken."""

    text: str
    log_probability: float  # the sum over its pieces; the decoder's is that of the length too
    score: (
        float  # log_probability / pieces^alpha, and with an open length + log q(pieces); the decoder's log_probability
    )
    pieces: int


@dataclasses.dataclass(frozen=True)
class FilledGap:
    """A gap with its filling."""

    replaced: Span  # characters of the text as given
    start: int  # the characters [start, end) of the filled text
    end: int
    text: str
    log_probability: float
    score: float
    pieces: tuple[FilledPiece, ...]
    others: tuple[OtherFilling, ...]  # of other lengths, and the rest of a beam; best first


@dataclasses.dataclass(frozen=True)
class Infilled:
    """A text with its gaps filled."""

    text: str
    gaps: tuple[FilledGap, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return dataclasses.asdict(self)


class Infiller:
    """Fills gaps with the heads of any weights that have MLM, SBO or both.

    Attributes:
      heads: the names of the heads that are there, of "mlm" and "sbo".
      mixture: how the heads' scores are mixed, unless a call says so itself.
    """

    def __init__(self, weights: Weights, params: Params, layout: NamedSharding):
        """layout: divides the rows of a batch among the devices. Raises UserError where the weights have neither head,
        or a mixture that was fitted for other weights."""
        self._tokenizer = weights.tokenizer
        self._classes = piece_classes(weights.tokenizer)
        self.scorer = SlotScorer(weights, params, layout, self._classes)
        self.heads = self.scorer.heads
        self._weights, self._params, self._layout = weights, params, layout
        self._writers: dict[int, SpanWriter] = {}  # by the width of their beam
        fitted = read_mixture(weights.source, made_for(weights)) if weights.metadata else None
        self.mixture = fitted or default_mixture(weights.config.masking)

    def warm_up(self, show: Show = quiet) -> None:
        """Compiles the programs that gaps of up to 32 pieces in a text need, and those that score texts; otherwise the
        first text that needs a program waits for its compilation."""
        self.scorer.warm_up(show)

    def infill(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]] | None = None,
        words: Words = WORDS,
        order: str = ORDER,
        beam: int = BEAM,
        mix: float | None = None,
        alternatives: int = ALTERNATIVES,
        heads: str = MIXTURE,
    ) -> list[Infilled]:
        """The texts with their gaps filled, in their order.

        Args:
          texts: texts with marks (gaps.py).
          spans: of each text, the characters [start, end) to replace; its marks are then text.
          words: the number of words in a gap of open length, or the fewest and the most.
          order: one of `decoding.ORDERS`.
          beam: fillings that are kept at each position, with order "beam".
          mix: SBO's weight everywhere, 0 (MLM alone) to 1 (SBO alone); None: as fitted, or else 0.5.
          alternatives: pieces that are shown at each position.
          heads: "mixture", of MLM and SBO; or "decoder", the span decoder, which keeps `beam` fillings, has no order
            and no mix, and shows no alternatives for single pieces.

        Raises UserError, naming texts[i] where there are several, where a text has no gap that can be filled, or is
        longer than the model's rows; and where another argument is out of its range.
        """
        check_numbers(order, beam, alternatives)
        check_heads(heads, mix)
        mixture = self._mixture(mix)
        read = []
        for i, text in enumerate(texts):
            try:
                gapped = read_gaps(text, spans[i] if spans is not None else None, words, self._tokenizer, self._classes)
                self._check_room(gapped)
            except UserError as error:
                raise UserError(f"texts[{i}]: {error}" if len(texts) > 1 else str(error)) from error
            read.append(gapped)

        if heads == DECODER:
            solutions = written(read, self._tokenizer, self._writer(beam))
            pairs = zip(read, solutions, strict=True)
            return [self._described(gapped, of, 0, (DECODER,)) for gapped, of in pairs]

        def score(queries: Sequence[Query]) -> list[Scores]:
            return self.scorer.best(queries, mixture)

        solutions = search(read, self._tokenizer, mixture, order, beam, score)
        pairs = zip(read, solutions, strict=True)
        return [self._described(gapped, of, alternatives, self.heads) for gapped, of in pairs]

    def _writer(self, beam: int) -> SpanWriter:
        if beam not in self._writers:
            self._writers[beam] = SpanWriter(self._weights, self._params, self._layout, self._classes, beam)
        return self._writers[beam]

    def _mixture(self, mix: float | None) -> Mixture:
        if mix is None:
            return self.mixture
        if not 0 <= mix <= 1:
            raise UserError(f"mix is {mix}; expected a number from 0 (MLM alone) to 1 (SBO alone)")
        if len(self.heads) == 1 and mix != (self.heads[0] == "sbo"):
            raise UserError(
                f"mix is {mix}, and these weights have {self.heads[0].upper()} alone; leave mix out, or name weights "
                "with both heads"
            )
        return dataclasses.replace(self.mixture, weights=(mix,) * len(BUCKETS))

    def _check_room(self, gapped: GappedText) -> None:
        most = [gap.lengths[-1] for gap in gapped.gaps]
        pieces, room = sum(map(len, gapped.around)) + sum(most), self.scorer.longest - 2
        if pieces > room or sum(most) > MOST_MASKED:
            raise UserError(
                f"the text has {pieces:,} pieces with {sum(most)} of them in gaps, and the model takes {room:,} with "
                f"at most {MOST_MASKED} in gaps; give a part of the text, or fewer words"
            )

    def _described(self, gapped: GappedText, solution: Solution, alternatives: int, heads: tuple[str, ...]) -> Infilled:
        """heads: the names of the heads whose log-probabilities the candidates have."""
        text, gaps, at = "", [], 0
        for place, gap in enumerate(gapped.gaps):
            text += gapped.text[at : gap.start]
            found, at = solution.gaps[place], gap.end
            filling, offsets = spelled(self._tokenizer, found.ids)
            pieces = [
                self._piece(choice, len(text) + start, len(text) + end, alternatives, heads)
                for choice, (start, end) in zip(found.choices, offsets, strict=True)
            ]
            others = self._others(filling, solution.others[place])
            end = len(text) + len(filling)
            replaced = (gap.start, gap.end)
            gaps.append(
                FilledGap(replaced, len(text), end, filling, found.log_prob, found.score, tuple(pieces), others)
            )
            text += filling
        return Infilled(text + gapped.text[at:], tuple(gaps))

    def _others(self, taken: str, found: Sequence[Found]) -> tuple[OtherFilling, ...]:
        """The fillings, each text once."""
        kept: dict[str, OtherFilling] = {}
        for one in found:
            text = spelled(self._tokenizer, one.ids)[0]
            if text != taken:
                kept.setdefault(text, OtherFilling(text, one.log_prob, one.score, len(one.ids)))
        return tuple(kept.values())

    def _piece(self, choice: Choice, start: int, end: int, alternatives: int, heads: tuple[str, ...]) -> FilledPiece:
        shown = tuple(PieceChoice(*self._probabilities(one, heads)) for one in choice.candidates[:alternatives])
        return FilledPiece(*self._probabilities(choice.chosen, heads), start, end, choice.step, shown)

    def _probabilities(self, candidate: Candidate, heads: tuple[str, ...]) -> tuple[str, float, dict[str, float]]:
        by_head = dict(zip(heads, candidate.by_head, strict=True))
        known = {name: math.exp(value) for name, value in by_head.items() if not math.isnan(value)}
        return self._tokenizer.piece(candidate.piece), math.exp(candidate.log_prob), known


def made_for(weights: Weights) -> dict[str, Any]:
    """What a mixture in the checkpoint's directory must have been fitted for."""
    assert weights.metadata is not None
    return {"step": weights.step, **weights.metadata.fingerprints}


def check_heads(heads: str, mix: float | None) -> None:
    """Raises UserError where `heads` of `Infiller.infill` is unknown, or has no use for `mix`."""
    if heads not in (MIXTURE, DECODER):
        raise UserError(f"heads is {quoted(heads)}; it must be {MIXTURE!r} or {DECODER!r}")
    if heads == DECODER and mix is not None:
        raise UserError(f"mix is {mix}, and the decoder mixes no heads; leave mix out, or set heads={MIXTURE!r}")


def check_numbers(order: str, beam: int, alternatives: int) -> None:
    """Raises UserError where one of these arguments of `Infiller.infill` is out of its range."""
    if order not in ORDERS:
        raise UserError(f"order is {quoted(order)}; it must be one of {', '.join(ORDERS)}")
    for name, value, least in (("beam", beam, 1), ("alternatives", alternatives, 0)):
        if not least <= value <= BEST:
            raise UserError(f"{name} is {value}; expected a number from {least} to {BEST}")


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """(the text of the pieces without white space around it, the characters [start, end) of each piece in it).

    A character that several pieces make belongs to the last of them. WordPiece does not say where spaces stood: its
    words have one between them, but not beside punctuation that mostly has none.
    """
    if tokenizer.kind == "wordpiece":
        return _spelled_wordpiece(tokenizer, ids)
    text, offsets, at = tokenizer.decode(ids).strip(), [], 0
    for count in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:count]).lstrip().rstrip("\ufffd") if count < len(ids) else text
        end = max(at, min(len(whole), len(text)))
        start = end - len(text[at:end].lstrip())
        offsets.append((start, end))
        at = end
    return text, offsets


def _spelled_wordpiece(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[Span]]:
    text, offsets = "", []
    for id in ids:
        surface = tokenizer.surface(id)
        apart = text and not tokenizer.piece(id).startswith(CONTINUES)
        if apart and surface[0] not in _NO_SPACE_BEFORE + _NO_SPACE_BESIDE:
            text += "" if text[-1] in _NO_SPACE_BEHIND + _NO_SPACE_BESIDE else " "
        offsets.append((len(text), len(text) + len(surface)))
        text += surface
    return text, offsets
