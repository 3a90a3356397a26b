"""Scores texts: the pseudo-log-likelihood of a text, or of a span in its context.

Invariant: the log-probability of a piece is that of the masked-language-model head over the whole vocabulary, where the
piece is masked and the rest of the text is visible (Salazar et al. 2020). With `rest_of_word` the pieces after it in
its word are masked too, because they give the piece away (PLL-word-l2r, Kauf and Ivanova 2023). Weights without that
head are scored by the span-boundary head.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from spanbert_jax.errors import UserError
from spanbert_jax.serving.decoding import Query
from spanbert_jax.serving.gaps import Span, check_pairs, read_text
from spanbert_jax.serving.mixture import uniform_mixture
from spanbert_jax.serving.slot_scores import SlotScorer
from spanbert_jax.text.tokenizer import Tokenizer, word_starts


@dataclasses.dataclass(frozen=True)
class ScoredPiece:
    """A piece of the text, and its log-probability in nats."""

    piece: str  # as the vocabulary writes it: "##ing", "▁the"
    start: int  # the characters [start, end) of the text
    end: int
    log_probability: float


@dataclasses.dataclass(frozen=True)
class Scored:
    """The pseudo-log-likelihood of a text or of a span of it, in nats."""

    text: str
    log_probability: float  # the sum over the pieces
    mean: float  # a piece
    pieces: tuple[ScoredPiece, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return dataclasses.asdict(self)


class TextScorer:
    """Scores texts with the heads of any weights that have MLM or SBO."""

    def __init__(self, scorer: SlotScorer, tokenizer: Tokenizer):
        self._scorer, self._tokenizer = scorer, tokenizer

    def score(
        self, texts: Sequence[str], spans: Sequence[Span | None] | None = None, rest_of_word: bool = False
    ) -> list[Scored]:
        """The score of each text, in their order.

        spans: of each text, the characters [start, end) whose pieces are scored; a piece with one of these characters
        counts. None: all of the text. rest_of_word: as above.

        Raises UserError, naming texts[i] where there are several, where a text or a span has no piece, or a text has
        more pieces than the model takes; and for `rest_of_word` where the vocabulary does not mark words.
        """
        if rest_of_word and not self._tokenizer.marks_words:
            raise UserError("the pieces of this vocabulary do not show where words begin; leave rest_of_word out")
        read = []
        for i, text in enumerate(texts):
            try:
                read.append(self._read(text, spans[i] if spans is not None else None))
            except UserError as error:
                raise UserError(f"texts[{i}]: {error}" if len(texts) > 1 else str(error)) from error
        queries = [query for _, ids, _, places in read for query in self._queries(ids, places, rest_of_word)]
        gold = [[ids[place]] for _, ids, _, places in read for place in places]
        found = iter(self._scorer.given(queries, gold, [uniform_mixture(0.0)], True))
        return [
            self._scored(text, ids, offsets, places, [float(next(found).log_probs[0, 0]) for _ in places])
            for text, ids, offsets, places in read
        ]

    def _read(self, text: str, span: Span | None) -> tuple[str, list[int], list[Span], list[int]]:
        """(the text, the ids of a row, the characters of each of its pieces, the positions that are scored)."""
        text = read_text(text)
        check_pairs([] if span is None else [span])
        pieces, offsets = self._tokenizer.tokenize_with_offsets(text)
        room = self._scorer.longest - 2
        if len(pieces) > room:
            raise UserError(f"the text has {len(pieces):,} pieces, and the model takes {room:,}; give a part of it")
        first, last = span or (0, len(text))
        places = [place for place, (begin, end) in enumerate(offsets, 1) if begin < last and end > first]
        if not places or not 0 <= first < last <= len(text):
            what = f"the span ({first}, {last})" if span else "the text"
            raise UserError(f"{what} has no piece: the text has {len(text)} characters; give some that are not blank")
        if span is None:
            places = list(range(1, len(pieces) + 1))  # with the pieces that share a character
        return text, [self._tokenizer.cls_id, *pieces, self._tokenizer.sep_id], [(0, 0), *offsets, (0, 0)], places

    def _queries(self, ids: list[int], places: Sequence[int], rest_of_word: bool) -> list[Query]:
        starts = np.append(word_starts(self._tokenizer, ids[1:-1]), True)  # of the pieces, and of [SEP]
        found = []
        for place in places:
            end = place + 1
            while rest_of_word and not starts[end - 1]:
                end += 1
            masked = list(ids)
            masked[place:end] = [self._tokenizer.mask_id] * (end - place)
            found.append(Query(masked, tuple(range(place, end)), (place,)))
        return found

    def _scored(
        self, text: str, ids: list[int], offsets: list[Span], places: list[int], log_probs: list[float]
    ) -> Scored:
        pieces = tuple(
            ScoredPiece(self._tokenizer.piece(ids[place]), *offsets[place], log_prob)
            for place, log_prob in zip(places, log_probs, strict=True)
        )
        return Scored(text, sum(log_probs), sum(log_probs) / len(log_probs), pieces)
