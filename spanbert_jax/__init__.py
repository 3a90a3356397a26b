"""SpanBERT in JAX: span-aware encoder pre-training from raw text, on CPU, GPU and TPU pods.

    import spanbert_jax

    model = spanbert_jax.load("runs/squad")
    model.predict([{"question": "Who lived in London?", "context": "Ada Lovelace lived in London."}])
    model.embed(["Ada Lovelace lived in London."])  # [texts, embed]

Invariant: importing this module imports no library; `load` imports what it needs.
"""

from typing import TYPE_CHECKING

from spanbert_jax.version import VERSION

if TYPE_CHECKING:
    import os

    from spanbert_jax.serving.loaded import Loaded

__version__ = VERSION


def load(path: "str | os.PathLike[str]", vocab: "str | os.PathLike[str] | None" = None) -> "Loaded":
    """Trained weights, to predict, to embed and to explain with.

    Args:
      path: the workdir of a run (its best checkpoint, or its newest one), one of its checkpoints, or others' weights:
        a Hugging Face BERT or ModernBERT, SpanBERT's archives, a TensorFlow-1 BERT.
      vocab: the vocabulary of others' weights that have none beside them.

    Raises:
      spanbert_jax.errors.UserError: where there are no weights, they are damaged, or no vocabulary fits.
    """
    from pathlib import Path

    from spanbert_jax.serving.loaded import Loaded

    return Loaded(Path(path), Path(vocab) if vocab else None)
