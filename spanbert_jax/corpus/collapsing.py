"""Rows in which one [MASK] stands for a whole merged span, in TensorFlow graph ops.

Invariant: such a row has one [MASK] for each merged span and every unmasked piece, in order. So the row does not show
how many pieces a span has, and a decoder that reads it must say where a span ends. The slots stay as they were, one for
each masked piece.
"""

import tensorflow as tf

from spanbert_jax.batch import FIELDS, MASK


def collapsed(
    batch: dict[str, tf.Tensor], offsets: tf.Tensor, mask_id: int, pad_id: int, limit: int
) -> dict[str, tf.Tensor]:
    """The fields of a masked batch with every merged span collapsed to one [MASK], whatever stood there.

    batch: as `Masker.mask_batch` returns it. offsets: int32 [batch, slots], the place of each slot's piece in its
    merged span. limit: pieces of a span that its boundaries predict. All pieces of a span have the span's one position.
    Every span has boundaries, the places beside its [MASK]: [CLS] and [SEP] bound the spans at a text's ends.
    """
    shape = tf.shape(batch["input_ids"])
    rows, length = shape[0], shape[1]
    used = tf.cast(batch["masked_weights"], tf.int32)  # [batch, slots]
    # 0 at unmasked positions, 1 at the first piece of a span, 2 at its other pieces.
    cells = batch["masked_positions"] + tf.range(rows)[:, None] * length
    state = used * tf.where(offsets > 0, 2, 1)
    state = tf.math.unsorted_segment_sum(tf.reshape(state, [-1]), tf.reshape(cells, [-1]), rows * length)
    state = tf.reshape(state, shape)  # [batch, length]
    kept = tf.cumsum(tf.cast(state < 2, tf.int32), axis=1)  # [batch, length]: positions kept, up to this one
    numbers = tf.broadcast_to(tf.range(1, length + 1), shape)
    sources = tf.minimum(tf.searchsorted(kept, numbers), length - 1)  # the old position of each new one
    lengths = batch["lengths"] - tf.reduce_sum(tf.cast(state > 1, tf.int32), axis=1)
    valid = tf.range(length) < lengths[:, None]

    batch = {**batch, "input_ids": tf.where(state > 0, mask_id, batch["input_ids"]), "lengths": lengths}
    for name, value in batch.items():
        if name == "block_tags" or (name in FIELDS and FIELDS[name].per == "position"):
            moved = tf.gather(value, sources, batch_dims=1)
            batch[name] = tf.where(valid, moved, pad_id if name == "input_ids" else 0)
    # A piece that is dropped has the place of the span's first piece, the last kept one before it.
    places = (tf.gather(kept, batch["masked_positions"], batch_dims=1) - 1) * used
    predicted = used * tf.cast(offsets < limit, tf.int32)
    return batch | {
        "masked_positions": places,
        "replacement": MASK * used,
        "span_left": (places - 1) * predicted,
        "span_right": (places + 1) * predicted,
        "span_offset": offsets * predicted,
        "span_weights": tf.cast(predicted, tf.float32),
    }
