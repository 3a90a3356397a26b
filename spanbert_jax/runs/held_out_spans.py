"""Held-out spans, all of whose pieces are [MASK]: what infilling is fitted on and judged by.

Invariant: a span depends on its block and on the law of lengths alone. Blocks with even numbers are for fitting and
those with odd numbers for judging, so no span is used for both.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from spanbert_jax.corpus.blocks import Blocks, open_blocks, parse_records
from spanbert_jax.errors import UserError
from spanbert_jax.serving.decoding import Query
from spanbert_jax.serving.weights import Weights
from spanbert_jax.text.packing import FEATURE
from spanbert_jax.text.tokenizer import Tokenizer, word_starts
from spanbert_jax.training.checkpoint import run_of

FIT, JUDGE = 0, 1  # the halves of the held-out blocks
MOST_WORDS = 6


class HeldOutSpan(NamedTuple):
    """A row with a masked span of 1 to 6 words, which touches neither [CLS] nor [SEP]."""

    query: Query  # every masked position is wanted
    pieces: tuple[int, ...]  # that were there


def blocks_of(weights: Weights, data: Path | None, split: str) -> Blocks:
    """The blocks of a run's weights. data: the directory with the blocks; None: where the run has them.

    Raises UserError where there are none, or they were made with another vocabulary, or of pairs of texts.
    """
    if data is None:
        if weights.metadata is None:
            raise UserError(f"{weights.source}: published weights have no held-out blocks; name some with --data")
        configured = weights.config.data.dir
        data = Path(configured) if configured else Path(run_of(epath.Path(weights.source))) / "data"
    blocks = open_blocks(data / "blocks", split)
    found = blocks.metadata
    if found.tokenizer_fingerprint != weights.tokenizer.fingerprint:
        raise UserError(f"{data}: its blocks were made with another vocabulary than that of {weights.source}")
    if found.corpus.get("pairs"):
        raise UserError(f"{data}: its blocks hold pairs of texts; name others with --data")
    return blocks


def held_out_spans(
    blocks: Blocks, tokenizer: Tokenizer, longest: int, span_p: float, half: int, count: int
) -> list[HeldOutSpan]:
    """One span each of the first `count` suitable blocks of a half, in the blocks' order.

    The number of words has the geometric law of pre-training with `span_p`, renormalised on 1 to 6. The place is
    uniform over the words of the block. A block whose place does not fit is left out. longest: pieces in a row.
    """
    numbers = np.arange(half, len(blocks), 2)
    # Every block whose row fits, spread evenly over the corpus.
    numbers = numbers[blocks.lengths[numbers] + 2 <= longest]
    numbers = numbers[np.unique(np.linspace(0, len(numbers) - 1, min(2 * count, len(numbers))).astype(int))]
    if not len(numbers):
        raise UserError(f"no held-out block has at most {longest - 2} pieces, which is what the model takes")
    law = (1 - span_p) ** np.arange(MOST_WORDS)
    read = parse_records(blocks.read(numbers), (FEATURE,))[FEATURE].numpy()
    found: list[HeldOutSpan] = []
    for number, padded in zip(numbers, read, strict=True):
        span = _span(padded[padded >= 0], tokenizer, law / law.sum(), np.random.default_rng(number))
        if span and len(found) < count:
            found.append(span)
    if not found:
        raise UserError("no held-out block has room for a span; give longer blocks")
    return found


def _span(block: np.ndarray, tokenizer: Tokenizer, law: np.ndarray, rng: np.random.Generator) -> HeldOutSpan | None:
    """A span of a block; None where the place that is drawn is at an end of the block, or has a special piece."""
    begins = [*np.flatnonzero(word_starts(tokenizer, block)).tolist(), len(block)]
    words = 1 + int(rng.choice(len(law), p=law))
    first = int(rng.integers(len(begins) - 1))
    if first == 0 or first + words >= len(begins) - 1:
        return None
    start, end = begins[first], begins[first + words]
    pieces = tuple(block[start:end].tolist())
    if set(tokenizer.special_ids) & set(pieces):
        return None
    ids = [tokenizer.cls_id, *block.tolist(), tokenizer.sep_id]
    masked = tuple(range(start + 1, end + 1))
    for position in masked:
        ids[position] = tokenizer.mask_id
    return HeldOutSpan(Query(ids, masked, masked), pieces)
