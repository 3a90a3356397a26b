"""SentencePiece models that this project did not train."""

import io
from collections.abc import Sequence
from typing import Any

import sentencepiece

from spanbert_jax.text.tokenizer import Tokenizer


def other_model(lines: Sequence[str], kind: str, **options: Any) -> Tokenizer:
    """A model of about 600 pieces whose special pieces have other ids than those of this project's models. options:
    further ones of SentencePiece's trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=kind,
        vocab_size=600,
        pad_id=3,
        pad_piece="[PAD]",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return Tokenizer(kind, model.getvalue())
