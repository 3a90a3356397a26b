"""The encoder against transformers, against float64 outputs of another implementation, and against itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.model.attention import attention
from spanbert_jax.model.encoder import Encoder, compute_dtype, encode, padded_vocab
from spanbert_jax.model.pretraining_heads import apply, init_params, pretraining_model
from tests.support.transformers_bert import transformers_mlm

ODD = ModelConfig(layers=3, embed=60, heads=5, mlp=100, max_length=41)
F32 = ComputeConfig(dtype="float32")
# Every extension of the encoder.
EXTENDED: dict[str, Any] = {"head_scales": "full", "attention_composition": 2, "context_encoder": "mingru"}
EXTENDED |= {"span_embedding": True, "span_attention": "row"}


def random_params(model: Any, seed: int) -> dict[str, Any]:
    """Random parameters, nowhere at their initial values: no bias is 0 and no LayerNorm scale is 1."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(float("scale" in jax.tree_util.keystr(path)), 0.03, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.mark.parametrize(
    ("model_config", "vocab_size", "lengths"),
    [(ODD, 131, (37, 12, 1)), (ModelConfig(layers=3), 1_000, (24, 9))],
    ids=["odd", "width of base"],
)
def test_hidden_states_and_mlm_logits_are_those_of_transformers(
    model_config: ModelConfig, vocab_size: int, lengths: tuple[int, ...]
) -> None:
    import torch

    model = pretraining_model(Config(model=model_config, compute=F32), vocab_size, "cpu")
    params = random_params(model, 1)
    rng, batch, length = np.random.default_rng(2), len(lengths), max(lengths)
    ids, types = rng.integers(0, vocab_size, (batch, length)), rng.integers(0, 2, (batch, length))
    valid = np.arange(length) < np.array(lengths)[:, None]
    everywhere = np.tile(np.arange(length), (batch, 1))
    inputs = {"input_ids": ids, "lengths": np.array(lengths), "masked_positions": everywhere}
    inputs |= {name: everywhere * 0 for name in ("span_left", "span_right", "span_offset")}
    hidden = jax.jit(lambda p, i, n, t: encode(model, p, i, n, t))(params, ids, np.array(lengths), types)
    logits = jax.jit(lambda p, b: apply(model, p, b))(params, inputs)["mlm"][..., :vocab_size]  # token types all 0

    reference = transformers_mlm(params, model_config, vocab_size).eval()
    mask = torch.tensor(valid.astype(np.int64))
    for implementation in ("eager", "sdpa"):
        reference.set_attn_implementation(implementation)
        with torch.no_grad():
            expected = reference.bert(torch.tensor(ids), mask, torch.tensor(types)).last_hidden_state.numpy()
            expected_logits = reference(torch.tensor(ids), mask).logits.numpy()
        assert np.abs(np.asarray(hidden) - expected)[valid].max() <= 2e-5
        assert np.abs(np.asarray(logits) - expected_logits)[valid].max() <= 2e-5


def test_hidden_states_are_the_float64_outputs_of_another_implementation(shared_data: Path) -> None:
    from safetensors.numpy import load_file

    folder = shared_data / "checkpoints" / "tiny_bert_hf"
    state = load_file(folder / "tiny_bert.safetensors")
    expected = json.loads((folder / "tiny_bert_hidden.json").read_text())

    def linear(name: str, *shape: int) -> dict[str, np.ndarray]:
        stacked = [state[f"encoder.layer.{i}.{name}.weight"].T for i in range(2)]
        bias = np.stack([state[f"encoder.layer.{i}.{name}.bias"] for i in range(2)])
        return {"kernel": np.stack(stacked).reshape(2, *shape), "bias": bias}

    def norm(*names: str) -> dict[str, np.ndarray]:
        scale, bias = (np.squeeze(np.stack([state[f"{n}.{x}"] for n in names])) for x in ("weight", "bias"))
        return {"scale": scale, "bias": bias}

    parts = [linear(f"attention.self.{name}", 8, 2, 4) for name in ("query", "key", "value")]
    qkv = {
        "kernel": np.stack([part["kernel"] for part in parts], axis=2),
        "bias": np.stack([part["bias"].reshape(2, 2, 4) for part in parts], axis=1),
    }
    layers = [f"encoder.layer.{i}" for i in range(2)]
    attention_params = {"qkv": qkv, "output": linear("attention.output.dense", 2, 4, 8)}
    attention_params["norm"] = norm(*(f"{layer}.attention.output.LayerNorm" for layer in layers))
    mlp = {"up": linear("intermediate.dense", 8, 16), "down": linear("output.dense", 16, 8)}
    mlp["norm"] = norm(*(f"{layer}.output.LayerNorm" for layer in layers))
    word = np.zeros((128, 8), np.float32)
    word[:11] = state["embeddings.word_embeddings.weight"]
    embeddings = {"word": word, "norm": norm("embeddings.LayerNorm")}
    for name in ("position", "token_type"):
        embeddings[name] = state[f"embeddings.{name}_embeddings.weight"]
    params = {"embeddings": embeddings, "encoder": {"attention": attention_params, "mlp": mlp}}

    model = Encoder(
        ModelConfig(layers=2, embed=8, heads=2, mlp=16, max_length=16), F32, vocab_size=11, dtype=jnp.dtype("float32")
    )
    ids, types = np.array(expected["sequences"]), np.array(expected["token_types"])
    hidden = jax.jit(encode, static_argnums=0)(model, params, ids, np.full(len(ids), ids.shape[1]), types)
    np.testing.assert_allclose(hidden, np.array(expected["hidden"]), rtol=0, atol=1e-6)


