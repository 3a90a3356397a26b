"""The tensors of Hugging Face's BERT beside our parameters of the family "bert".

Invariant: each parameter of ours but the rows that pad the vocabulary is in exactly one view. Names and shapes are
those of transformers 5.23, models/bert/modeling_bert.py.
"""

import numpy as np

from spanbert_jax.convert.names import SBO, Names, Params, Views, plain

_WORD, _DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder"

# Our heads -> the beginning of the names by which a file is known to have the head.
HEADS = {
    "pooler": "bert.pooler.",
    "mlm": "cls.predictions.transform.",
    "sbo": f"{SBO}.",
    "nsp": "cls.seq_relationship.",
    "qa_outputs": "qa_outputs.",
    "classifier": "classifier.",
}


def _views(params: Params, vocab_size: int) -> dict[str, np.ndarray]:
    views = Views()
    embeddings, embed = params["embeddings"], params["embeddings"]["word"].shape[1]
    views[_WORD] = embeddings["word"][:vocab_size]
    views["bert.embeddings.position_embeddings.weight"] = embeddings["position"]
    views["bert.embeddings.token_type_embeddings.weight"] = embeddings["token_type"]
    views.norm("bert.embeddings.LayerNorm", embeddings["norm"])
    attention, mlp = params["encoder"]["attention"], params["encoder"]["mlp"]
    for layer in range(len(mlp["norm"]["scale"])):
        name = f"bert.encoder.layer.{layer}"
        kernel, bias = attention["qkv"]["kernel"][layer], attention["qkv"]["bias"][layer]
        for index, part in enumerate(("query", "key", "value")):
            views.linear(f"{name}.attention.self.{part}", kernel[:, index], bias[index], embed)
        views.linear(
            f"{name}.attention.output.dense",
            attention["output"]["kernel"][layer],
            attention["output"]["bias"][layer],
            embed,
        )
        views.norm(f"{name}.attention.output.LayerNorm", attention["norm"], layer)
        views.linear(f"{name}.intermediate.dense", mlp["up"]["kernel"][layer], mlp["up"]["bias"][layer], embed)
        down = mlp["down"]["kernel"][layer]
        views.linear(f"{name}.output.dense", down, mlp["down"]["bias"][layer], down.shape[0])
        views.norm(f"{name}.output.LayerNorm", mlp["norm"], layer)
    if "pooler" in params:
        views.dense("bert.pooler.dense", params["pooler"])
    if "mlm" in params:
        views.dense("cls.predictions.transform.dense", params["mlm"]["dense"])
        views.norm("cls.predictions.transform.LayerNorm", params["mlm"]["norm"])
        views["cls.predictions.bias"] = params["mlm"]["bias"][:vocab_size]
    if "sbo" in params:
        views.sbo(params["sbo"], vocab_size)
    if "nsp" in params:
        views.dense("cls.seq_relationship", params["nsp"])
    for head in ("qa_outputs", "classifier"):
        if head in params:
            views.dense(head, params[head])
    return views


def _canonical(name: str) -> str:
    """The name in transformers' newest spelling, and in files of a class with a head: the encoder's begin with
    "bert."."""
    name = plain(name)
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


NAMES = Names(
    title="BERT",
    word=_WORD,
    base="bert.",
    layer="bert.encoder.layer.",
    sizes={
        "vocab_size": (_WORD, 0),
        "embed": (_WORD, 1),
        "max_length": ("bert.embeddings.position_embeddings.weight", 0),
        "token_types": ("bert.embeddings.token_type_embeddings.weight", 0),
        "mlp": ("bert.encoder.layer.0.intermediate.dense.weight", 0),
    },
    tied={
        f"{_DECODER}.weight": _WORD,
        f"{_DECODER}.bias": "cls.predictions.bias",
        f"{SBO}.decoder.weight": _WORD,
    },
    canonical=_canonical,
    heads=lambda architecture: HEADS,
    views=_views,
    complete=lambda params: None,
)
