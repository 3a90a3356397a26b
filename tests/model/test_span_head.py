"""The span head: what a slow loop over spans gives, in value and gradient, and nothing from outside a span."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.model.encoder import encode
from spanbert_jax.model.span_head import SpanRepresentation, apply, init_params, span_model, valid_spans
from tests.support.synthetic import VOCAB, small_config

WIDTH, LABELS, LENGTH = 4, 3, 32
CONFIG = small_config(compute={"dtype": "float32"}, tagging={"max_width": WIDTH})
MODEL = span_model(CONFIG, VOCAB, LABELS, "cpu")
HEAD = ("spans", "classifier")
applied = jax.jit(apply, static_argnums=0)

Params = dict[str, Any]


def sharp_params(seed: int = 1) -> Params:
    """Every leaf N(0, 0.3), scales about 1: gradients are large, and pooling is far from a mean."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, x: Any) -> np.ndarray:
        return rng.normal(float("scale" in jax.tree_util.keystr(path)), 0.3, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0))))


def words_of(rng: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    """Words of 1 to 4 pieces at some of the positions 1 to length - 2: first and last pieces."""
    first, place = [], int(rng.integers(1, 3))
    last = []
    while place < length - 1:
        end = min(place + int(rng.integers(1, 5)), length - 1)
        first.append(place)
        last.append(end - 1)
        place = end
    return first, last


def batch_of(seed: int) -> dict[str, np.ndarray]:
    rng, lengths = np.random.default_rng(seed), np.array([19, 7, 32, 3, 0], np.int32)
    ends = np.full((2, len(lengths), LENGTH), -1, np.int32)
    starts = np.zeros(len(lengths), np.int32)
    for row, length in enumerate(lengths):
        for side, places in enumerate(words_of(rng, int(length))):
            ends[side, row, : len(places)] = places
            starts[row] = max(len(places) - 2 * (row == 2), 1)
    return {
        "input_ids": rng.integers(1, VOCAB, (len(lengths), LENGTH)).astype(np.int32),
        "token_type_ids": rng.integers(0, 2, (len(lengths), LENGTH)).astype(np.int32),
        "lengths": lengths,
        "first": ends[0],
        "last": ends[1],
        "starts": starts,
    }


def slow_scores(params: Params, hidden: np.ndarray, first: np.ndarray, last: np.ndarray) -> dict[tuple, np.ndarray]:
    """(row, word, width - 1) -> scores, in float64, as the description of the head says it."""
    from math import erf

    spans, classifier = (jax.tree.map(lambda x: np.asarray(x, np.float64), params[name]) for name in HEAD)
    matrix = spans["kernel"].transpose(1, 0, 2).reshape(-1, spans["kernel"].shape[-1])  # of the concatenation
    found = {}
    for row, word, width in itertools.product(range(len(hidden)), range(first.shape[1]), range(1, WIDTH + 1)):
        if first[row, word] < 0 or word + width > first.shape[1] or first[row, word + width - 1] < 0:
            continue
        inside = hidden[row, first[row, word] : last[row, word + width - 1] + 1].astype(np.float64)
        scores = inside @ spans["attention"]
        shares = np.exp(scores - scores.max())
        pooled = shares @ inside / shares.sum()
        x = np.concatenate([inside[0], inside[-1], pooled]) @ matrix + spans["width"][width - 1]
        x = np.array([0.5 * value * (1 + erf(value / 2**0.5)) for value in x])
        x = (x - x.mean()) / np.sqrt(x.var() + CONFIG.model.layer_norm_eps)
        x = x * spans["norm"]["scale"] + spans["norm"]["bias"]
        found[row, word, width - 1] = x @ classifier["kernel"] + classifier["bias"]
    return found


def test_scores_are_those_of_a_loop_over_spans() -> None:
    params, batch = sharp_params(), batch_of(2)
    inputs = (batch[name] for name in ("input_ids", "lengths", "token_type_ids"))
    hidden = jax.jit(encode, static_argnums=0)(MODEL, params, *inputs)
    scores = np.asarray(applied(MODEL, params, batch))
    assert scores.shape == (5, LENGTH, WIDTH, LABELS) and scores.dtype == np.float32 and np.isfinite(scores).all()
    expected = slow_scores(params, np.asarray(hidden), batch["first"], batch["last"])
    assert len(expected) > 60 and np.std(list(expected.values())) > 0.3
    for place, values in expected.items():
        np.testing.assert_allclose(scores[place], values, rtol=0, atol=5e-5, err_msg=str(place))


def head_loss(params: Params, hidden: Any, first: np.ndarray, last: np.ndarray, weights: np.ndarray) -> jax.Array:
    representation = SpanRepresentation(CONFIG.model, WIDTH, jnp.dtype(jnp.float32))
    x = representation.apply({"params": params["spans"]}, hidden, first, last)
    return jnp.sum((x @ params["classifier"]["kernel"] + params["classifier"]["bias"]) * weights)  # type: ignore


def test_gradients_are_the_slopes_of_the_loop_over_spans() -> None:
    rng, batch = np.random.default_rng(3), batch_of(4)
    params: Params = {name: sharp_params()[name] for name in HEAD}
    first, last = batch["first"][:2, :10], batch["last"][:2, :10]
    hidden = rng.normal(0, 1, (2, 20, CONFIG.model.embed)).astype(np.float32)
    weights = np.zeros((2, 10, WIDTH, LABELS), np.float32)
    for place in slow_scores(params, hidden, first, last):
        weights[place] = rng.normal(0, 1, LABELS)
    point = {**params, "hidden": hidden}
    gradient = jax.jit(jax.grad(lambda p: head_loss(p, p["hidden"], first, last, weights)))(point)

    def slow_loss(leaves: list[np.ndarray]) -> float:
        at = jax.tree.unflatten(jax.tree.structure(point), leaves)
        return sum(float(x @ weights[place]) for place, x in slow_scores(at, at["hidden"], first, last).items())

    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(point)]
    for number, (path, ours) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
        direction = np.asarray(ours, np.float64) / np.linalg.norm(ours) + rng.normal(0, 0.1, ours.shape)
        moved = [
            [leaf + step * direction if i == number else leaf for i, leaf in enumerate(leaves)]
            for step in (1e-5, -1e-5)
        ]
        slope = (slow_loss(moved[0]) - slow_loss(moved[1])) / 2e-5
        assert abs(slope) > 0.1
        np.testing.assert_allclose(np.sum(ours * direction), slope, rtol=1e-3, err_msg=jax.tree_util.keystr(path))


