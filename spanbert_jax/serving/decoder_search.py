"""Fills the gaps of texts with the span decoder, from left to right.

Invariant: a gap is one [MASK] in its row, so its length is open unless the gap says otherwise, and the gaps before it
are filled. So the log-probabilities of a text's fillings, lengths included, add up to that of all of them together.
"""

from collections.abc import Sequence

from spanbert_jax.errors import UserError
from spanbert_jax.serving.decoding import Candidate, Choice
from spanbert_jax.serving.gap_lengths import Found, Solution
from spanbert_jax.serving.gaps import GappedText
from spanbert_jax.serving.span_writer import SpanQuery, SpanWriter, WrittenSpan
from spanbert_jax.text.tokenizer import Tokenizer


def written(texts: Sequence[GappedText], tokenizer: Tokenizer, writer: SpanWriter) -> list[Solution]:
    """The solution of each text: for each gap the likeliest string of pieces, and the rest of the beam.

    Raises UserError where no string of the writer fits a gap.
    """
    found: list[list[list[Found]]] = [[] for _ in texts]  # for each gap so far, best first
    for place in range(max((len(text.gaps) for text in texts), default=0)):
        open_texts = [number for number, text in enumerate(texts) if len(text.gaps) > place]
        queries = [_query(texts[number], [of[0].ids for of in found[number]], tokenizer) for number in open_texts]
        for number, strings in zip(open_texts, writer.write(queries), strict=True):
            if not strings:
                gap = texts[number].gaps[place]
                raise UserError(
                    f"the gap at character {gap.start} of {texts[number].text[:40]!r} has at least {gap.lengths[0]} "
                    f"pieces, and the decoder writes at most {writer.most}; ask for fewer, or fill it with MLM and SBO"
                )
            found[number].append([_found(string) for string in strings])
    return [Solution(tuple(of[0] for of in gaps), tuple(tuple(of[1:]) for of in gaps)) for gaps in found]


def _query(text: GappedText, filled: Sequence[Sequence[int]], tokenizer: Tokenizer) -> SpanQuery:
    """The query of the gap after the filled ones."""
    ids, place = [tokenizer.cls_id, *text.around[0]], len(filled)
    position = 0
    for number, behind in enumerate(text.around[1:]):
        position = len(ids) if number == place else position
        ids += [*(filled[number] if number < place else [tokenizer.mask_id]), *behind]
    gap = text.gaps[place]
    count = gap.lengths[0] if len(gap.lengths) == 1 else 0
    return SpanQuery([*ids, tokenizer.sep_id], position, count, gap.words, gap.first)


def _found(string: WrittenSpan) -> Found:
    choices = [
        Choice(candidate, (candidate,), step)
        for step, (piece, log_prob) in enumerate(zip(string.pieces, string.piece_log_probs, strict=True))
        for candidate in [Candidate(piece, log_prob, (log_prob,), 0, False)]
    ]
    return Found(string.pieces, tuple(choices), string.log_prob, string.log_prob, True)
