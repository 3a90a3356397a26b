"""Rows of two texts, A and B, taken apart into rows of one text each, and put together again.

Invariant: `together` after `apart` gives the row with one more cell between its texts. So what is drawn for the texts'
own rows never crosses from one text into the other.
"""

import tensorflow as tf


def apart(pieces: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    """[2 * batch, pieces]: the texts A of all rows, then the texts B, each from the row's beginning.

    pieces: [batch, pieces], A and directly behind it B. first: int32 [batch], the number of pieces in A. What stands
    behind a text has no meaning.
    """
    width = tf.shape(pieces)[1]
    place = tf.minimum(tf.range(width)[None, :] + first[:, None], width - 1)
    return tf.concat([pieces, tf.gather(pieces, place, batch_dims=1)], axis=0)


def together(texts: tf.Tensor, first: tf.Tensor, between: tf.Tensor) -> tf.Tensor:
    """[batch, pieces + 1]: A, the scalar `between`, and B of each row. texts: [2 * batch, pieces], as from `apart`."""
    width = tf.shape(texts)[1]
    both = tf.concat(tf.split(texts, 2), axis=1)  # [batch, 2 * pieces]
    place, first = tf.range(width + 1)[None, :], first[:, None]
    found = tf.gather(both, tf.where(place < first, place, width + tf.maximum(place - first - 1, 0)), batch_dims=1)
    return tf.where(place == first, between, found)
