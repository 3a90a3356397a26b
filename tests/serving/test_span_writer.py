"""The beam search of spans against the probabilities of all strings, which the training's losses give."""

import itertools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.serving.span_writer import SpanQuery, SpanWriter, WrittenSpan
from spanbert_jax.training import sharding
from tests.support.small_decoder import LENGTHS, LIMIT, SPANS, batch_of, losses_of, random_model

VOCAB, BEAM = 8, 64
# Pieces 5 and 6 begin a word, 7 goes on with one, but not after 6, which ends its word; special pieces are in no class.
CLASSES = np.array([[False] * 5 + [True, True, False], [False] * 7 + [True]])
TOKENIZER = SimpleNamespace(vocab_size=VOCAB, ends_word=np.arange(VOCAB) == 6)
STRINGS = [string for n in range(1, LIMIT + 1) for string in itertools.product((5, 6, 7), repeat=n)]


@pytest.fixture(scope="module")
def writer() -> SpanWriter:
    """With a beam in which every prefix has a place: 27 of them go on to a fourth piece."""
    model, params = random_model(VOCAB)
    weights: Any = SimpleNamespace(config=model.config, tokenizer=TOKENIZER, source="weights")
    layout = sharding.batch_sharding(sharding.make_mesh(Config().mesh))
    return SpanWriter(weights, jax.device_put(params), layout, CLASSES, BEAM)


def every_string(row: int) -> dict[tuple[int, ...], tuple[float, list[float]]]:
    """string -> (its log-probability, those of its pieces) in the first span of a row."""
    model, params = random_model(VOCAB)
    lost = losses_of(model, params, batch_of([(string, (5,)) for string in STRINGS], row, VOCAB))
    both = lost.loss + lost.further["end"]
    return {
        string: (-float(both[i, : len(string)].sum()), (-lost.loss[i, : len(string)]).tolist())
        for i, string in enumerate(STRINGS)
    }


def query_of(row: int, **fields: Any) -> SpanQuery:
    batch = batch_of([((5,), (5,))], row, VOCAB)
    return SpanQuery(batch["input_ids"][0, : LENGTHS[row]].tolist(), SPANS[row][0], **fields)


def words_in(string: tuple[int, ...]) -> int:
    return 1 + sum(piece != 7 or before == 6 for before, piece in itertools.pairwise(string))


def check(found: list[WrittenSpan], row: int, allowed: list[tuple[int, ...]]) -> None:
    """The strings are the best of those that are allowed, in order, with their probabilities."""
    known = every_string(row)
    best = sorted(allowed, key=lambda string: -known[string][0])[:BEAM]
    assert [one.pieces for one in found] == best
    for one in found:
        assert one.log_prob == pytest.approx(known[one.pieces][0], abs=2e-4)
        np.testing.assert_allclose(one.piece_log_probs, known[one.pieces][1], atol=2e-4)


def test_the_strings_are_the_likeliest_of_all_alone_and_beside_others(writer: SpanWriter) -> None:
    together = writer.write([query_of(0), query_of(1), query_of(0, first=frozenset({0}))])
    check(together[0], 0, STRINGS)
    check(together[1], 1, STRINGS)
    check(together[2], 0, [string for string in STRINGS if string[0] != 7])
    (alone,) = writer.write([query_of(1)])
    check(alone, 1, STRINGS)


def test_given_strings_have_the_probabilities_that_they_have_in_training(writer: SpanWriter) -> None:
    strings = [(5,), (6, 7, 7, 5), (0, 1)]  # of any pieces of the vocabulary
    given = writer.given([query_of(0), query_of(0), query_of(1)], strings)
    for row, string, (pieces, ends) in zip((0, 0, 1), strings, given, strict=True):
        model, params = random_model(VOCAB)
        lost = losses_of(model, params, batch_of([(string, (5,))], row, VOCAB))
        np.testing.assert_allclose(pieces, -lost.loss[0, : len(string)], atol=2e-4)
        np.testing.assert_allclose(ends, -lost.further["end"][0, : len(string)], atol=2e-4)


def test_a_number_of_pieces_and_a_number_of_words_are_kept(writer: SpanWriter) -> None:
    queries = [
        query_of(0, pieces=3),
        query_of(0, words=(2, 2)),
        query_of(0, pieces=4, words=(3, 4)),
        query_of(0, pieces=5),
    ]
    three, two_words, many, too_long = writer.write(queries)
    check(three, 0, [string for string in STRINGS if len(string) == 3])
    check(two_words, 0, [string for string in STRINGS if words_in(string) == 2])
    check(many, 0, [string for string in STRINGS if len(string) == 4 and words_in(string) >= 3])
    assert too_long == []


def test_weights_without_a_decoder_are_refused_in_one_line(writer: SpanWriter) -> None:
    model, params = random_model(VOCAB)
    weights: Any = SimpleNamespace(config=model.config, tokenizer=TOKENIZER, source="runs/tiny")
    layout = sharding.batch_sharding(sharding.make_mesh(Config().mesh))
    without = {group: params[group] for group in params if group != "decoder"}
    with pytest.raises(UserError, match="runs/tiny: has no span decoder; train one with"):
        SpanWriter(weights, without, layout, CLASSES)
