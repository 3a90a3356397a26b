"""The tensors of Hugging Face's ModernBERT beside our parameters of the family "modern".

Invariant: each parameter of ours is in exactly one view, except the rows that pad the vocabulary and the norm before
the first layer's attention. ModernBERT has no such norm, and the family computes nothing with it. Names and shapes are
those of transformers 5.23, models/modernbert/modeling_modernbert.py.
"""

from collections.abc import Mapping

import numpy as np

from spanbert_jax.convert.names import SBO, Names, Params, Views, plain

_WORD, _DECODER = "model.embeddings.tok_embeddings.weight", "decoder"


def _views(params: Params, vocab_size: int) -> dict[str, np.ndarray]:
    views = Views()
    embeddings, embed = params["embeddings"], params["embeddings"]["word"].shape[1]
    views[_WORD] = embeddings["word"][:vocab_size]
    views.norm("model.embeddings.norm", embeddings["norm"])
    attention, mlp = params["encoder"]["attention"], params["encoder"]["mlp"]

    def linear(name: str, tree: Params, layer: int, inputs: int) -> None:
        views.linear(name, tree["kernel"][layer], tree["bias"][layer] if "bias" in tree else None, inputs)

    for layer in range(len(mlp["norm"]["scale"])):
        name = f"model.layers.{layer}"
        if layer:  # Layer 0 attends to the embeddings, which have their own norm.
            views.norm(f"{name}.attn_norm", attention["norm"], layer)
        linear(f"{name}.attn.Wqkv", attention["qkv"], layer, embed)
        linear(f"{name}.attn.Wo", attention["output"], layer, embed)
        views.norm(f"{name}.mlp_norm", mlp["norm"], layer)
        linear(f"{name}.mlp.Wi", mlp["up"], layer, embed)
        linear(f"{name}.mlp.Wo", mlp["down"], layer, mlp["down"]["kernel"].shape[1])
    views.norm("model.final_norm", params["final_norm"])
    # One name for the layer between the encoder and any head: a fine-tuning goes on with the masked language model's.
    for head in ("mlm", "transform"):
        if head in params:
            views.dense("head.dense", params[head]["dense"])
            views.norm("head.norm", params[head]["norm"])
    if "mlm" in params:
        views[f"{_DECODER}.bias"] = params["mlm"]["bias"][:vocab_size]
    if "sbo" in params:
        views.sbo(params["sbo"], vocab_size)
    for head in ("qa_outputs", "classifier"):
        if head in params:
            views.dense("classifier", params[head])
    return views


def _canonical(name: str) -> str:
    """The name in files of a class with a head, where the encoder's names begin with "model."."""
    name = plain(name)
    return f"model.{name}" if name.startswith(("embeddings.", "layers.", "final_norm.")) else name


def _heads(architecture: str) -> Mapping[str, str]:
    """Files of the task classes have the same names, so the class alone tells our heads. Of a class that is not listed
    the encoder is taken, and the head is left alone."""
    known = {"mlm": f"{_DECODER}.", "sbo": f"{SBO}."}
    if architecture == "ModernBertForQuestionAnswering":
        return {**known, "transform": "head.", "qa_outputs": "classifier."}
    if architecture in ("ModernBertForSequenceClassification", "ModernBertForTokenClassification"):
        return {**known, "transform": "head.", "classifier": "classifier."}
    return known


def _complete(params: Params) -> None:
    params["encoder"]["attention"]["norm"]["scale"][0] = 1


NAMES = Names(
    title="ModernBERT",
    word=_WORD,
    base="model.",
    layer="model.layers.",
    sizes={"vocab_size": (_WORD, 0), "embed": (_WORD, 1), "mlp": ("model.layers.0.mlp.Wo.weight", 1)},
    tied={f"{_DECODER}.weight": _WORD, f"{SBO}.decoder.weight": _WORD},
    canonical=_canonical,
    heads=_heads,
    views=_views,
    complete=_complete,
)
