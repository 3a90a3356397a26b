"""A random checkpoint as SpanBERT's authors save theirs with fairseq: names, half precision, decoders' copies."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, WIDTH, HEADS, MLP, LAYERS, LENGTH, TYPES, TARGETS = 131, 128, 2, 96, 2, 41, 2, 15
WORD = "decoder.bert.embeddings.word_embeddings.weight"
SBO = "decoder.cls.pair_target_predictions"
DECODERS = ("decoder.cls.predictions.decoder.weight", f"{SBO}.decoder.weight")


def original_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """A random model under the authors' names; no bias is 0, no scale is 1, and attention is far from uniform."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def table(name: str, *shape: int) -> None:
        tensors[f"decoder.{name}"] = rng.normal(0, 0.1, shape).astype(np.float16)

    def linear(name: str, inputs: int, outputs: int) -> None:
        table(f"{name}.weight", outputs, inputs)
        table(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        tensors[f"decoder.{name}.gamma"] = rng.normal(1, 0.1, WIDTH).astype(np.float16)
        table(f"{name}.beta", WIDTH)

    for kind, rows in (("word", VOCAB), ("position", LENGTH), ("token_type", TYPES)):
        table(f"bert.embeddings.{kind}_embeddings.weight", rows, WIDTH)
    norm("bert.embeddings.LayerNorm")
    for index in range(LAYERS):
        layer = f"bert.encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", WIDTH, MLP)
        linear(f"{layer}.output.dense", MLP, WIDTH)
        norm(f"{layer}.output.LayerNorm")
    linear("cls.predictions.transform.dense", WIDTH, WIDTH)
    norm("cls.predictions.transform.LayerNorm")
    table("cls.predictions.bias", VOCAB)
    table("cls.pair_target_predictions.position_embeddings.weight", TARGETS, 200)
    for number, inputs in ((1, 2 * WIDTH + 200), (2, WIDTH)):
        linear(f"cls.pair_target_predictions.mlp_layer_norm.linear{number}", inputs, WIDTH)
        norm(f"cls.pair_target_predictions.mlp_layer_norm.layer_norm{number}")
    table("cls.pair_target_predictions.bias", VOCAB)
    return tensors | {name: tensors[WORD] for name in DECODERS}


def saved(tensors: dict[str, np.ndarray], path: Path, as_training_checkpoint: bool) -> Path:
    """A raw state dict, as in spanbert_large_with_head, or one inside of what fairseq saves while it trains."""
    import torch

    state: Any = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    if as_training_checkpoint:
        state = {"args": argparse.Namespace(arch="cased_bert_pair"), "model": state, "extra_state": {"epoch": 1}}
    torch.save(state, path)
    return path