def random_inputs(vocab_size: int, lengths: tuple[int, ...], masked: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng, batch = np.random.default_rng(seed), len(lengths)
    limit = np.maximum(np.array(lengths), 1)[:, None]
    inputs = {name: rng.integers(0, limit, (batch, masked)) for name in ("masked_positions", "span_left", "span_right")}
    return inputs | {
        "input_ids": rng.integers(0, vocab_size, (batch, max(lengths))),
        "lengths": np.array(lengths),
        "span_offset": rng.integers(0, 15, (batch, masked)),
    }


def loss_and_gradient(model: Any, params: dict[str, Any], inputs: dict[str, Any], key: int) -> tuple[Any, Any, Any]:
    """A loss of both heads with dropout, its gradient, and the logits, in NumPy."""

    def loss(params: dict[str, Any]) -> tuple[Any, Any]:
        logits = apply(model, params, inputs, jnp.uint32(key))
        return sum(jax.nn.log_softmax(x)[..., 3].sum() for x in logits.values()), logits

    found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    (value, logits), gradient = jax.tree.map(np.asarray, found)
    return value, gradient, logits


def test_scan_unroll_and_every_remat_policy_agree_in_values_and_gradients() -> None:
    config = Config(model=dataclasses.replace(ODD, layers=2, **EXTENDED), compute=F32)
    inputs = random_inputs(131, (13, 5, 1, 0), 6)
    params = random_params(pretraining_model(config, 131, "cpu"), 3)
    tags = np.zeros((4, 13), np.int32)
    tags[0, 3:6], tags[1, 1] = (3, 2, 2), 5

    def loss(params: dict[str, Any], model: Any) -> tuple[jax.Array, jax.Array]:
        ids, lengths = inputs["input_ids"], inputs["lengths"]
        hidden = encode(model, params, ids, lengths, dropout_key=jnp.uint32(7), span_tags=tags)
        return jnp.sum(jnp.sin(hidden)), hidden

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    results = {}
    for unroll, remat in ((False, "none"), (False, "full"), (True, "none"), (True, "dots")):
        compute = dataclasses.replace(F32, unroll=unroll, remat=remat)
        results[unroll, remat] = run(
            params, pretraining_model(dataclasses.replace(config, compute=compute), 131, "cpu")
        )
    expected = results.pop((False, "none"))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected))
    for result in results.values():
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), result, expected)


def test_padding_content_and_padding_length_never_change_a_valid_position() -> None:
    model = pretraining_model(Config(model=ODD, compute=F32), 131, "cpu")
    params = random_params(model, 4)
    rng, lengths = np.random.default_rng(5), np.array([30, 12, 0])
    valid = np.arange(37) < lengths[:, None]
    ids = rng.integers(0, 131, (3, 37))
    run = jax.jit(lambda ids: encode(model, params, ids, lengths))
    hidden = np.asarray(run(ids))
    assert np.isfinite(hidden).all()  # the row of length 0 too
    other = np.asarray(run(np.where(valid, ids, rng.integers(0, 131, ids.shape))))
    np.testing.assert_array_equal(hidden[valid], other[valid])
    shorter = np.asarray(run(ids[:, :30]))
    np.testing.assert_allclose(hidden[:, :30][valid[:, :30]], shorter[valid[:, :30]], rtol=0, atol=1e-5)


