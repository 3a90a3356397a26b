"""Spans in the encoder against loops: their tags, the embeddings, and the attention."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.config import ModelConfig
from spanbert_jax.model import span_tags
from spanbert_jax.model.span_attention import SpanAttention
from spanbert_jax.model.span_embedding import SpanEmbedding

EMBED, HEADS, LENGTH = 8, 2, 12
MODEL = ModelConfig(embed=EMBED, heads=HEADS, span_kinds=3)


@st.composite
def rows_of_spans(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Flat spans (first, last, kind) of a row of LENGTH positions."""
    edges = sorted(draw(st.sets(st.integers(0, LENGTH), min_size=2, max_size=8)))
    spans = [(first, stop - 1, draw(st.integers(1, 3))) for first, stop in itertools.pairwise(edges)]
    return [span for span in spans if draw(st.booleans())]


def tags_of(spans: list[tuple[int, int, int]]) -> np.ndarray:
    tags = np.zeros((1, LENGTH), np.int32)
    for first, last, kind in spans:
        tags[0, first : last + 1] = 2 * kind
        tags[0, first] += 1
    return tags


@settings(max_examples=50, deadline=None, derandomize=True)
@given(spans=rows_of_spans())
def test_tags_say_where_each_span_begins_and_ends_and_of_which_kind(spans: list[tuple[int, int, int]]) -> None:
    tags = tags_of(spans)
    expected_starts, expected_ends, kinds = np.full(LENGTH, -1), np.zeros(LENGTH, bool), np.zeros(LENGTH, int)
    for first, last, kind in spans:
        expected_starts[first : last + 1], kinds[first : last + 1], expected_ends[last] = first, kind, True
    assert np.array_equal(span_tags.starts(tags)[0], expected_starts)
    assert np.array_equal(span_tags.ends(tags)[0], expected_ends)
    assert np.array_equal(span_tags.kinds(tags)[0], kinds)


SPANS = [(1, 1, 1), (3, 6, 2), (7, 8, 2), (10, 11, 3)]


def test_an_embedding_is_that_of_the_kind_and_of_the_place_in_the_span() -> None:
    rng = np.random.default_rng(0)
    kind, place = rng.normal(size=(3, EMBED)).astype(np.float32), rng.normal(size=(4, EMBED)).astype(np.float32)
    found = SpanEmbedding(MODEL).apply({"params": {"kind": kind, "place": place}}, tags_of(SPANS))
    expected = np.zeros((LENGTH, EMBED))
    for first, last, which in SPANS:
        for t in range(first, last + 1):
            expected[t] = kind[which - 1] + place[(t == first) + 2 * (t == last)]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("scope", ["own", "row"])
def test_a_span_attends_to_pieces_and_writes_to_its_own(scope: str) -> None:
    rng, length = np.random.default_rng(1), 11  # the last span reaches into the padding by one piece
    module = SpanAttention(dataclasses.replace(MODEL, span_attention=scope), jnp.dtype("float32"))
    hidden, tags = rng.normal(size=(1, LENGTH, EMBED)).astype(np.float32), tags_of(SPANS[:3])
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), hidden, tags, np.array([length])))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), params)
    run = jax.jit(lambda hidden: module.apply({"params": params}, hidden, tags, np.array([length])))
    found = np.asarray(run(hidden))[0]

    h = hidden[0].astype(np.float64)
    expected = h.copy()

    def mapped(name: str, x: np.ndarray) -> np.ndarray:
        return np.tensordot(x, params[name]["kernel"], 1) + params[name]["bias"]

    for first, last, _ in SPANS[:3]:
        three = np.stack([h[first], h[last], h[first : last + 1].mean(0)])
        span = sum(mapped("ends", three[part])[part] for part in range(3)) + params["width"][last - first + 1]
        seen = range(first, last + 1) if scope == "own" else range(length)
        result = np.zeros((HEADS, EMBED // HEADS))
        for head in range(HEADS):
            scores = np.array([mapped("query", span)[head] @ mapped("key", h[i])[head] / 2 for i in seen])
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            result[head] = sum(share * mapped("value", h[i])[head] for share, i in zip(shares, seen, strict=True))
        expected[first : last + 1] += np.tensordot(result, params["output"]["kernel"], 2)
    np.testing.assert_allclose(found[:length], expected[:length], atol=2e-5)
    outside = span_tags.starts(tags)[0] < 0
    assert np.array_equal(found[outside], hidden[0][outside])
