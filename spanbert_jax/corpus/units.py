"""The spans of blocks in graph ops: units that are masked, and the tags that the encoder may see.

Invariant: a row's result depends on the row's tags alone. Tags are those of text/span_tags.py: 0 outside every span,
2 * kind + 1 where a span begins, 2 * kind inside it; 0 beyond a block's end.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from spanbert_jax.config import Config, MaskingConfig
from spanbert_jax.errors import UserError


class Units(NamedTuple):
    """The units of each row, numbered from 0 from left to right."""

    counts: tf.Tensor  # int32 [batch]
    begun: tf.Tensor  # int32 [batch, pieces]: the units that begin at a piece or before
    stopped: tf.Tensor  # int32 [batch, pieces]: the pieces, up to this one, that are not inside a unit

    def edges(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Where the units with these numbers (int32 [batch, draws]) begin and where they end, int32 [batch, draws]: the
        first piece, and the place after the last one. Both are 0 in rows without units."""
        exist = (self.counts > 0)[:, None]
        begin = tf.searchsorted(self.begun, numbers + 1)  # the first piece at which so many have begun
        begin = tf.where(exist, begin, 0)
        end = tf.searchsorted(self.stopped, tf.gather(self.stopped, begin, batch_dims=1) + 1)
        return begin, tf.where(exist, end, 0)


def units_of(tags: tf.Tensor, chosen: np.ndarray) -> Units:
    """The units of rows. tags: int32 [batch, pieces]; chosen: bool [128], the kinds whose spans are units."""
    is_unit = tf.gather(chosen, tags // 2)
    begins = tf.cast(is_unit & tf.equal(tags & 1, 1), tf.int32)
    inside = is_unit & tf.equal(tags & 1, 0)
    begun = tf.cumsum(begins, axis=1)
    return Units(begun[:, -1], begun, tf.cumsum(tf.cast(~inside, tf.int32), axis=1))


def visible_tags(tags: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The tags, 0 on every piece of a span of which any piece is masked.

    The rules saw the whole text. So the tags of such a span would tell the model about the pieces that it predicts.
    tags: int32 [batch, pieces]; mask: bool [batch, pieces].
    """
    batch, width = tf.shape(tags)[0], tf.shape(tags)[1]
    span = tf.cumsum(tags & 1, axis=1) + tf.range(batch)[:, None] * (width + 1)  # a number of its own for each span
    hit = tf.math.unsorted_segment_max(
        tf.reshape(tf.cast(mask & (tags > 0), tf.int32), [-1]), tf.reshape(span, [-1]), batch * (width + 1)
    )
    return tf.where(tf.gather(hit, span) > 0, 0, tags)


def chosen_kinds(masking: MaskingConfig, kinds: Sequence[str]) -> np.ndarray:
    """bool [128]: whether the spans of each kind, from 1, are units. kinds: the names that the blocks have."""
    names = [name.strip() for name in masking.units.split(",") if name.strip()]
    return np.array([False, *(not names or kind in names for kind in kinds), *[False] * (127 - len(kinds))])


def check_kinds(config: Config, kinds: Sequence[str]) -> None:
    """Raises UserError where blocks, whose spans have these kinds, lack units that are to be masked, or have more kinds
    than the encoder has room for."""
    check_units(config.masking, kinds)
    model = config.model
    if model.span_embedding and len(kinds) > model.span_kinds:
        raise UserError(
            f"config.corpus.spans has {len(kinds)} kinds of spans, and config.model.span_kinds is {model.span_kinds}; "
            f"set --config.model.span_kinds={len(kinds)}"
        )


def check_units(masking: MaskingConfig, kinds: Sequence[str]) -> None:
    """Raises UserError where units are masked and the blocks, whose spans have these kinds, lack them."""
    if masking.scheme != "unit":
        return
    if not kinds:
        raise UserError(
            "config.masking.scheme is 'unit', and the blocks were built without rules for spans; set "
            "--config.corpus.spans and another --config.data.dir, or another --config.masking.scheme"
        )
    unknown = [name for part in masking.units.split(",") if (name := part.strip()) and name not in kinds]
    if unknown:
        raise UserError(
            f"config.masking.units names {unknown[0]!r}, and the spans of config.corpus.spans are of the kinds "
            f"{', '.join(kinds)}; name some of these, or leave it empty for all"
        )