def test_a_padded_position_gives_no_gradient() -> None:
    model = pretraining_model(Config(model=ODD, compute=F32), 131, "cpu")
    params = random_params(model, 4)
    inputs = random_inputs(130, (30, 12), 6)
    padding = np.arange(30) >= inputs["lengths"][:, None]
    inputs["input_ids"] = np.where(padding, 130, inputs["input_ids"])  # piece 130 is in the padding alone

    def hidden_sum(params: dict[str, Any]) -> jax.Array:
        hidden = encode(model, params, inputs["input_ids"], inputs["lengths"], dropout_key=jnp.uint32(1))
        return jnp.sum(jnp.sin(hidden) * ~padding[..., None])

    gradient = jax.jit(jax.grad(hidden_sum))(params)["embeddings"]["word"]
    assert np.abs(gradient[:130]).max() > 0 and not np.any(gradient[130])


@pytest.mark.parametrize("largest", [3e3, 1e4])
def test_bfloat16_attention_keeps_float32_logits_at_spanbert_larges_magnitudes(largest: float) -> None:
    rng, shape = np.random.default_rng(6), (2, 64, 4, 16)
    query, key, value = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3))
    scale = largest / np.abs(np.einsum("bqhd,bkhd->bhqk", *np.float64([query, key])) / 4).max()
    query = query * jnp.bfloat16(scale)
    # Queries near each other in score would hide an error: give every key one that competes with it.
    key = key.at[:, 1::2].set(key[:, ::2] * jnp.bfloat16(0.9961))
    lengths = np.array([64, 50])
    q, k, v = np.float64([query, key, value])
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / 4
    assert 0.5 * largest < np.abs(logits).max() < 2 * largest
    logits = np.where(np.arange(64) < lengths[:, None, None, None], logits, -np.inf)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", probabilities, v)
    result, vjp = jax.vjp(lambda qkv: attention(qkv, lengths), jnp.stack([query, key, value], axis=2))
    assert result.dtype == jnp.bfloat16
    assert np.abs(np.float64(result) - expected).max() < 0.03  # bfloat16 logits, off by 16 or more, give about 3
    assert all(np.isfinite(np.float64(x)).all() for x in vjp(jnp.ones_like(result)))


def test_attention_has_the_gradient_of_the_plain_formula() -> None:
    rng, lengths = np.random.default_rng(7), jnp.array([11, 5, 0])
    qkv = jnp.asarray(rng.normal(size=(3, 11, 3, 2, 4)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 11, 2, 4)), jnp.float32)

    def plain(qkv: jax.Array) -> jax.Array:
        query, key, value = (qkv[:, :, part] for part in range(3))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2
        mask = jnp.arange(11) < lengths[:, None, None, None]
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, logits, -1e30)), value)

    ours = jax.jit(jax.grad(lambda qkv: jnp.sum(weights * attention(qkv, lengths))))(qkv)
    theirs = jax.jit(jax.grad(lambda qkv: jnp.sum(weights * plain(qkv))))(qkv)
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=0, atol=1e-5)
    assert np.isfinite(ours).all()


def test_bfloat16_compute_stays_close_to_float32_with_float32_parameters_and_gradients() -> None:
    inputs = random_inputs(131, (37, 12), 6)
    inputs["span_tags"] = np.zeros((2, 37), np.int32)
    inputs["span_tags"][0, 3:8] = 3, 2, 2, 5, 4
    two = dataclasses.replace(ODD, layers=2, **EXTENDED)
    float32 = pretraining_model(Config(model=two, compute=F32), 131, "cpu")
    bfloat16 = pretraining_model(Config(model=two, compute=ComputeConfig(dtype="bfloat16")), 131, "cpu")
    params = jax.tree.map(lambda x: x / 2, random_params(float32, 9))
    (_, exact, expected), (_, ours, result) = (loss_and_gradient(m, params, inputs, 3) for m in (float32, bfloat16))
    for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=0, atol=0.02)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert x.dtype == jnp.float32
        assert np.linalg.norm(x - y) <= 0.1 * np.linalg.norm(y) + 1e-3


def test_auto_dtype_is_bfloat16_on_accelerators_and_float32_on_cpu() -> None:
    auto = ComputeConfig(dtype="auto")
    assert compute_dtype(auto, "cpu") == jnp.float32
    assert compute_dtype(auto, "gpu") == compute_dtype(auto, "tpu") == jnp.bfloat16
    assert compute_dtype(ComputeConfig(dtype="bfloat16"), "cpu") == jnp.bfloat16


def test_padded_vocab_is_the_next_multiple_of_128() -> None:
    assert [padded_vocab(n) for n in (1, 128, 129, 28_996)] == [128, 128, 256, 29_056]
