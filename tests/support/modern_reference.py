"""The encoder of the family "modern" in NumPy and float64, written from the description and not from the modules.

Invariant: every field of `ModelConfig` that the family reads is followed. Facts: Warner et al. 2024 (arXiv:2412.13663);
Su et al. 2021 (arXiv:2104.09864) for the rotary positions; Shazeer 2020 (arXiv:2002.05202) for the gated network.
"""

from typing import Any

import jax
import numpy as np
from scipy.special import erf

from spanbert_jax.config import ModelConfig

BIASLESS: dict[str, Any] = {"attention_bias": False, "mlp_bias": False, "norm_bias": False, "head_bias": False}
# ModernBERT's fields at a small size.
MODERNBERT: dict[str, Any] = {
    "family": "modern",
    "pre_norm": True,
    "gated_mlp": True,
    **BIASLESS,
    "window": 4,
    "rope_theta": 160_000.0,
    "init": "truncated",
    "layer_norm_eps": 1e-5,
}


def hidden_states(params: Any, model: ModelConfig, input_ids: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The hidden states of each row's valid positions, float64 [its length, embed]."""
    params = jax.tree.map(np.float64, params)
    return [_row(params, model, ids[:length]) for ids, length in zip(input_ids, lengths, strict=True)]


def _row(params: Any, model: ModelConfig, ids: np.ndarray) -> np.ndarray:
    def norm(x: np.ndarray, tree: Any) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + model.layer_norm_eps) * tree[
            "scale"
        ] + tree.get("bias", 0)

    x = norm(params["embeddings"]["word"][ids], params["embeddings"]["norm"])
    for number in range(model.layers):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], params["encoder"])
        attention, mlp = layer["attention"], layer["mlp"]
        entering = norm(x, attention["norm"]) if model.pre_norm and number > 0 else x
        x = x + _attention(entering, attention, model, is_full=not model.window or number % model.full_every == 0)
        x = x if model.pre_norm else norm(x, attention["norm"])
        x = x + _network(norm(x, mlp["norm"]) if model.pre_norm else x, mlp, model)
        x = x if model.pre_norm else norm(x, mlp["norm"])
    return norm(x, params["final_norm"]) if model.pre_norm else x


def _attention(x: np.ndarray, params: Any, model: ModelConfig, is_full: bool) -> np.ndarray:
    qkv = np.einsum("le,ephd->plhd", x, params["qkv"]["kernel"])
    if model.attention_bias:
        qkv = qkv + params["qkv"]["bias"][:, None]
    base = model.rope_theta if is_full else model.local_rope_theta
    mixed = np.zeros_like(qkv[2])
    for head in range(model.heads):
        queries, keys = (_turned(qkv[part, :, head], base) for part in (0, 1))
        for place, query in enumerate(queries):
            seen = [k for k in range(len(x)) if is_full or abs(k - place) <= model.window]
            scores = keys[seen] @ query / np.sqrt(len(query))
            weights = np.exp(scores - scores.max())
            mixed[place, head] = weights / weights.sum() @ qkv[2, seen, head]
    out = np.einsum("lhd,hde->le", mixed, params["output"]["kernel"])
    return out + params["output"]["bias"] if model.attention_bias else out


def _turned(x: np.ndarray, base: float) -> np.ndarray:
    """Numbers i and i + d / 2 of the vector at position p, as one complex number, times e^(i p base^(-2i / d))."""
    half = x.shape[1] // 2
    points = x[:, :half] + 1j * x[:, half:]
    points *= np.exp(1j * np.arange(len(x))[:, None] * base ** (-np.arange(half) / half))
    return np.concatenate([points.real, points.imag], axis=1)


def _network(x: np.ndarray, params: Any, model: ModelConfig) -> np.ndarray:
    up = np.einsum("le,epm->plm", x, params["up"]["kernel"])
    if model.mlp_bias:
        up = up + params["up"]["bias"][:, None]
    hidden = up[0] * 0.5 * (1 + erf(up[0] / np.sqrt(2)))
    out = (hidden * up[1] if model.gated_mlp else hidden) @ params["down"]["kernel"]
    return out + params["down"]["bias"] if model.mlp_bias else out
