"""Real text on which two implementations are compared: a user's file, or Python's own documentation.

Invariant: every row has [CLS] first and [SEP] last, and the rows' lengths are spread from short ones to full ones.
"""

import pydoc_data.topics
from pathlib import Path

import numpy as np

from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer

ROWS = 8  # of `rows_of_lines`
_LINES = 10_000  # that are read at most


def real_lines(path: Path | None) -> list[str]:
    """The first 10,000 lines that are not blank of the file `path`; without a path, of Python's own documentation.

    Raises UserError, naming the flag --text, where the file cannot be read as UTF-8 or has no text.
    """
    try:
        text = path.read_text(encoding="utf-8") if path else "\n".join(pydoc_data.topics.topics.values())
    except (OSError, ValueError) as error:
        raise UserError(f"--text {path}: cannot be read as UTF-8 text ({error})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()][:_LINES]
    if not lines:
        raise UserError(f"--text {path} has no text; name a file with at least one line that is not blank")
    return lines


def rows_of_lines(tokenizer: Tokenizer, lines: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids int32 [ROWS, length], lengths int32 [ROWS]): pieces of the joined lines, cut anywhere."""
    pieces = [piece for ids in tokenizer.tokenize_batch(lines[: ROWS * length]) for piece in ids]
    ids = np.full((ROWS, length), tokenizer.pad_id, np.int32)
    lengths = np.linspace(min(4, length), length, ROWS).astype(np.int32)
    for row, count in enumerate(lengths):
        body = np.resize(pieces[row * length :] or pieces, count - 2)
        ids[row, :count] = [tokenizer.cls_id, *body, tokenizer.sep_id]
    return ids, lengths
