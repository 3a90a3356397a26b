"""transformers' BERT with random weights, or with the weights of our own parameters."""

from typing import Any

import jax
import numpy as np

from spanbert_jax.config import ModelConfig
from tests.support.random_params import MODEL
from tests.support.synthetic import VOCAB

CLASSES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMultipleChoice",
)


def random_bert(class_name: str, **options: Any) -> Any:
    """A model of transformers with the sizes of `MODEL`; every parameter is random, biases and LayerNorms too."""
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=MODEL.embed,
        num_hidden_layers=MODEL.layers,
        num_attention_heads=MODEL.heads,
        intermediate_size=MODEL.mlp,
        max_position_embeddings=MODEL.max_length,
        **options,
    )
    model = getattr(transformers, class_name)(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def to_transformers(params: dict[str, Any], vocab_size: int) -> dict[str, np.ndarray]:
    """Our parameters under transformers' names, where a Linear's weight is [out, in]."""
    state: dict[str, np.ndarray] = {}

    def norm(name: str, tree: dict[str, Any]) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = tree["scale"], tree["bias"]

    def linear(name: str, kernel: np.ndarray, bias: np.ndarray, outputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = kernel.reshape(-1, outputs).T, bias.reshape(outputs)

    embeddings = params["embeddings"]
    embed = embeddings["word"].shape[1]
    state["bert.embeddings.word_embeddings.weight"] = embeddings["word"][:vocab_size]
    state["bert.embeddings.position_embeddings.weight"] = embeddings["position"]
    state["bert.embeddings.token_type_embeddings.weight"] = embeddings["token_type"]
    norm("bert.embeddings.LayerNorm", embeddings["norm"])
    for index in range(len(params["encoder"]["mlp"]["norm"]["scale"])):
        layer = jax.tree.map(lambda x, i=index: x[i], params["encoder"])
        prefix, qkv = f"bert.encoder.layer.{index}", layer["attention"]["qkv"]
        for part, name in enumerate(("query", "key", "value")):
            linear(
                f"{prefix}.attention.self.{name}", qkv["kernel"][:, part].reshape(embed, -1), qkv["bias"][part], embed
            )
        output = layer["attention"]["output"]
        linear(f"{prefix}.attention.output.dense", output["kernel"], output["bias"], embed)
        norm(f"{prefix}.attention.output.LayerNorm", layer["attention"]["norm"])
        up, down = layer["mlp"]["up"], layer["mlp"]["down"]
        linear(f"{prefix}.intermediate.dense", up["kernel"], up["bias"], up["bias"].size)
        linear(f"{prefix}.output.dense", down["kernel"], down["bias"], embed)
        norm(f"{prefix}.output.LayerNorm", layer["mlp"]["norm"])
    if "mlm" in params:
        transform = "cls.predictions.transform"
        linear(f"{transform}.dense", params["mlm"]["dense"]["kernel"], params["mlm"]["dense"]["bias"], embed)
        norm(f"{transform}.LayerNorm", params["mlm"]["norm"])
        state["cls.predictions.bias"] = params["mlm"]["bias"][:vocab_size]
    return state


def transformers_mlm(params: dict[str, Any], model_config: ModelConfig, vocab_size: int, **options: Any) -> Any:
    """transformers' BertForMaskedLM with our weights, all of them taken, and no dropout; in training mode."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=model_config.embed,
            num_hidden_layers=model_config.layers,
            num_attention_heads=model_config.heads,
            intermediate_size=model_config.mlp,
            max_position_embeddings=model_config.max_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-12,
            **options,
        )
    )
    state = {name: torch.tensor(np.array(x)) for name, x in to_transformers(params, vocab_size).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} | {
        name for name in missing if name.endswith(("position_ids", "token_type_ids"))
    }
    return model.train()
