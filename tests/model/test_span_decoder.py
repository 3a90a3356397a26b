"""The span decoder: a distribution over strings, SBO at the start, and a float64 walk over the slots."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.batch import empty_batch
from spanbert_jax.model import pretraining_heads, span_decoder
from spanbert_jax.model.encoder import encode
from spanbert_jax.model.pretraining_heads import DECODER, SBO
from spanbert_jax.training import flops
from tests.support.quick_keys import quick_key
from tests.support.small_decoder import LENGTHS, SPANS, batch_of, decoder_config, losses_of, random_model
from tests.support.synthetic import random_batch, small_config

VOCAB = 7


def test_the_probabilities_of_all_strings_add_up_to_1() -> None:
    """Those of 1 to 3 pieces, and of going on after the third."""
    model, params = random_model(VOCAB)
    strings = [string for n in (1, 2, 3) for string in itertools.product(range(VOCAB), repeat=n)]
    going_on = [(*string, 0) for string in itertools.product(range(VOCAB), repeat=3)]
    found = losses_of(model, params, batch_of([(string, (5, 6)) for string in strings + going_on], 0, VOCAB))
    nats = found.loss.astype(np.float64) + found.further["end"]
    of_strings = [nats[row, : len(string)].sum() for row, string in enumerate(strings)]
    of_rest = nats[len(strings) :, :3].sum(axis=1)
    ended, rest = np.exp(-np.array(of_strings)).sum(), np.exp(-of_rest).sum()
    assert ended + rest == pytest.approx(1, abs=1e-5) and ended > 0.1 < rest
    # Neither the pieces nor the ends are a coin's: the decoder was drawn at random.
    assert np.std(found.further["end"][found.further["end"] > 0]) > 0.05 < np.std(found.loss[:, 0])


def norm64(x: np.ndarray, tree: Any) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * tree["scale"] + tree["bias"]


def dense64(x: np.ndarray, tree: Any) -> np.ndarray:
    return x @ tree["kernel"] + tree["bias"]


def gelu64(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def attend64(x: np.ndarray, y: np.ndarray, tree: Any, heads: int) -> np.ndarray:
    """x: [embed], one slot; y: [keys, embed], all of them seen."""
    query, key, value = (dense64(at, tree[name]) for at, name in ((x, "query"), (y, "key"), (y, "value")))
    out = []
    for head in np.split(np.arange(x.size), heads):
        scores = key[:, head] @ query[head] / np.sqrt(head.size)
        weights = np.exp(scores - scores.max())
        out.append(weights / weights.sum() @ value[:, head])
    return dense64(np.concatenate(out), tree["output"])


def nats64(params: Any, hidden: np.ndarray, at: int, string: tuple[int, ...], heads: int) -> list[tuple[float, float]]:
    """(of the piece, of the end) for each piece of the string in the span whose [MASK] is at `at`."""
    sbo, own, word = params["sbo"], params["decoder"], params["embeddings"]["word"]
    layers = [own[f"layers_{number}"] for number in range(2)]
    inputs: list[list[np.ndarray]] = [[] for _ in layers]  # of each layer, at the slots so far
    found = []
    for offset, piece in enumerate(string):
        x = np.concatenate([hidden[at - 1], hidden[at + 1], sbo["offset"][offset]])
        x = norm64(gelu64(dense64(x, sbo["dense_1"])), sbo["norm_1"])
        x = norm64(gelu64(dense64(x, sbo["dense_2"])), sbo["norm_2"])
        before = word[string[offset - 1]] if offset else own["start"]
        x = x + dense64(norm64(before, own["norm_piece"]), own["previous"]) + dense64(hidden[at], own["mask"])
        for layer, seen in zip(layers, inputs, strict=True):
            seen.append(norm64(x, layer["norm_1"]))
            x = x + attend64(seen[-1], np.array(seen), layer["own"], heads)
            x = x + attend64(norm64(x, layer["norm_2"]), hidden, layer["row"], heads)
            x = x + dense64(gelu64(dense64(norm64(x, layer["norm_3"]), layer["up"])), layer["down"])
        last = offset == len(string) - 1
        score = dense64(norm64(x, own["norm"]), own["end"])[0]
        told = dense64(norm64(x, own["norm"]), own["output_1"]) + (own["last"] if last else 0)
        x = x + dense64(gelu64(told), own["output_2"])
        scores = (x @ word.T + own["bias"] + sbo["bias"])[:VOCAB]
        of_piece = np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[piece]
        found.append((float(of_piece), float(np.log1p(np.exp(-score if last else score)))))
    return found


def test_the_losses_of_two_spans_a_row_equal_a_float64_walk_over_each_span() -> None:
    model, params = random_model(VOCAB)
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    encoded = jax.jit(encode, static_argnums=0)
    for row, strings in ((0, ((5, 6, 5), (6,))), (1, ((6,), (5, 5, 6, 6)))):
        batch = batch_of([strings], row, VOCAB)
        hidden = np.asarray(encoded(model, params, batch["input_ids"], batch["lengths"]))
        hidden = hidden[0, : LENGTHS[row]].astype(np.float64)
        expected = [
            nats for at, one in zip(SPANS[row], strings, strict=True) for nats in nats64(wide, hidden, at, one, 2)
        ]
        found = losses_of(model, params, batch)
        np.testing.assert_allclose(np.stack([found.loss[0], found.further["end"][0]], 1), expected, atol=2e-4)


def test_a_fresh_decoder_scores_each_piece_as_sbo_does_and_every_parameter_learns() -> None:
    config = decoder_config()
    model = pretraining_heads.pretraining_model(config, 131, "cpu")
    batch = {name: jnp.asarray(value) for name, value in random_batch(config, 0).items()}
    params = jax.jit(lambda: pretraining_heads.init_params(model, quick_key(0)))()
    params["sbo"]["bias"] = params["sbo"]["bias"].at[:131].set(np.random.default_rng(0).normal(0, 1, 131))
    both = jax.jit(lambda params: pretraining_heads.losses(model, params, batch, heads=(SBO, DECODER)))(params)
    np.testing.assert_allclose(both["decoder"].loss, both["sbo"].loss, atol=1e-5)
    np.testing.assert_allclose(both["decoder"].further["end"], np.log(2), rtol=1e-6)
    _, drawn = random_model(131)

    def loss(params: Any) -> jax.Array:
        found = pretraining_heads.losses(model, params, batch, heads=(DECODER,))["decoder"]
        return jnp.sum((found.loss + found.further["end"]) * batch["span_weights"])

    gradients = jax.jit(jax.grad(loss))(drawn)
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients["decoder"])
        if not np.any(leaf)
    ]
    # A constant added to all keys of a query changes no probability, so its gradient is rounding or 0.
    assert all("['key']['bias']" in path for path in still), still
    assert not np.any(gradients["decoder"]["bias"][131:])
    # Without train.only the decoder trains what it builds on.
    assert all(map(np.any, jax.tree.leaves((gradients["encoder"], gradients["sbo"], gradients["embeddings"]["word"]))))


def test_bfloat16_stays_within_its_rounding_of_float32() -> None:
    wide, params = random_model(VOCAB)
    narrow = pretraining_heads.pretraining_model(decoder_config(compute={"dtype": "bfloat16"}), VOCAB, "cpu")
    batch = batch_of([((5, 6, 5), (6,)), ((6, 6), (5, 5))], 0, VOCAB)
    one, other = (losses_of(model, params, batch) for model in (wide, narrow))
    for exact, rounded in ((one.loss, other.loss), (one.further["end"], other.further["end"])):
        assert rounded.dtype == np.float32
        assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_the_counted_multiply_adds_are_those_of_the_products_that_are_computed() -> None:
    config, length, slots = decoder_config(), 32, 8
    module = span_decoder.SpanDecoder(config, 256, jnp.dtype(jnp.float32))
    model, embed = config.model, config.model.embed
    batch = {name: jnp.asarray(value) for name, value in empty_batch(config, 1, length, slots).items()}
    states, row = jnp.zeros((1, slots, embed)), span_decoder.Row(jnp.zeros((1, length, embed)), jnp.ones(1, jnp.int32))
    given = (batch, states, states, row, jnp.zeros((256, embed)))
    params = jax.eval_shape(module.init, jax.random.key(0), *given)
    counted = products(jax.make_jaxpr(module.apply)(params, *given).jaxpr)
    assert counted == slots * span_decoder.multiply_adds(model) + span_decoder.row_multiply_adds(model, length, slots)
    # A frozen encoder is computed forward alone.
    joint, frozen = config, decoder_config(train={"only": "decoder"}, init_from="runs/tiny")
    apart = [flops.pretraining_row_flops(one, 131, length) for one in (joint, frozen)]
    assert apart[0] - apart[1] == pytest.approx(flops.encoder_flops(joint, length) * 2 / 3)
    heads = flops.pretraining_head_flops(joint, 131, length)
    assert heads == 6 * (counted + slots * (SBO.multiply_adds(model) + embed * 131))


def products(jaxpr: Any) -> int:
    """The multiply-adds of the matrix products in a jaxpr, those inside of its calls included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in contracted]))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += products(inner) if hasattr(inner, "eqns") else 0
    return total


def test_collapsed_rows_train_the_decoder_alone_and_other_rows_have_none() -> None:
    assert [head.name for head in pretraining_heads.trained_heads(decoder_config())] == ["decoder"]
    plain = small_config(model={"decoder_layers": 2})
    assert [head.name for head in pretraining_heads.trained_heads(plain)] == ["mlm", "sbo"]
    assert "decoder" not in [head.name for head in pretraining_heads.pretraining_model(plain, VOCAB, "cpu").heads]
