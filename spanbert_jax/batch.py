"""The pre-training batch: its fields, their shapes and dtypes, and how many masked pieces a row has room for.

Invariant: `FIELDS` is the only list of the batch's arrays, and `fields` names those that a configuration's batches
have. The masker fills them, the heads read them, and everyone who needs an empty or an abstract batch asks this module.
Importing the module does not import JAX.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from spanbert_jax.config import Config, reads_spans

if TYPE_CHECKING:
    import jax

NumpyBatch = dict[str, np.ndarray]  # of any task, before it is on devices
Batch = dict[str, "jax.Array"]  # of any task: every array has the batch's rows along its first axis

MASK, RANDOM, KEPT = 1, 2, 3  # values of "replacement"
REPLACEMENTS = {"mask": MASK, "random": RANDOM, "kept": KEPT}

_SLOT_MULTIPLE = 8  # divides the number of slots of a row, as matrix units like it


class Field(NamedTuple):
    """An array of the batch, with a value for each row [rows], position [rows, length] or slot [rows, slots]."""

    per: Literal["row", "position", "slot"]
    dtype: type[np.number]
    present: Callable[[Config], bool] = lambda config: True  # whether the batches of a configuration have the array


def _has_pairs(config: Config) -> bool:
    return config.corpus.pairs


# A slot is the place of one masked piece, in ascending order of positions. Unused slots are 0 in every field.
FIELDS: dict[str, Field] = {
    "input_ids": Field("position", np.int32),  # [CLS] block [SEP] padding, with the masked pieces replaced
    "lengths": Field("row", np.int32),  # positions that are not padding; 0: an empty row, which only fills the batch
    "masked_positions": Field("slot", np.int32),  # of the masked pieces, counted in the row ([CLS] is 0)
    "masked_ids": Field("slot", np.int32),  # the pieces that were there
    "masked_weights": Field("slot", np.float32),  # 1 in used slots
    "replacement": Field("slot", np.int32),  # by what the piece was replaced in input_ids: MASK, RANDOM or KEPT
    # For the span-boundary objective; all four are 0 in slots whose piece it does not predict:
    "span_left": Field("slot", np.int32),  # position of the left boundary of the piece's merged span
    "span_right": Field("slot", np.int32),  # position of the right boundary
    "span_offset": Field("slot", np.int32),  # place of the piece in the span, from 0
    "span_weights": Field("slot", np.float32),  # 1 where the objective predicts the piece
    # With config.corpus.pairs, where a row is [CLS] A [SEP] B [SEP] padding:
    "token_type_ids": Field("position", np.int32, _has_pairs),  # 1 in B and its [SEP], 0 elsewhere
    "next_labels": Field("row", np.int32, _has_pairs),  # 0: B follows A in their document; 1: B is of another document
    "next_weights": Field("row", np.float32, _has_pairs),  # 1 in rows that are not empty
    # For encoders that read spans: the span tags (text/span_tags.py), 0 on spans with a masked piece
    "span_tags": Field("position", np.int32, lambda config: reads_spans(config.model)),
}


def fields(config: Config) -> dict[str, Field]:
    """The rows of `FIELDS` that the batches of `config` have."""
    return {name: field for name, field in FIELDS.items() if field.present(config)}


def specials(config: Config) -> int:
    """The number of special pieces in a row: [CLS] and a [SEP] after each text."""
    return 3 if config.corpus.pairs else 2


def largest_budget(config: Config, length: int = 0) -> int:
    """The largest number of masked pieces in a row of `length` positions (0: of block_length)."""
    masking = config.masking
    rate = max(masking.rate, masking.final_rate if masking.rate_steps else 0.0)
    pieces = (length or config.data.block_length) - specials(config)
    if config.corpus.pairs:  # Each of the two texts has a budget of its own, rounded up.
        first = np.arange(1, max(pieces, 2), dtype=np.float64)
        return int(np.max(np.ceil(rate * first) + np.ceil(rate * (pieces - first))))
    return math.ceil(rate * pieces)


def slots(config: Config, length: int = 0) -> int:
    """The number of slots in a row of `length` positions (0: of block_length): the largest budget, rounded up to a
    multiple of 8."""
    return -(-largest_budget(config, length) // _SLOT_MULTIPLE) * _SLOT_MULTIPLE


def empty_batch(config: Config, rows: int, length: int, slots: int) -> NumpyBatch:
    """A batch of zeros of `config`: every row empty, no slot used."""
    shapes = {"row": (rows,), "position": (rows, length), "slot": (rows, slots)}
    return {name: np.zeros(shapes[field.per], field.dtype) for name, field in fields(config).items()}


def abstract_batch(config: Config, layout: "jax.sharding.Sharding | None" = None) -> dict[str, "jax.ShapeDtypeStruct"]:
    """The shapes and dtypes of the longest batch of `config`. layout: the sharding of the rows, for the first axes."""
    import jax

    rows, length = config.train.batch_size, config.data.block_length
    shapes = {"row": (rows,), "position": (rows, length), "slot": (rows, slots(config))}
    return {
        name: jax.ShapeDtypeStruct(shapes[field.per], field.dtype, sharding=layout)
        for name, field in fields(config).items()
    }
