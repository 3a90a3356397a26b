"""The pre-training objective: the losses of all heads as sums, and the metrics that follow from the sums.

Invariant: loss = the sum over heads of loss_weight * sum(losses) / normaliser, with the normaliser counted over the
global batch, and `losses` those of the head and its further ones. For SpanBERT: sum(MLM) / N + sbo_weight * sum(SBO) /
(M + 1), where N and M are the numbers of pieces with each loss (code: criterions/spanbert_loss.py, which counts them
per worker of about 8 rows). Next-sentence prediction adds nsp_weight * sum(NSP) / R, where R is the number of rows
(code: mlm_nsp_sbo_loss.py). Logarithms are natural. Like model/ and training/, this module runs where TensorFlow is not
installed.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spanbert_jax.batch import REPLACEMENTS, Batch, specials
from spanbert_jax.config import Config
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.pretraining_heads import HeadLoss, trained_heads
from spanbert_jax.training.step import Objective, Sums


def objective(model: pretraining_heads.PretrainingModel, commonest: int) -> Objective:
    """The objective of the heads that the model's configuration trains. commonest: the id of the corpus's commonest
    piece, which a guess without a model always names."""
    heads = trained_heads(model.config)
    loss_weights = [head.loss_weight(model.config) for head in heads]

    def totals(batch: Batch) -> list[jax.Array]:
        return [jnp.sum(batch[head.weights]) for head in heads]

    def loss(
        params: Any, batch: Batch, counts: list[jax.Array], key: jax.Array | None, row_numbers: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        lost = pretraining_heads.losses(model, params, batch, key, row_numbers, heads)
        pieces = jnp.sum(jnp.maximum(batch["lengths"] - specials(model.config), 0))
        sums: Sums = {"pieces": pieces.astype(jnp.float32)}
        sums["row_positions"] = jnp.sum(batch["lengths"]).astype(jnp.float32)
        sums["positions"] = jnp.asarray(batch["input_ids"].size, jnp.float32)
        parts = []
        for head, loss_weight, count in zip(heads, loss_weights, counts, strict=True):
            sums |= _sums(head, lost[head.name], batch, commonest)
            own = sum((sums[f"{head.name}_{part}_loss"] for part in head.further), sums[f"{head.name}_loss"])
            parts.append(loss_weight * own / head.normaliser(count))
        return sum(parts[1:], parts[0]), sums

    return Objective(totals, loss)


def _sums(head: pretraining_heads.Head, lost: HeadLoss, batch: Batch, commonest: int) -> Sums:
    """Sums over a head's predictions, with their weights: over all, and for pieces over each kind of replacement.

    A piece that was kept is visible, and a copy of it is right. So the accuracy on kept pieces says nothing about the
    head, and the accuracy on [MASK] says everything.
    """
    name, weights, targets = head.name, batch[head.weights], batch[head.targets]
    of_kind = {"": weights}
    if not head.classes:
        of_kind |= {f"_{kind}": weights * (batch["replacement"] == value) for kind, value in REPLACEMENTS.items()}
    found: Sums = {f"{name}_class_{value}": jnp.sum((targets == value) * weights) for value in range(head.classes)}
    found |= {f"{name}_{part}_loss": jnp.sum(lost.further[part] * weights) for part in head.further}
    for kind, weight in of_kind.items():
        found[f"{name}_count{kind}"] = jnp.sum(weight)
        found[f"{name}_loss{kind}"] = jnp.sum(lost.loss * weight)
        found[f"{name}_correct{kind}"] = jnp.sum(lost.right * weight)
        if not head.classes:
            found[f"{name}_commonest{kind}"] = jnp.sum((targets == commonest) * weight)
    return found


def metrics(totals: Mapping[str, float], config: Config) -> dict[str, float]:
    """The metrics of each head NAME that `config` trains, from the sums of `objective`, added over batches.

    NAME_loss, NAME_accuracy and NAME_commonest (the accuracy of always naming the commonest piece, or the commonest
    class) are means over the pieces, or the rows, that the head predicts. Heads that predict pieces have further
    metrics. With the ending _mask the three are means over the pieces that became [MASK].
    NAME_accuracy_random and NAME_accuracy_kept are means over the pieces that a random piece replaced, and over those
    that were kept. NAME_share_mask, _random and _kept are the shares of the three kinds. A kind without pieces has a
    share and no means. "padding" is the share of the batches' positions that is padding.
    """
    out: dict[str, float] = {}
    for head in trained_heads(config):
        name = head.name
        of_all = max(totals[f"{name}_count"], 1.0)
        out |= {f"{name}_{part}_loss": totals[f"{name}_{part}_loss"] / of_all for part in head.further}
        if head.classes:
            largest = max(totals[f"{name}_class_{value}"] for value in range(head.classes))
            totals = {**totals, f"{name}_commonest": largest}
        for kind in ("",) if head.classes else ("", *(f"_{kind}" for kind in REPLACEMENTS)):
            count = totals[f"{name}_count{kind}"]
            if kind:
                out[f"{name}_share{kind}"] = count / of_all
            if not kind or count:
                out[f"{name}_accuracy{kind}"] = totals[f"{name}_correct{kind}"] / max(count, 1.0)
            if not kind or (kind == "_mask" and count):
                out[f"{name}_loss{kind}"] = totals[f"{name}_loss{kind}"] / max(count, 1.0)
                out[f"{name}_commonest{kind}"] = totals[f"{name}_commonest{kind}"] / max(count, 1.0)
    out["padding"] = 1 - totals["row_positions"] / totals["positions"]
    return out


def describe(values: Mapping[str, float]) -> str:
    """A line "MLM 4.123 (31.2% of [MASK]), SBO 4.541 (24.0% of [MASK])": each head's loss, and its accuracy on the
    pieces that became [MASK], or on all pieces where none did."""
    named = {name.split("/")[-1]: value for name, value in values.items()}
    parts = []
    for head in pretraining_heads.HEADS:
        if f"{head.name}_accuracy_mask" in named:
            parts.append(
                f"{head.title} {named[f'{head.name}_loss']:.3f} ({named[f'{head.name}_accuracy_mask']:.1%} of [MASK])"
            )
        elif f"{head.name}_loss" in named:
            parts.append(f"{head.title} {named[f'{head.name}_loss']:.3f} ({named[f'{head.name}_accuracy']:.1%})")
    return ", ".join(parts)
