"""Span masking of a whole batch at once, in TensorFlow graph ops.

Invariant: a row's masks are a function of (its pieces, its key, the rate) alone, where the key is a hash of (seed,
epoch, block); neither the rest of the batch nor the internal chunk of draws changes them. They are exactly what the
reference's sequential algorithm makes of the same draws (SpanBERT code: corpus/masking.py; paper section 3.1):

    while fewer than ceil(rate * length) pieces are masked:
        draw a number of words from the renormalised geometric law, and an anchor, uniform over the pieces
        unless the anchor is masked: mask that many words from the start of the anchor's word, to the right,
            up to the end of the block or to the budget (even inside a word); masked pieces on the way are free

How it is vectorised: draw t of a chunk owns bit t of an integer a piece. Adding that bit where the draw's words begin,
subtracting it where they end, and summing along the row gives every piece the set of draws that would cover it. A draw
is accepted unless an accepted earlier one covers its anchor: a triangular system, solved by iterating until nothing
changes. The lowest accepted bit is the moment at which a piece is masked, and moments are all that the budget needs.
"whole_word" is the same with spans of one word, "subword" (drawing pieces without replacement) with words of one piece.
The two texts of a pair are masked as two rows, each with a key and a budget of its own (code: span_bert_dataset.py).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from spanbert_jax.batch import KEPT, MASK, RANDOM, fields, slots
from spanbert_jax.config import Config, MaskingConfig
from spanbert_jax.corpus import segments
from spanbert_jax.corpus.collapsing import collapsed
from spanbert_jax.corpus.units import Units, check_units, chosen_kinds, units_of, visible_tags
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer

GAMMA = 0x9E3779B97F4A7C15  # the step of splitmix64's counter (Steele et al. 2014); `splitmix64` has its multipliers
_SPANS, _REPLACEMENT, _RANDOM_PIECE, _TEXTS, _UNITS = 1, 2, 3, 4, 5  # streams of draws of one row
_MAX_CHUNK = 62  # draws a round: an int64's bits but two, the sign and the bit of the mask so far


def mask_rate(masking: MaskingConfig, step: tf.Tensor) -> tf.Tensor:
    """The share of pieces to mask at a step (int64 scalar), a float64 scalar: it goes in a straight line from `rate` to
    `final_rate` in `rate_steps` steps."""
    if masking.rate_steps == 0:
        return tf.constant(masking.rate, tf.float64)
    progress = tf.cast(step, tf.float64) / masking.rate_steps
    rate = masking.rate + (masking.final_rate - masking.rate) * progress
    # Not the sum at the end, which rounding may put above `final_rate`, and a budget then above the slots of a row.
    return tf.where(progress < 1, rate, tf.constant(masking.final_rate, tf.float64))


def row_keys(seed: int, epochs: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
    """uint64 [batch]: one key for each (seed, epoch, block); epochs and blocks are int64 [batch]."""
    key = splitmix64(tf.constant(seed % 2**64, tf.uint64))
    return splitmix64(splitmix64(key + tf.cast(epochs, tf.uint64)) + tf.cast(blocks, tf.uint64))


def keys_of_texts(keys: tf.Tensor) -> tf.Tensor:
    """uint64 [2 * batch]: the keys of the texts A of rows with these keys, then those of the texts B."""
    return tf.concat([_draw(keys, _TEXTS, tf.constant(text)) for text in (0, 1)], axis=0)


def span_law(masking: MaskingConfig) -> np.ndarray:
    """float64 [span_max - span_min + 1]: probabilities of span lengths in words, proportional to (1 - p)^length."""
    lowest, highest = word_limits(masking)
    weights = (1 - masking.span_p) ** np.arange(highest - lowest + 1, dtype=np.float64)
    return weights / weights.sum()


def word_limits(masking: MaskingConfig) -> tuple[int, int]:
    """Fewest and most words in a span: one each for "whole_word" and for "subword", whose words are single pieces."""
    scheme = masking.unit_rest if masking.scheme == "unit" else masking.scheme
    return (masking.span_min, masking.span_max) if scheme == "span" else (1, 1)


@dataclasses.dataclass(frozen=True)
class _Runs:
    """The merged spans (maximal runs of masked pieces), seen from each slot: tensors [batch, slots], without meaning
    where `used` is false."""

    positions: tf.Tensor  # int32: of the slot's piece in the block
    starts: tf.Tensor  # int32: first position of the piece's run
    ends: tf.Tensor  # int32: last position of the piece's run
    used: tf.Tensor  # bool


def check_words(masking: MaskingConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError where words are masked and the vocabulary does not show where words begin."""
    if masking.scheme != "subword" and not tokenizer.marks_words:
        raise UserError(
            "the pieces of this tokenizer.json do not show where words begin, and config.masking.scheme is "
            f"{masking.scheme!r}; set --config.masking.scheme=subword --config.train.sbo_weight=0, or give another "
            "vocabulary"
        )


