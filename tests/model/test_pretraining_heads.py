"""The pre-training heads against an independent float64 computation, their gradients, and their parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.model.encoder import encode
from spanbert_jax.model.pretraining_heads import MLM, PretrainingModel, apply, init_params, pretraining_model

VOCAB, OFFSETS, MASKED = 131, 15, 8
CONFIG = Config(
    model=ModelConfig(layers=2, embed=24, heads=3, mlp=40, max_length=41), compute=ComputeConfig(dtype="float32")
)

# Row: (length, merged spans as (start, end) row positions, ends included). SBO takes a span whose two neighbours are
# pieces of the block (not [CLS] at 0 or [SEP] at length - 1), and its first 15 pieces.
ROWS = (
    (37, ((5, 7), (12, 12))),
    (30, ((4, 20),)),  # 17 pieces: 2 have no SBO
    (14, ((1, 3), (10, 12))),  # both touch an end: no pair in this row
    (3, ()),
)


@pytest.fixture(scope="module")
def model() -> PretrainingModel:
    return pretraining_model(CONFIG, VOCAB, "cpu")


@pytest.fixture(scope="module")
def params(model: PretrainingModel) -> dict[str, Any]:
    """Random parameters, nowhere at their initial values."""
    shapes, rng = jax.eval_shape(lambda: init_params(model, jax.random.key(0))), np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.3, 0.2, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """The rows of ROWS in the flat layout; padding slots point far outside the offset table."""
    rng, slots = np.random.default_rng(1), 24
    names = ("masked_positions", "masked_ids", "span_left", "span_right", "span_offset")
    flat: dict[str, np.ndarray] = {name: np.zeros((len(ROWS), slots), np.int32) for name in names}
    flat |= {name: np.zeros((len(ROWS), slots), np.float32) for name in ("masked_weights", "span_weights")}
    flat["span_offset"][:] = 99
    for row, (length, spans) in enumerate(ROWS):
        pieces = [(position, span) for span in spans for position in range(span[0], span[1] + 1)]
        for slot, (position, (start, end)) in enumerate(pieces):
            flat["masked_positions"][row, slot] = position
            flat["masked_ids"][row, slot] = rng.integers(1, VOCAB)
            flat["masked_weights"][row, slot] = 1
            if start > 1 and end < length - 2:
                flat["span_left"][row, slot], flat["span_right"][row, slot] = start - 1, end + 1
                flat["span_offset"][row, slot] = position - start
                flat["span_weights"][row, slot] = position - start < OFFSETS
    lengths = np.array([length for length, _ in ROWS])
    ids = rng.integers(0, VOCAB, (len(ROWS), lengths.max()))
    return flat | {"input_ids": ids.astype(np.int32), "lengths": lengths.astype(np.int32)}


def gelu64(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def norm64(x: np.ndarray, tree: dict[str, Any]) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * tree["scale"] + tree["bias"]


def dense64(x: np.ndarray, tree: dict[str, Any]) -> np.ndarray:
    return x @ tree["kernel"] + tree["bias"]


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    top = scores.max(-1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))


def mlm64(params: dict[str, Any], states: np.ndarray) -> np.ndarray:
    head, word = params["mlm"], params["embeddings"]["word"][:VOCAB]
    return norm64(gelu64(dense64(states, head["dense"])), head["norm"]) @ word.T + head["bias"][:VOCAB]


def sbo64(params: dict[str, Any], left: np.ndarray, right: np.ndarray, offset: int) -> np.ndarray:
    head, word = params["sbo"], params["embeddings"]["word"][:VOCAB]
    x = np.concatenate([left, right, head["offset"][offset]])
    x = norm64(gelu64(dense64(x, head["dense_1"])), head["norm_1"])
    return norm64(gelu64(dense64(x, head["dense_2"])), head["norm_2"]) @ word.T + head["bias"][:VOCAB]


def test_both_heads_and_both_loss_sums_against_a_float64_grid_of_pairs(
    model: PretrainingModel, params: dict[str, Any], batch: dict[str, np.ndarray]
) -> None:
    """The oracle walks over the spans and 15 offsets each, as the authors' code lays pairs out (pairs x 15)."""
    hidden = jax.jit(encode, static_argnums=0)(model, params, batch["input_ids"], batch["lengths"])
    hidden = np.asarray(hidden).astype(np.float64)
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    logits = jax.tree.map(np.asarray, jax.jit(lambda p, b: apply(model, p, b))(params, batch))
    assert logits["mlm"].shape == logits["sbo"].shape == (4, 24, 256) and logits["mlm"].dtype == np.float32
    assert np.isfinite(logits["mlm"]).all() and np.isfinite(logits["sbo"]).all()  # padding slots too

    expected_mlm = expected_sbo = 0.0
    counted = 0
    for row, (length, spans) in enumerate(ROWS):
        slot = 0
        for start, end in spans:
            for position in range(start, end + 1):
                scores = mlm64(wide, hidden[row, position])
                np.testing.assert_allclose(logits["mlm"][row, slot, :VOCAB], scores, rtol=0, atol=1e-5)
                expected_mlm -= log_probabilities(scores)[batch["masked_ids"][row, slot]]
                offset = position - start
                if start > 1 and end < length - 2 and offset < OFFSETS:
                    scores = sbo64(wide, hidden[row, start - 1], hidden[row, end + 1], offset)
                    np.testing.assert_allclose(logits["sbo"][row, slot, :VOCAB], scores, rtol=0, atol=1e-5)
                    expected_sbo -= log_probabilities(scores)[batch["masked_ids"][row, slot]]
                    counted += 1
                slot += 1
    assert counted == 3 + 1 + 15 == batch["span_weights"].sum() and batch["span_weights"][2:].sum() == 0
    for scores, weights, expected in (
        (logits["mlm"], batch["masked_weights"], expected_mlm),
        (logits["sbo"], batch["span_weights"], expected_sbo),
    ):
        chosen = np.take_along_axis(jax.nn.log_softmax(scores), batch["masked_ids"][..., None], -1)[..., 0]
        np.testing.assert_allclose(-np.sum(chosen * weights), expected, rtol=1e-5)


