"""Random documents of few words, the WordPiece vocabulary that spells them, and the bytes of a folder's files."""

from pathlib import Path

import numpy as np

WORDS = ["the", "old", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "past", "it"]
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    "##s",
    *WORDS,
    *map(str, range(10)),
    *(f"##{i}" for i in range(10)),
]


def document(seed: int) -> str:
    """A document of 1 to 8 lines of 1 to 40 words, none like another."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 40))) + f" {seed} ." for _ in range(rng.integers(1, 9))]
    return "\n".join(lines)


def files_of(directory: Path) -> dict[str, bytes]:
    """The name of each file of a folder -> its bytes."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}