class Masker:
    """Masks batches of blocks.

    piece_counts: int64 [vocab]; random pieces are drawn in proportion to these counts. kinds: the names of the blocks'
    kinds of spans. chunk: draws of a row in one round, at most 62; 0: chosen here. Results do not depend on it.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        piece_counts: np.ndarray,
        chunk: int = 0,
        kinds: Sequence[str] = (),
    ) -> None:
        """Raises UserError as `check_words` and `check_units`."""
        self.masking = config.masking
        check_words(self.masking, tokenizer)
        check_units(self.masking, kinds)
        self._units = chosen_kinds(self.masking, kinds)
        self._shows_tags = "span_tags" in fields(config)
        self._slots = np.array([slots(config, pieces + 2) for pieces in range(config.data.block_length - 1)], np.int32)
        self.cls_id, self.sep_id, self.mask_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        self.pad_id = tokenizer.pad_id
        law = span_law(self.masking)
        self._length_thresholds = np.floor(np.cumsum(law) * 2**32).astype(np.int64)
        self._length_thresholds[-1] = 2**32
        # Three facts about a piece, as bits of one table, so that one gather finds them.
        facts = tokenizer.starts_word + 2 * tokenizer.ends_word + 4 * tokenizer.joins_next
        self._facts = np.asarray(facts, np.int32)
        self._cumulative = np.cumsum(piece_counts, dtype=np.int64)
        # Enough draws for nearly every row in one round.
        mean_words = float(law @ np.arange(law.size)) + word_limits(self.masking)[0]
        self.chunk = chunk or min(_MAX_CHUNK, math.ceil(1.5 * slots(config) / mean_words) + 12)

    def mask_batch(
        self,
        pieces: tf.Tensor,
        lengths: tf.Tensor,
        keys: tf.Tensor,
        rate: tf.Tensor,
        pairs: tf.Tensor | None = None,
        tags: tf.Tensor | None = None,
        describe: bool = False,
    ) -> dict[str, tf.Tensor]:
        """Rows [CLS] block [SEP] padding, or with pairs [CLS] A [SEP] B [SEP] padding, and what to predict in them.

        Args: pieces int32 [batch, length - 2] for any length up to block_length; lengths int32 [batch], the pieces in
        each block (0: an empty row); keys uint64 [batch] from `row_keys`; rate, a float64 scalar; pairs int32 [batch,
        2], for blocks of A and B: the number of pieces in A, and the label; pieces are then [batch, length - 3]; tags
        int32, the shape of pieces: the span tags, 0 beyond a block's end.

        Returns `batch.fields`, with `batch.slots(config, length)` slots in a row. With `describe` also drawn_words
        int32 [batch, 16]: the lengths of the first draws of the row, or of its text A; and, where `tags` are given,
        block_tags int32 [batch, length]: the tags at the row's positions.
        """
        first = None  # the number of pieces in A
        texts, text_lengths, text_keys = pieces, lengths, keys
        if pairs is not None:
            first = tf.where(lengths > 0, pairs[:, 0], 0)
            texts = segments.apart(pieces, first)  # [2 * batch, pieces]
            text_lengths = tf.concat([first, lengths - first], axis=0)
            text_keys = keys_of_texts(keys)
            if tags is not None:
                ours = tf.range(tf.shape(texts)[1]) < text_lengths[:, None]
                tags = tf.where(ours, segments.apart(tags, first), 0)
        units = units_of(tags, self._units) if self.masking.scheme == "unit" else None
        budget = tf.cast(tf.math.ceil(rate * tf.cast(text_lengths, tf.float64)), tf.int32)  # [batch] or [2 * batch]
        mask = self.choose(self.word_starts(texts), text_lengths, budget, text_keys, units)  # the shape of `texts`
        if first is not None:  # From here on, A [SEP] B is a block like others, whose [SEP] is never masked.
            mask, pieces = segments.together(mask, first, False), segments.together(texts, first, self.sep_id)
            tags = None if tags is None else segments.together(tags, first, 0)
            budget = tf.add(*tf.split(budget, 2))
            lengths = tf.where(lengths > 0, lengths + 1, 0)
        runs = _runs(mask, budget, tf.gather(self._slots, tf.shape(pieces)[1]))
        weights = tf.cast(runs.used, tf.int32)
        original = tf.gather(pieces, runs.positions, batch_dims=1) * weights
        kind = self._kinds(runs, keys)
        replaced = self._replaced(original, kind, runs.positions, keys)
        places = (runs.positions + 1) * weights
        outputs = {
            "input_ids": self._rows(pieces, lengths, places, replaced),
            "lengths": tf.where(lengths > 0, lengths + 2, 0),
            "masked_positions": places,
            "masked_ids": original,
            "masked_weights": tf.cast(weights, tf.float32),
            "replacement": kind * weights,
            **self._span_rows(runs, lengths, first),
        }
        if self._shows_tags:
            outputs["span_tags"] = tf.pad(visible_tags(tags, mask), [[0, 0], [1, 1]])
        if pairs is not None:
            outputs |= _pair_fields(pairs[:, 1], first, outputs["lengths"], tf.shape(outputs["input_ids"])[1])
        if describe:
            rows = tf.shape(keys)[0]
            draws = self.span_draws(text_keys[:rows], text_lengths[:rows], tf.constant(0, tf.int64), 16)
            outputs["drawn_words"] = draws[0]
            outputs |= {} if tags is None else {"block_tags": tf.pad(tags, [[0, 0], [1, 1]])}
        if self.masking.collapse_spans:
            offsets, limit = runs.positions - runs.starts, self.masking.max_span_offset
            outputs = collapsed(outputs, offsets, self.mask_id, self.pad_id, limit)
        return outputs

    def word_starts(self, pieces: tf.Tensor) -> tf.Tensor:
        """bool, the shape of `pieces` (int32 [batch, pieces]): whether a word begins there."""
        if self.masking.scheme == "subword":
            return tf.ones_like(pieces, tf.bool)
        facts = tf.gather(self._facts, pieces)  # [batch, pieces]
        previous = tf.pad(facts[:, :-1], [[0, 0], [1, 0]], constant_values=2)
        return ((facts & 1) + (previous & 2) > 0) & tf.equal(previous & 4, 0)

    def span_draws(
        self, keys: tf.Tensor, lengths: tf.Tensor, first: tf.Tensor, count: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws first .. first + count - 1 of each row: (words, anchors), both int32 [batch, count].

        A draw is one hash. Its upper half, compared with the cumulative law, gives the words; its lower half, scaled to
        the block's length, gives the anchor.
        """
        numbers = first + tf.range(count, dtype=tf.int64)
        draws = _draw(keys[:, None], _SPANS, numbers[None, :])  # uint64 [batch, count]
        upper = tf.cast(tf.bitwise.right_shift(draws, tf.constant(32, tf.uint64)), tf.int64)
        longer = tf.searchsorted(self._length_thresholds, tf.reshape(upper, [-1]), side="right")
        words = tf.reshape(longer, tf.shape(upper)) + word_limits(self.masking)[0]
        return words, _scaled(draws, lengths)

    def unit_draws(
        self, keys: tf.Tensor, counts: tf.Tensor, first: tf.Tensor, count: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """For draws first .. first + count - 1 of each row: whether a unit is drawn, bool [batch, count], and which of
        the row's `counts` (int32 [batch]) units, int32 [batch, count].

        The upper half of a hash is the coin; its lower half, scaled to the number of units, gives the unit.
        """
        numbers = first + tf.range(count, dtype=tf.int64)
        draws = _draw(keys[:, None], _UNITS, numbers[None, :])  # uint64 [batch, count]
        coin = tf.cast(tf.bitwise.right_shift(draws, tf.constant(32, tf.uint64)), tf.int64)
        return coin < round(self.masking.unit_share * 2**32), _scaled(draws, counts)

    def choose(
        self,
        word_starts: tf.Tensor,
        lengths: tf.Tensor,
        budget: tf.Tensor,
        keys: tf.Tensor,
        units: Units | None = None,
    ) -> tf.Tensor:
        """bool [batch, pieces], true at exactly `budget` (int32 [batch]) pieces of each row. units: those of the rows,
        with the scheme "unit"."""
        word = tf.cumsum(tf.cast(word_starts, tf.int32), axis=1)  # [batch, pieces], ascending

        def unfilled(_: tf.Tensor, __: tf.Tensor, full: tf.Tensor) -> tf.Tensor:
            return ~full

        def draw_more(first: tf.Tensor, mask: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            words, anchors = self.span_draws(keys, lengths, first, self.chunk)
            anchor_word = tf.gather(word, anchors, batch_dims=1)
            edges = tf.searchsorted(word, tf.concat([anchor_word, anchor_word + words], 1))  # [batch, 2 * chunk]
            of_unit = None
            if units is not None:
                of_unit, numbers = self.unit_draws(keys, units.counts, first, self.chunk)
                edges = tf.where(tf.tile(of_unit, [1, 2]), tf.concat(units.edges(numbers), 1), edges)
            mask, full = _apply_draws(mask, anchors, tf.minimum(edges, lengths[:, None]), budget, of_unit)
            return first + self.chunk, tf.ensure_shape(mask, word_starts.shape), full

        empty = tf.zeros_like(word_starts)
        return tf.while_loop(unfilled, draw_more, (tf.constant(0, tf.int64), empty, tf.constant(False)))[1]

    def _kinds(self, runs: _Runs, keys: tf.Tensor) -> tf.Tensor:
        """int32 [batch, slots]: MASK, RANDOM or KEPT, drawn once a run or once a piece."""
        by_piece = self.masking.granularity == "piece" or self.masking.scheme == "subword"
        drawn_at = runs.positions if by_piece else runs.starts
        draws = tf.bitwise.right_shift(_draw(keys[:, None], _REPLACEMENT, drawn_at), tf.constant(32, tf.uint64))
        draws = tf.cast(draws, tf.int64)
        mask_below = round(self.masking.mask_share * 2**32)
        random_below = round((self.masking.mask_share + self.masking.random_share) * 2**32)
        return tf.where(draws < mask_below, MASK, tf.where(draws < random_below, RANDOM, KEPT))

    def _replaced(self, original: tf.Tensor, kind: tf.Tensor, positions: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """int32 [batch, slots]: what stands in the input for each masked piece."""
        draws = _draw(keys[:, None], _RANDOM_PIECE, positions) % tf.constant(self._cumulative[-1], tf.uint64)
        flat = tf.reshape(tf.cast(draws, tf.int64), [-1])
        # side="right" passes over ids that the corpus does not have, which add nothing to the cumulative counts.
        random = tf.reshape(tf.searchsorted(self._cumulative, flat, side="right"), tf.shape(kind))
        return tf.where(kind == MASK, self.mask_id, tf.where(kind == RANDOM, random, original))

    def _rows(self, pieces: tf.Tensor, lengths: tf.Tensor, places: tf.Tensor, replaced: tf.Tensor) -> tf.Tensor:
        """int32 [batch, length]: [CLS] block [SEP] padding, with `replaced` at `places` (unused slots: 0)."""
        length = tf.shape(pieces)[1] + 2
        cells = places + tf.range(tf.shape(pieces)[0])[:, None] * length
        flat = tf.reshape(tf.pad(pieces, [[0, 0], [1, 1]]), [-1])
        flat = tf.tensor_scatter_nd_update(flat, tf.reshape(cells, [-1, 1]), tf.reshape(replaced, [-1]))
        corrupted = tf.reshape(flat, [-1, length])  # any value at [CLS]: unused slots are written there
        position = tf.range(length)[None, :]
        last = tf.where(lengths > 0, lengths + 1, -1)[:, None]
        rows = tf.where(position < last, corrupted, self.pad_id)
        rows = tf.where(position == last, self.sep_id, rows)
        return tf.where((position == 0) & (last > 0), self.cls_id, rows)

    def _span_rows(self, runs: _Runs, lengths: tf.Tensor, separator: tf.Tensor | None) -> dict[str, tf.Tensor]:
        """The fields of the span-boundary objective: for each masked piece, the boundaries of its run and its place in
        the run (the reference's code: pair targets). separator: int32 [batch], the place of the [SEP] inside a block,
        which is no boundary."""
        offset = runs.positions - runs.starts
        used = runs.used & (offset < self.masking.max_span_offset)
        if self.masking.scheme == "subword":
            used = tf.zeros_like(used)
        outside = 1 if self.masking.boundaries == "external" else 0
        left, right = runs.starts - outside, runs.ends + outside
        used &= (left >= 0) & (right < lengths[:, None])
        if separator is not None:
            used &= (left != separator[:, None]) & (right != separator[:, None])
        keep = tf.cast(used, tf.int32)
        return {
            "span_left": (left + 1) * keep,
            "span_right": (right + 1) * keep,
            "span_offset": offset * keep,
            "span_weights": tf.cast(keep, tf.float32),
        }


def _apply_draws(
    mask: tf.Tensor, anchors: tf.Tensor, edges: tf.Tensor, budget: tf.Tensor, always: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Carries out a chunk of draws, in order, on `mask` (bool [batch, pieces]), up to `budget` (int32 [batch]).

    anchors: int32 [batch, chunk]. edges: int32 [batch, 2 * chunk], where each draw's words begin, then where they end.
    always: bool [batch, chunk], the draws that are accepted whatever is masked; None: none.
    Returns the new mask, and whether every row has its budget. Bit 0 stands for the mask so far, bit t + 1 for draw t.
    """
    shape = tf.shape(mask)
    batch, columns, chunk = shape[0], shape[1] + 1, anchors.shape[1]
    bits = tf.constant(2 ** np.arange(1, chunk + 1, dtype=np.int64))
    signed = tf.broadcast_to(tf.concat([bits, -bits], 0), [batch, 2 * chunk])
    cells = edges + tf.range(batch)[:, None] * columns
    edge_bits = tf.math.unsorted_segment_sum(tf.reshape(signed, [-1]), tf.reshape(cells, [-1]), batch * columns)
    covers = tf.cumsum(tf.reshape(edge_bits, [batch, columns]), axis=1)[:, :-1] + tf.cast(mask, tf.int64)
    earlier = tf.gather(covers, anchors, batch_dims=1) & (bits - 1)  # [batch, chunk]
    if always is not None:
        earlier = tf.where(always, tf.constant(0, tf.int64), earlier)

    def accept(accepted: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        free = tf.cast(tf.equal(earlier & accepted, 0), tf.int64)
        following = 1 + tf.reduce_sum(free * bits, axis=1, keepdims=True)
        return following, tf.reduce_any(tf.not_equal(following, accepted))

    everything = tf.fill([batch, 1], tf.constant(-1, tf.int64))
    accepted, _ = tf.while_loop(lambda _, changed: changed, accept, (everything, tf.constant(True)))

    covers &= accepted
    # The number of the lowest bit that is set, counted as the zeros below it; 64 where none is set.
    below = tf.bitwise.invert(covers) & (covers - 1)  # [batch, pieces]
    moment = tf.cast(tf.raw_ops.PopulationCount(x=below), tf.int32)
    counts = tf.math.bincount(moment, minlength=chunk + 1, maxlength=chunk + 1, axis=-1)
    masked = tf.cumsum(counts, axis=1)  # [batch, chunk + 1], pieces masked after each draw
    short = masked < budget[:, None]
    last = tf.reduce_sum(tf.cast(short, tf.int32), axis=1, keepdims=True)  # the draw that reaches the budget
    room = budget[:, None] - tf.reduce_max(tf.where(short, masked, 0), axis=1, keepdims=True)
    at_last = moment == last
    within = tf.cumsum(tf.cast(at_last, tf.int32), axis=1) <= room
    return (moment < last) | (at_last & within), ~tf.reduce_any(short[:, -1])


def _runs(mask: tf.Tensor, budget: tf.Tensor, slots: tf.Tensor) -> _Runs:
    """The masked pieces of each row in slots, left to right, with the maximal run that each belongs to."""
    slot = tf.range(slots)[None, :]
    used = slot < budget[:, None]
    width = tf.shape(mask)[1]
    # Every row has exactly its budget, so a row's positions lie at a known place among those of all rows.
    every = tf.pad(tf.cast(tf.where(tf.reshape(mask, [-1]))[:, 0], tf.int32), [[0, slots]])
    place = tf.cumsum(budget, exclusive=True)[:, None] + slot
    positions = tf.where(used, tf.gather(every, place) - tf.range(tf.shape(mask)[0])[:, None] * width, 0)
    # Inside a run positions and slots advance together; unused slots get a run of their own.
    skipped = tf.where(used, positions - slot, width)
    first_slot = tf.searchsorted(skipped, skipped)
    last_slot = tf.searchsorted(skipped, skipped, side="right") - 1
    return _Runs(positions, skipped + first_slot, skipped + last_slot, used)


def _pair_fields(labels: tf.Tensor, first: tf.Tensor, lengths: tf.Tensor, width: tf.Tensor) -> dict[str, tf.Tensor]:
    """The fields of rows of two texts. labels, first (the number of pieces in A), lengths (of the rows, 0: empty):
    int32 [batch]; width: of the rows with padding."""
    position = tf.range(width)[None, :]
    second = (position > first[:, None] + 1) & (position < lengths[:, None])
    return {
        "token_type_ids": tf.cast(second, tf.int32),
        "next_labels": tf.where(lengths > 0, labels, 0),
        "next_weights": tf.cast(lengths > 0, tf.float32),
    }


def splitmix64(state: tf.Tensor) -> tf.Tensor:
    """splitmix64's finaliser, uint64 to uint64."""
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, tf.constant(shift, tf.uint64)))
        state *= tf.constant(multiplier, tf.uint64)
    return tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, tf.constant(31, tf.uint64)))


def _draw(keys: tf.Tensor, stream: int, numbers: tf.Tensor) -> tf.Tensor:
    """uint64: draw `numbers` (any integers, 0 and up) of a stream of each key; shapes broadcast."""
    start = splitmix64(keys + tf.constant(stream * GAMMA % 2**64, tf.uint64))
    return splitmix64(start + (tf.cast(numbers, tf.uint64) + 1) * tf.constant(GAMMA, tf.uint64))


def _scaled(draws: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """int32 [batch, draws], uniform on 0 .. count - 1, from the lower halves of draws (uint64 [batch, draws]); counts:
    int32 [batch]."""
    lower = tf.bitwise.bitwise_and(draws, tf.constant(2**32 - 1, tf.uint64))
    scaled = tf.bitwise.right_shift(lower * tf.cast(counts, tf.uint64)[:, None], tf.constant(32, tf.uint64))
    return tf.cast(scaled, tf.int32)
