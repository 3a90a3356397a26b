"""What the sums of the objective mean: losses and accuracies by head and by what replaced the piece."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.batch import KEPT, MASK, RANDOM
from spanbert_jax.config import FAMILIES
from spanbert_jax.model import pretraining_heads
from spanbert_jax.model.encoder import encode
from spanbert_jax.tasks.pretraining_loss import describe, metrics, objective
from spanbert_jax.training import flops
from tests.support.synthetic import VOCAB, random_batch, small_config

COMMONEST = 7


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Of the masked pieces every third is the commonest one, so that some answers are right."""
    batch = random_batch(small_config(), 0)
    batch["masked_ids"][:, ::3] = COMMONEST
    return batch


@pytest.fixture(scope="module")
def scores(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each head's scores, from parameters that like the commonest piece."""
    model, params = model_and_params()
    return {
        name: np.asarray(x)
        for name, x in jax.jit(pretraining_heads.apply, static_argnums=0)(model, params, batch).items()
    }


def model_and_params(family: str = "bert", **train: Any) -> tuple[pretraining_heads.PretrainingModel, Any]:
    pairs = {"pairs": bool(train.get("nsp_weight"))}
    config = small_config(train=train, corpus=pairs, model={"family": family})
    model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
    shapes = jax.eval_shape(lambda: pretraining_heads.init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(float(path[-1].key == "scale"), 0.02, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    for head in ("mlm", "sbo"):
        params[head]["bias"][COMMONEST] = 0.25
    return model, params


def test_accuracies_by_what_replaced_the_piece_equal_a_walk_over_the_slots(
    batch: dict[str, np.ndarray], scores: dict[str, np.ndarray]
) -> None:
    model, params = model_and_params()
    goal = objective(model, COMMONEST)
    _, sums = jax.jit(lambda params, batch: goal.loss(params, batch, goal.totals(batch), None, None))(params, batch)
    found = metrics({name: float(value) for name, value in sums.items()}, model.config)
    expected = {}
    for name, field in (("mlm", "masked_weights"), ("sbo", "span_weights")):
        rows, slots = np.nonzero(batch[field])
        labels, kinds = batch["masked_ids"][rows, slots], batch["replacement"][rows, slots]
        chosen = scores[name][rows, slots].astype(np.float64)
        losses = np.log(np.exp(chosen).sum(-1)) - chosen[np.arange(len(labels)), labels]
        right, common = chosen.argmax(-1) == labels, labels == COMMONEST
        assert 0 < right.mean() < 1
        expected |= {
            f"{name}_loss": losses.mean(),
            f"{name}_accuracy": right.mean(),
            f"{name}_commonest": common.mean(),
        }
        for kind, value in (("mask", MASK), ("random", RANDOM), ("kept", KEPT)):
            expected[f"{name}_share_{kind}"] = (kinds == value).mean()
            expected[f"{name}_accuracy_{kind}"] = right[kinds == value].mean()
        expected[f"{name}_loss_mask"] = losses[kinds == MASK].mean()
        expected[f"{name}_commonest_mask"] = common[kinds == MASK].mean()
    padding = found.pop("padding")
    assert padding == pytest.approx(1 - batch["lengths"].sum() / batch["input_ids"].size)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_next_sentence_prediction_is_a_mean_over_the_rows_that_are_there(family: str) -> None:
    model, params = model_and_params(family, nsp_weight=0.5)
    config = model.config
    batch = random_batch(config, 3)
    scores = jax.jit(pretraining_heads.apply, static_argnums=0)(model, params, batch)
    inputs = (batch[name] for name in ("input_ids", "lengths", "token_type_ids"))
    states = np.asarray(jax.jit(encode, static_argnums=0)(model, params, *inputs))
    pooled = np.tanh(states[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    expected = pooled @ params["nsp"]["kernel"] + params["nsp"]["bias"]
    np.testing.assert_allclose(scores["nsp"], expected, atol=1e-5)

    goal = objective(model, COMMONEST)
    loss, sums = jax.jit(lambda params, batch: goal.loss(params, batch, goal.totals(batch), None, None))(params, batch)
    there = batch["lengths"] > 0
    labels, chosen = batch["next_labels"][there], expected[there].astype(np.float64)
    losses = np.log(np.exp(chosen).sum(-1)) - chosen[np.arange(len(labels)), labels]
    found = metrics({name: float(value) for name, value in sums.items()}, config)
    assert found["nsp_loss"] == pytest.approx(losses.mean(), rel=1e-5) and there.sum() == len(there) - 1
    assert found["nsp_accuracy"] == pytest.approx((chosen.argmax(-1) == labels).mean())
    assert found["nsp_commonest"] == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert {name for name in found if name.startswith("nsp")} == {"nsp_loss", "nsp_accuracy", "nsp_commonest"}
    parts = sums["mlm_loss"] / batch["masked_weights"].sum() + sums["sbo_loss"] / (batch["span_weights"].sum() + 1)
    assert float(loss) == pytest.approx(float(parts) + 0.5 * losses.mean(), rel=1e-5)
    assert float(sums["pieces"]) == np.maximum(batch["lengths"] - 3, 0).sum()
    without = dataclasses.replace(config, train=dataclasses.replace(config.train, nsp_weight=0.0))
    counted = [flops.pretraining_row_flops(one, VOCAB, 32) for one in (config, without)]
    assert counted[0] - counted[1] == 3 * 2 * (24**2 + 2 * 24)  # the pooler and two scores, once a row
    assert describe(found).endswith(f"NSP {found['nsp_loss']:.3f} ({found['nsp_accuracy']:.1%})")


def test_a_kind_that_replaced_no_piece_has_a_share_and_no_accuracy(batch: dict[str, np.ndarray]) -> None:
    model, params = model_and_params(sbo_weight=0.0)
    kept = {**batch, "replacement": np.where(batch["masked_weights"] > 0, KEPT, 0)}
    goal = objective(model, COMMONEST)
    _, sums = jax.jit(lambda params, batch: goal.loss(params, batch, goal.totals(batch), None, None))(params, kept)
    found = metrics({name: float(value) for name, value in sums.items()}, model.config)
    assert set(found) == {
        *("mlm_loss", "mlm_accuracy", "mlm_commonest", "mlm_accuracy_kept", "padding"),
        *("mlm_share_mask", "mlm_share_random", "mlm_share_kept"),
    }
    assert (found["mlm_share_mask"], found["mlm_share_kept"]) == (0, 1)
    assert found["mlm_accuracy_kept"] == found["mlm_accuracy"]
    assert describe(found) == f"MLM {found['mlm_loss']:.3f} ({found['mlm_accuracy']:.1%})"


def test_the_words_beside_the_bar_are_the_loss_and_the_accuracy_on_pieces_that_became_mask() -> None:
    values = {"held_out/mlm_loss": 4.1234, "held_out/mlm_accuracy": 0.5, "held_out/mlm_accuracy_mask": 0.3119}
    values |= {"held_out/sbo_loss": 4.5409, "held_out/sbo_accuracy": 0.4, "held_out/sbo_accuracy_mask": 0.24}
    assert describe(values) == "MLM 4.123 (31.2% of [MASK]), SBO 4.541 (24.0% of [MASK])"
