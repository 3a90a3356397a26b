"""How well a vocabulary fits the text of a corpus.

Invariant: blocks are never built of a corpus of which a fifth is unknown to the vocabulary. Where a hundredth is
unknown, there is a warning. A model learns nothing from [UNK], which stands for any unknown word.
"""

import numpy as np

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import Tokenizer

WARNED_SHARE = 0.01
REFUSED_SHARE = 0.2
SAMPLE_PIECES = 500_000  # A build checks the fit after so many pieces, and again at the end.


def unknown_share(unk_id: int, piece_counts: np.ndarray) -> float:
    """The share of pieces that are [UNK]. piece_counts: int64[vocab_size], how often each id occurs."""
    return float(piece_counts[unk_id] / max(1, piece_counts.sum()))


def check_fit(config: Config, tokenizer: Tokenizer, piece_counts: np.ndarray) -> None:
    """Raises UserError where a share of `REFUSED_SHARE` of the pieces or more are [UNK]."""
    share = unknown_share(tokenizer.unk_id, piece_counts)
    if share >= REFUSED_SHARE:
        raise UserError(
            f"{describe_share(share)}, so the vocabulary does not fit the text; {advice(config, tokenizer)}"
        )


def describe_share(share: float) -> str:
    """ "12.3% of the pieces are [UNK]"."""
    return f"{share:.2%} of the pieces are [UNK]" if share < 0.1 else f"{share:.0%} of the pieces are [UNK]"


def advice(config: Config, tokenizer: Tokenizer) -> str:
    """What to change in a configuration whose vocabulary does not fit its text."""
    pieces = map(tokenizer.piece, range(tokenizer.vocab_size))
    uncased = not any(piece != piece.lower() for piece in pieces if not (piece[:1] == "[" and piece[-1:] == "]"))
    if tokenizer.kind == "wordpiece" and uncased and not tokenizer.lowercase and not config.init_from:
        return "it has no capital letters: give --config.tokenizer.lowercase=True"
    if config.init_from:
        return "give text in the language of --config.init_from, or start from another model"
    return (
        "give a vocabulary of the text's language with --config.tokenizer.vocab_file, or let one be trained on the "
        "text: --config.tokenizer.kind=unigram --config.tokenizer.vocab_file=''"
    )
