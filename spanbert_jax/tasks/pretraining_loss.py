"""The pre-training objective: masked pieces (MLM) and span boundaries (SBO), as sums and what they mean.

Invariant: loss = sum(MLM) / N + sbo_weight * sum(SBO) / (M + 1), N and M the pieces with each loss in the global
batch (code: criterions/spanbert_loss.py; there per worker of about 8 rows). Natural logarithms. Like model/ and
training/, this runs where TensorFlow is not installed.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spanbert_jax.model import pretraining_heads
from spanbert_jax.training.step import Batch, Objective, Sums


def objective(model: pretraining_heads.PretrainingModel, sbo_weight: float, commonest: int) -> Objective:
    """MLM and SBO; `commonest` is the piece that a guess without a model would always name."""

    def totals(batch: Batch) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(batch["masked_weights"]), jnp.sum(batch["span_weights"])

    def loss(
        params: Any, batch: Batch, counts: tuple[jax.Array, jax.Array], key: jax.Array | None, rows: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        lost = pretraining_heads.losses(model, params, batch, key, rows, with_sbo=sbo_weight > 0)
        labels = batch["masked_ids"]
        sums: Sums = {"pieces": jnp.sum(jnp.maximum(batch["lengths"] - 2, 0)).astype(jnp.float32)}
        sums["row_positions"] = jnp.sum(batch["lengths"]).astype(jnp.float32)
        sums["positions"] = jnp.asarray(batch["input_ids"].size, jnp.float32)
        of_heads = [("mlm", lost.mlm, batch["masked_weights"])]
        if lost.sbo is not None:
            of_heads.append(("sbo", lost.sbo, batch["span_weights"]))
        for name, head, weights in of_heads:
            sums[f"{name}_loss"], sums[f"{name}_correct"] = jnp.sum(head.loss * weights), jnp.sum(head.right * weights)
            sums[f"{name}_count"] = jnp.sum(weights)
            sums[f"{name}_commonest"] = jnp.sum((labels == commonest) * weights)
        total = sums["mlm_loss"] / jnp.maximum(counts[0], 1.0)
        if lost.sbo is not None:
            total += sbo_weight * sums["sbo_loss"] / (counts[1] + 1.0)
        return total, sums

    return Objective(totals, loss)


def metrics(totals: Mapping[str, float], sbo_weight: float) -> dict[str, float]:
    """Means over the pieces that were summed; the loss as the objective defines it over all of them."""
    out = {}
    for name in ("mlm", "sbo") if sbo_weight else ("mlm",):
        count = max(totals[f"{name}_count"], 1.0)
        out[f"{name}_loss"] = totals[f"{name}_loss"] / count
        out[f"{name}_accuracy"] = totals[f"{name}_correct"] / count
        out[f"{name}_commonest"] = totals[f"{name}_commonest"] / count
    out["padding"] = 1 - totals["row_positions"] / totals["positions"]
    return out


def describe(values: Mapping[str, float]) -> str:
    """ "MLM 4.123 (31.2%), SBO 4.541 (24.0%)": loss and accuracy."""
    named = {name.split("/")[-1]: value for name, value in values.items()}
    parts = [
        f"{name.upper()} {named[f'{name}_loss']:.3f} ({named[f'{name}_accuracy']:.1%})"
        for name in ("mlm", "sbo")
        if f"{name}_loss" in named
    ]
    return ", ".join(parts)
