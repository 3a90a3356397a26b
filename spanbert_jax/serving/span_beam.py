"""Beam search of the pieces of masked spans, by the span decoder: a pure function with static shapes.

Invariant: a row's strings depend on the row alone. With a beam as wide as the number of all prefixes, the strings are
the likeliest of all. The encoder runs once. Each step computes the decoder's few slots anew, all beams side by side as
spans of one row, so that they share the keys and values of the row's positions.

Strings of different lengths compare by their probabilities alone, since these add up to 1 over all lengths.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.model import decoder, encoder, pretraining_heads, span_decoder
from spanbert_jax.model.encoder import table_rows

# (pieces int32 [batch, beam, longest], step) -> the log-probabilities of going on after the step's piece and of ending
# there, float32 [2, batch, beam], and those of the piece in either case, float32 [2, batch, beam, vocab].
_Scores = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class _Strings(NamedTuple):
    """Strings of pieces, `beam` of them for each row, best first."""

    log_prob: jax.Array  # float32 [batch, beam]; -inf where there is no string
    pieces: jax.Array  # int32 [batch, beam, longest]
    piece_log_probs: jax.Array  # float32 [batch, beam, longest]
    lengths: jax.Array  # int32 [batch, beam]
    words: jax.Array  # int32 [batch, beam]

    def at(self, chosen: jax.Array) -> "_Strings":
        """The strings with these numbers, int32 [batch, n]."""

        def take(values: jax.Array) -> jax.Array:
            indices = chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2))
            return jnp.take_along_axis(values, indices, axis=1)

        return _Strings(*map(take, self))


class _Search(NamedTuple):
    step: jax.Array  # int32 scalar: the pieces in every live string
    live: _Strings  # strings that go on
    done: _Strings  # strings that have ended


def span_strings(
    config: Config, vocab_size: int, beam: int, params: Any, classes: jax.Array, ends_word: jax.Array, batch: Batch
) -> dict[str, jax.Array]:
    """The likeliest strings of each row's span, best first.

    Args:
      config: the decoder's; the longest string has masking.max_span_offset pieces.
      params: the groups of the encoder, "sbo" and "decoder".
      classes: bool [classes, vocab], the pieces of each class. Pieces of the last class go on with a word, the others
        begin one, and a piece of no class never stands in a span.
      ends_word: bool [vocab], the pieces after which a word begins in any case.
      batch: input_ids int32 [batch, length], in which one [MASK] stands for the span; lengths int32 [batch]; span int32
        [batch], the position of that [MASK]; count int32 [batch], the number of pieces, or 0 for any number; words
        int32 [batch, 2], the fewest and the most words; first bool [batch, classes], the classes of the first piece,
        which counts as a word's beginning.

    Returns log_prob float32 [batch, beam], -inf where there are fewer strings; lengths int32 [batch, beam]; pieces
    int32 and piece_log_probs float32 [batch, beam, longest]: those of each piece, given whether the string ends there.
    """
    longest, rows = config.masking.max_span_offset, batch["span"].shape[0]
    scores = _scores(config, vocab_size, beam, params, batch)
    begins = jnp.any(classes[:-1], axis=0)  # [vocab]
    is_first = jnp.any(batch["first"][..., None] & classes, axis=1)[:, None]  # [batch, 1, vocab]

    def grown(search: _Search, is_last: bool, ends: jax.Array, pieces: jax.Array) -> _Strings:
        """The best strings with one piece more that end there or go on. ends: [batch, beam]; pieces: [batch, beam,
        vocab]."""
        live, step = search.live, search.step
        before = ends_word[jnp.take(live.pieces, step - 1, axis=2)]  # [batch, beam]
        words = jnp.where(step == 0, 1, live.words[..., None] + (begins | before[..., None]))  # [batch, beam, vocab]
        allowed = jnp.where(step == 0, is_first, jnp.any(classes, axis=0)) & (words <= batch["words"][:, None, 1:])
        count, whole = batch["count"][:, None, None], step + 1 == longest
        if is_last:
            allowed &= ((count == 0) | (count == step + 1)) & (words >= batch["words"][:, None, :1])
        else:
            allowed &= (count == 0) | (count > step + 1)
            allowed &= ~whole
        totals = jnp.where(allowed, (live.log_prob + ends)[..., None] + pieces, -jnp.inf)
        log_prob, chosen = jax.lax.top_k(totals.reshape(rows, -1), beam)
        parent, piece = jnp.divmod(chosen, classes.shape[1])  # [batch, beam]
        of_piece = jnp.take_along_axis(pieces.reshape(rows, -1), chosen, axis=1)
        here, found = jnp.arange(longest) == step, live.at(parent)
        return _Strings(
            log_prob,
            jnp.where(here, piece[..., None], found.pieces),
            jnp.where(here, of_piece[..., None], found.piece_log_probs),
            found.lengths + 1,
            jnp.take_along_axis(words.reshape(rows, -1), chosen, axis=1),
        )

    def lengthen(search: _Search) -> _Search:
        ends, pieces = scores(search.live.pieces, search.step)
        live, stopped = (grown(search, bool(last), ends[last], pieces[last]) for last in (0, 1))
        both = _Strings(*(jnp.concatenate(pair, axis=1) for pair in zip(search.done, stopped, strict=True)))
        return _Search(search.step + 1, live, both.at(jax.lax.top_k(both.log_prob, beam)[1]))

    def unfinished(search: _Search) -> jax.Array:
        better = search.live.log_prob[:, 0] > search.done.log_prob[:, -1]  # a longer string is never likelier
        return (search.step < longest) & jnp.any(better)

    whole, plain = (rows, beam, longest), (rows, beam)
    number = jnp.zeros(plain, jnp.int32)
    nothing = _Strings(
        jnp.full(plain, -jnp.inf), jnp.zeros(whole, jnp.int32), jnp.zeros(whole, jnp.float32), number, number
    )
    empty = nothing._replace(log_prob=nothing.log_prob.at[:, 0].set(0.0))
    done = jax.lax.while_loop(unfinished, lengthen, _Search(jnp.int32(0), empty, nothing)).done
    return {name: getattr(done, name) for name in ("log_prob", "lengths", "pieces", "piece_log_probs")}


def _scores(config: Config, vocab_size: int, beam: int, params: Any, batch: Batch) -> _Scores:
    """The function that scores the next pieces of the strings of the batch's spans."""
    longest, rows, dtype = config.masking.max_span_offset, batch["span"].shape[0], jnp.dtype(config.compute.dtype)
    vocab, word = table_rows(config.model, vocab_size), params["embeddings"]["word"]
    base = encoder.Encoder(config.model, config.compute, vocab_size, dtype)
    hidden = encoder.encode(base, params, batch["input_ids"], batch["lengths"], span_tags=None)
    offsets = jnp.broadcast_to(jnp.arange(longest), (rows, longest))

    def beside(distance: int) -> jax.Array:  # the state there, for each offset: [batch, longest, embed]
        at = jnp.take_along_axis(hidden, (batch["span"] + distance)[:, None, None], axis=1)
        return jnp.broadcast_to(at, (rows, longest, at.shape[-1]))

    boundaries = pretraining_heads.SpanBoundaryHead(config, vocab, dtype)
    own = span_decoder.SpanDecoder(config, vocab, dtype)
    boundary: Any = boundaries.apply({"params": params["sbo"]}, {"span_offset": offsets}, beside(-1), beside(1))
    slots = span_decoder.Slots(
        pieces=jnp.zeros((rows, beam * longest), jnp.int32),
        offsets=jnp.tile(offsets, (1, beam)),
        spans=jnp.broadcast_to(jnp.repeat(jnp.arange(beam), longest), (rows, beam * longest)),
        boundary=jnp.tile(boundary, (1, beam, 1)),
        mask=jnp.tile(beside(0), (1, beam, 1)),
    )
    row = span_decoder.Row(hidden, batch["lengths"])
    bias = params["sbo"]["bias"] + params["decoder"]["bias"]
    is_last = jnp.broadcast_to(jnp.arange(2 * beam) >= beam, (rows, 2 * beam))

    def scores(pieces: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        given, weights = slots._replace(pieces=pieces.reshape(rows, -1)), {"params": params["decoder"]}
        states: Any = own.apply(weights, given, row, word, method="states")
        at = jnp.take(states.reshape(rows, beam, longest, -1), step, axis=2)  # [batch, beam, embed]
        end: Any = own.apply(weights, at, method="end_scores")
        vectors: Any = own.apply(weights, jnp.concatenate([at, at], axis=1), is_last, method="outputs")
        of_pieces = jax.nn.log_softmax(decoder.scores(vectors[:, None], word, bias[None], vocab_size)[:, 0])
        goes_on, stops = jnp.split(of_pieces, 2, axis=1)
        return -jax.nn.softplus(jnp.stack([end, -end])), jnp.stack([goes_on, stops])

    return scores