def gradients(model: PretrainingModel, params: dict[str, Any], batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Of the weighted cross-entropy of MLM, and of SBO."""

    def losses(params: dict[str, Any]) -> list[jax.Array]:
        sums = []
        logits = apply(model, params, batch, jnp.uint32(5))
        for head in model.heads:
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[head.name]), batch["masked_ids"][..., None], -1)
            sums.append(-jnp.sum(chosen[..., 0] * batch[head.weights]))
        return sums

    def both(params: dict[str, Any]) -> list[dict[str, Any]]:
        _, vjp = jax.vjp(losses, params)
        return [vjp([jnp.float32(head == 0), jnp.float32(head == 1)])[0] for head in (0, 1)]

    return jax.jit(both)(params)


def test_both_heads_train_the_word_embeddings_and_each_its_own_bias_and_padding_ids_get_nothing(
    model: PretrainingModel, params: dict[str, Any], batch: dict[str, np.ndarray]
) -> None:
    mlm, sbo = gradients(model, params, batch)
    unseen = np.setdiff1d(np.arange(VOCAB), np.append(batch["input_ids"], batch["masked_ids"]))
    for own, other, gradient in (("mlm", "sbo", mlm), ("sbo", "mlm", sbo)):
        word = np.asarray(gradient["embeddings"]["word"])
        assert np.abs(word[unseen]).max() > 0  # by the decoder alone: these pieces are nowhere in the batch
        assert not np.any(word[VOCAB:])
        bias = np.asarray(gradient[own]["bias"])
        assert np.abs(bias[:VOCAB]).min() > 0 and not np.any(bias[VOCAB:])
        np.testing.assert_allclose(bias.sum(), 0, atol=1e-4)
        assert not any(np.any(x) for x in jax.tree.leaves(gradient[other]))
        assert all(np.any(x) for x in jax.tree.leaves((gradient[own], gradient["encoder"])))
    assert not np.any(mlm["embeddings"]["token_type"][1])


def test_ids_that_pad_the_vocabulary_have_probability_zero_whatever_their_parameters(
    model: PretrainingModel, params: dict[str, Any], batch: dict[str, np.ndarray]
) -> None:
    params = jax.tree.map(np.copy, params)
    params["embeddings"]["word"][VOCAB:] = 1e3
    params["mlm"]["bias"][VOCAB:] = params["sbo"]["bias"][VOCAB:] = 1e6
    for scores in jax.jit(lambda p: apply(model, p, batch))(params).values():
        assert np.all(scores[..., VOCAB:] == -1e9)
        assert np.all(jax.nn.softmax(scores)[..., VOCAB:] == 0)


def test_without_sbo_the_mlm_scores_stay_and_nothing_of_sbo_is_computed(
    model: PretrainingModel, params: dict[str, Any], batch: dict[str, np.ndarray]
) -> None:
    both, alone = (
        jax.jit(functools.partial(apply, model, heads=heads)).lower(params, batch).compile()
        for heads in (model.heads, (MLM,))
    )
    np.testing.assert_allclose(both(params, batch)["mlm"], alone(params, batch)["mlm"], atol=1e-6)
    assert set(alone(params, batch)) == {"mlm"}
    heads_share = 1 - alone.cost_analysis()["flops"] / both.cost_analysis()["flops"]
    assert heads_share > 0.1, heads_share


def test_parameter_names_and_shapes_are_the_published_ones(model: PretrainingModel) -> None:
    tree = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    layers, embed, heads, head_dim, mlp, vocab = 2, 24, 3, 8, 40, 256
    expected: dict[str, tuple[int, ...]] = {
        "embeddings/word": (vocab, embed),
        "embeddings/position": (41, embed),
        "embeddings/token_type": (2, embed),
        "encoder/attention/qkv/kernel": (layers, embed, 3, heads, head_dim),
        "encoder/attention/qkv/bias": (layers, 3, heads, head_dim),
        "encoder/attention/output/kernel": (layers, heads, head_dim, embed),
        "encoder/attention/output/bias": (layers, embed),
        "encoder/mlp/up/kernel": (layers, embed, mlp),
        "encoder/mlp/up/bias": (layers, mlp),
        "encoder/mlp/down/kernel": (layers, mlp, embed),
        "encoder/mlp/down/bias": (layers, embed),
        "mlm/dense/kernel": (embed, embed),
        "mlm/dense/bias": (embed,),
        "mlm/bias": (vocab,),
        "sbo/offset": (15, 200),
        "sbo/dense_1/kernel": (2 * embed + 200, embed),
        "sbo/dense_1/bias": (embed,),
        "sbo/dense_2/kernel": (embed, embed),
        "sbo/dense_2/bias": (embed,),
        "sbo/bias": (vocab,),
    }
    norms = {"embeddings/norm": (embed,), "mlm/norm": (embed,), "sbo/norm_1": (embed,), "sbo/norm_2": (embed,)}
    norms |= {"encoder/attention/norm": (layers, embed), "encoder/mlp/norm": (layers, embed)}
    expected |= {f"{name}/{leaf}": shape for name, shape in norms.items() for leaf in ("scale", "bias")}
    assert found == expected
    assert {x.dtype for x in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    assert all(type(node) is dict for node in (tree, tree["encoder"], tree["encoder"]["attention"]["qkv"]))


def test_initial_parameters_are_normal_with_init_std_zero_biases_and_unit_scales(model: PretrainingModel) -> None:
    make = jax.jit(lambda key: init_params(model, key))
    params, again, other = (jax.tree.map(np.asarray, make(jax.random.key(seed))) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "embeddings/word":  # the rows that pad the table are 0: files need not hold them
            assert not np.any(x[VOCAB:])
            x = x[:VOCAB]
        if name.endswith("bias"):
            assert not np.any(x), name
        elif name.endswith("scale"):
            assert np.all(x == 1), name
        else:
            deviations = 5 / np.sqrt(x.size)  # five standard deviations of the estimates, in units of init_std
            assert abs(np.mean(x)) < 0.02 * deviations, name
            assert abs(np.std(x) / 0.02 - 1) < deviations, name
    word = np.asarray(params["embeddings"]["word"])[:VOCAB]
    tail = np.mean(np.abs(word) > 0.04)  # not truncated: 4.6% lie beyond two deviations
    assert abs(tail - 0.0455) < 5 * np.sqrt(0.0455 / word.size)
    kernel = np.asarray(params["encoder"]["mlp"]["up"]["kernel"])
    assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.2  # layers are drawn independently
    assert np.any(word != other["embeddings"]["word"][:VOCAB])