def test_valid_spans_begin_at_a_start_and_end_at_a_word() -> None:
    batch = batch_of(2)
    valid = np.asarray(valid_spans(batch["first"], batch["starts"], WIDTH))
    every = slow_scores(sharp_params(), np.zeros((5, LENGTH, CONFIG.model.embed)), batch["first"], batch["last"])
    expected = {place for place in every if place[1] < batch["starts"][place[0]]}
    assert {tuple(place) for place in np.argwhere(valid).tolist()} == expected
    assert len(expected) < len(every) and not valid[4].any()


def test_what_is_outside_a_span_does_not_change_what_stands_for_it() -> None:
    rng = np.random.default_rng(5)
    hidden = rng.normal(0, 1, (1, LENGTH, CONFIG.model.embed)).astype(np.float32)
    first, last = np.full((2, 1, 9), -1, np.int32)
    first[0, :4], last[0, :4] = [2, 4, 5, 9], [3, 4, 8, 9]
    other = np.where(((np.arange(LENGTH) >= 4) & (np.arange(LENGTH) <= 8))[None, :, None], hidden, -9 * hidden)
    module = SpanRepresentation(CONFIG.model, WIDTH, jnp.dtype(jnp.float32))
    params = {"params": sharp_params()["spans"]}
    one, two = (np.asarray(jax.jit(module.apply)(params, x, first, last))[0] for x in (hidden, other))
    np.testing.assert_allclose(one[1, 1], two[1, 1], rtol=0, atol=1e-6)
    assert np.abs(one[0, 1] - two[0, 1]).max() > 0.1 and np.abs(one[1, 2] - two[1, 2]).max() > 0.1


def test_the_largest_scores_of_pieces_overflow_nothing() -> None:
    rng, batch = np.random.default_rng(6), batch_of(2)
    params: Params = {name: sharp_params()[name] for name in HEAD}
    params["spans"]["attention"] = params["spans"]["attention"] * 1e6
    hidden = rng.normal(0, 1, (2, LENGTH, CONFIG.model.embed)).astype(np.float32)
    weights = np.ones((2, LENGTH, WIDTH, LABELS), np.float32)
    first, last = batch["first"][:2], batch["last"][:2]
    loss = jax.jit(jax.value_and_grad(lambda p: head_loss(p, hidden, first, last, weights)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loss(params)))


def test_a_fresh_head_says_that_nearly_every_span_is_no_entity() -> None:
    params = jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()
    batch = batch_of(0)
    shares = jax.nn.softmax(applied(MODEL, params, batch))
    valid = np.asarray(valid_spans(batch["first"], batch["starts"], WIDTH))
    np.testing.assert_allclose(np.asarray(shares)[valid][:, 0], 0.99, atol=0.005)


def test_dropout_depends_on_key_and_row_alone() -> None:
    params, batch = sharp_params(), batch_of(2)
    valid = np.asarray(valid_spans(batch["first"], batch["starts"], WIDTH))

    def scores(order: list[int], key: int) -> np.ndarray:
        rows = jnp.array(order, jnp.uint32)
        return np.asarray(applied(MODEL, params, {k: v[order] for k, v in batch.items()}, jnp.uint32(key), rows))

    order = [3, 0, 4, 2, 1]
    first = scores(list(range(5)), 7)
    np.testing.assert_allclose(scores(order, 7)[valid[order]], first[order][valid[order]], rtol=0, atol=2e-5)
    assert np.abs(scores(list(range(5)), 8) - first)[valid].max() > 0.1


def test_scores_in_bfloat16_are_near_those_in_float32() -> None:
    config = small_config(compute={"dtype": "bfloat16"}, tagging={"max_width": WIDTH})
    batch, params = batch_of(2), sharp_params()
    valid = np.asarray(valid_spans(batch["first"], batch["starts"], WIDTH))
    scores = np.asarray(applied(span_model(config, VOCAB, LABELS, "cpu"), params, batch))[valid]
    expected = np.asarray(applied(MODEL, params, batch))[valid]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=0, atol=0.3)
