"""Small weights of transformers, of both families, beside our import of them."""

from pathlib import Path
from typing import Any

import spanbert_jax
from spanbert_jax.serving.loaded import Loaded
from tests.support.published import write_vocabulary
from tests.support.synthetic import VOCAB
from tests.support.transformers_bert import random_bert
from tests.support.transformers_modernbert import random_modernbert

_SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def imported(family: str, folder: Path) -> tuple[Loaded, Any]:
    """(our import, transformers' model) of a masked language model with random weights, "bert" or "modern", and a
    vocabulary of letters."""
    import torch

    if family == "modern":
        model = random_modernbert("ModernBertForMaskedLM", **_SIZES)
    else:
        model = random_bert("BertForMaskedLM", pad_token_id=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(0.2).add_(float("LayerNorm.weight" in name))
    model.eval().save_pretrained(folder)
    write_vocabulary(folder / "vocab.txt", VOCAB)
    return spanbert_jax.load(folder), model
