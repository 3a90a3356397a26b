"""Infilling with the span decoder: log-probabilities against the training's losses, and what a gap asks for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import ComputeConfig, Config
from spanbert_jax.errors import UserError
from spanbert_jax.model import pretraining_heads
from spanbert_jax.serving.infilling import FilledGap, Infilled, Infiller
from spanbert_jax.serving.slot_scores import piece_heads
from spanbert_jax.text.tokenizer import word_starts
from spanbert_jax.training import sharding
from tests.support.pretrained import OFFSETS, params_of, random_weights
from tests.support.tuned import WORDPIECE

WEIGHTS = random_weights(WORDPIECE, ("mlm", "sbo", "decoder"), decoder_layers=1)
TEXTS = ["the cat ___ on the ___ .", "a [MASK] [MASK] b"]


def infiller_of(heads: tuple[str, ...]) -> Infiller:
    weights = dataclasses.replace(WEIGHTS, load=random_weights(WORDPIECE, heads, decoder_layers=1).load)
    return Infiller(weights, params_of(weights), sharding.batch_sharding(sharding.make_mesh(Config().mesh)))


@pytest.fixture(scope="module")
def infiller() -> Infiller:
    return infiller_of(("mlm", "sbo", "decoder"))


@pytest.fixture(scope="module")
def found(infiller: Infiller) -> list[Infilled]:
    return infiller.infill(TEXTS, words=(2, 3), beam=6, heads="decoder")


def ids_of(gap: FilledGap) -> list[int]:
    known = {WORDPIECE.piece(id): id for id in range(WORDPIECE.vocab_size)}
    return [known[piece.piece] for piece in gap.pieces]


def nats(ids: list[int], position: int, string: list[int]) -> tuple[float, list[float]]:
    """(-log p of the string with its length, -log p of each piece) by the losses of training."""
    config = dataclasses.replace(WEIGHTS.config, compute=ComputeConfig(dtype="float32"))
    heads = (pretraining_heads.SBO, pretraining_heads.DECODER)
    model = pretraining_heads.pretraining_model(config, WORDPIECE.vocab_size, "cpu", heads)
    count = len(string)
    batch = {
        "input_ids": ids,
        "masked_ids": string,
        "masked_positions": [position] * count,
        "span_left": [position - 1] * count,
        "span_right": [position + 1] * count,
        "span_offset": range(count),
    }
    arrays = {name: jnp.array([list(values)], jnp.int32) for name, values in batch.items()}
    arrays["lengths"] = jnp.array([len(ids)], jnp.int32)
    losses = jax.jit(lambda params, batch: pretraining_heads.losses(model, params, batch, heads=heads[1:]))
    lost = losses(params_of(WEIGHTS), arrays)["decoder"]
    return float(jnp.sum(lost.loss + lost.further["end"])), np.asarray(lost.loss[0]).tolist()


def test_each_gap_has_the_probability_that_training_gives_it_beside_the_gaps_before_it(found: list[Infilled]) -> None:
    cls, sep, mask = WORDPIECE.cls_id, WORDPIECE.sep_id, WORDPIECE.mask_id
    one, two = (ids_of(gap) for gap in found[0].gaps)
    the_cat, on_the, stop = (WORDPIECE.tokenize(text) for text in ("the cat", "on the", "."))
    (both,) = (ids_of(gap) for gap in found[1].gaps)
    before, behind = WORDPIECE.tokenize("a"), WORDPIECE.tokenize("b")
    rows = (
        ([cls, *the_cat, mask, *on_the, mask, *stop, sep], 1 + len(the_cat), one, found[0].gaps[0]),
        ([cls, *the_cat, *one, *on_the, mask, *stop, sep], 1 + len(the_cat + one + on_the), two, found[0].gaps[1]),
        ([cls, *before, mask, *behind, sep], 1 + len(before), both, found[1].gaps[0]),
    )
    for ids, position, string, gap in rows:
        whole, pieces = nats(ids, position, string)
        assert gap.log_probability == gap.score == pytest.approx(-whole, abs=1e-3)
        np.testing.assert_allclose([-np.log(piece.probability) for piece in gap.pieces], pieces, atol=1e-3)
        assert all(piece.heads == {"decoder": piece.probability} for piece in gap.pieces)
        assert len(gap.others) == 5 and all(other.log_probability <= gap.log_probability for other in gap.others)


def test_gaps_have_as_many_words_or_pieces_as_they_ask_for_and_the_rest_stays(found: list[Infilled]) -> None:
    for gap in found[0].gaps:
        assert 2 <= int(word_starts(WORDPIECE, np.array(ids_of(gap))).sum()) <= 3
    assert len(found[1].gaps[0].pieces) == 2
    for text, filled in zip(TEXTS, found, strict=True):
        at, rebuilt = 0, ""
        for gap in filled.gaps:
            rebuilt += text[at : gap.replaced[0]] + gap.text
            assert filled.text[gap.start : gap.end] == gap.text
            at = gap.replaced[1]
        assert filled.text == rebuilt + text[at:]


def test_a_text_is_filled_as_it_is_alone(infiller: Infiller, found: list[Infilled]) -> None:
    (alone,) = infiller.infill(TEXTS[1:], words=(2, 3), beam=6, heads="decoder")
    assert alone.text == found[1].text
    assert alone.gaps[0].log_probability == pytest.approx(found[1].gaps[0].log_probability, abs=1e-4)


def test_a_run_that_trained_the_decoder_fills_gaps_with_mlm_and_sbo_too() -> None:
    masking = dataclasses.replace(WEIGHTS.config.masking, collapse_spans=True)
    weights = dataclasses.replace(WEIGHTS, config=dataclasses.replace(WEIGHTS.config, masking=masking))
    assert [head.name for head in piece_heads(weights, params_of(WEIGHTS))] == ["mlm", "sbo"]


def test_what_the_decoder_cannot_do_is_one_line(infiller: Infiller) -> None:
    with pytest.raises(UserError, match=r"mix is 0\.5, and the decoder mixes no heads"):
        infiller.infill(["a ___"], mix=0.5, heads="decoder")
    with pytest.raises(UserError, match="heads is 'both'; it must be 'mixture' or 'decoder'"):
        infiller.infill(["a ___"], heads="both")
    long = " ".join(["[MASK]"] * (OFFSETS + 1))
    with pytest.raises(
        UserError, match=rf"has at least {OFFSETS + 1} pieces, and the decoder writes at most {OFFSETS}"
    ):
        infiller.infill([f"a {long} b"], beam=6, heads="decoder")
    with pytest.raises(UserError, match="has no span decoder; train one with"):
        infiller_of(("mlm", "sbo")).infill(["a ___"], heads="decoder")
