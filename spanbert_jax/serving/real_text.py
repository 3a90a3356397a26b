"""Real text to compare functions on: the text that a user gives, or Python's own documentation.

Invariant: every row has [CLS] first and [SEP] last, and the rows' lengths are spread from short ones to full ones.
"""

import pydoc_data.topics
from pathlib import Path

import numpy as np

from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer

ROWS = 8
_LINES = 10_000


def real_lines(path: Path | None) -> list[str]:
    """The first 10,000 lines that are not blank of the file `path`, or of the documentation that every Python has.

    Raises UserError where the file cannot be read as UTF-8 or has no text.
    """
    try:
        text = path.read_text(encoding="utf-8") if path else "\n".join(pydoc_data.topics.topics.values())
    except (OSError, ValueError) as error:
        raise UserError(f"--text {path}: cannot be read as UTF-8 text ({error})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()][:_LINES]
    if not lines:
        raise UserError(f"--text {path}: no lines in it")
    return lines


def rows_of_lines(tokenizer: Tokenizer, lines: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids int32 [ROWS, length], lengths int32 [ROWS]) of pieces cut from the lines, whatever their ends."""
    pieces = [piece for ids in tokenizer.encode_batch(lines[: ROWS * length]) for piece in ids]
    ids = np.full((ROWS, length), tokenizer.pad_id, np.int32)
    lengths = np.linspace(min(4, length), length, ROWS).astype(np.int32)
    for row, count in enumerate(lengths):
        body = np.resize(pieces[row * length :] or pieces, count - 2)
        ids[row, :count] = [tokenizer.cls_id, *body, tokenizer.sep_id]
    return ids, lengths
