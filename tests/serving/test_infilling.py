"""Infilling: scores against the heads' own, and texts, offsets and lengths against a plain reading of the promise."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.infilling import Material, left_to_right
from spanbert_jax.batch import NumpyBatch
from spanbert_jax.config import ComputeConfig, Config
from spanbert_jax.errors import UserError
from spanbert_jax.model import pretraining_heads
from spanbert_jax.runs.held_out_spans import HeldOutSpan
from spanbert_jax.serving.decoding import Query, Target, Task, fill
from spanbert_jax.serving.gaps import JOINED, SPACED, piece_classes
from spanbert_jax.serving.infilling import Infilled, Infiller, made_for, spelled
from spanbert_jax.serving.mixture import FILE, LONGEST, Mixture, read_mixture, write_mixture
from spanbert_jax.serving.scoring import TextScorer
from spanbert_jax.serving.slot_scores import BEST, NotFinite
from spanbert_jax.serving.weights import Weights
from spanbert_jax.text.tokenizer import word_starts
from spanbert_jax.training import sharding
from tests.support.pretrained import MODERN, OFFSETS, params_of, random_weights, renamed, write_pretrained
from tests.support.texts_and_tokenizers import tokenizer_of
from tests.support.tuned import WORDPIECE

WEIGHTS = (0.1, 0.4, 0.6, 0.9)
FITTED = Mixture(WEIGHTS, tuple(np.full(LONGEST, 1 / LONGEST).tolist()))
UNIGRAM = tokenizer_of("unigram")


WEIGHTS_OF = {"bert": random_weights(WORDPIECE), "modern": random_weights(UNIGRAM, **MODERN)}


def infiller_of(weights: Weights) -> Infiller:
    made = Infiller(weights, params_of(weights), sharding.batch_sharding(sharding.make_mesh(Config().mesh)))
    made.mixture = FITTED
    return made


@pytest.fixture(scope="module")
def bert() -> Infiller:
    return infiller_of(WEIGHTS_OF["bert"])


@pytest.fixture(scope="module")
def modern() -> Infiller:
    return infiller_of(WEIGHTS_OF["modern"])


@functools.cache
def jitted(family: str, vocab_size: int) -> Callable[..., dict[str, jax.Array]]:
    """The scores of MLM and SBO for a batch."""
    config = dataclasses.replace(WEIGHTS_OF[family].config, compute=ComputeConfig(dtype="float32"))
    heads = (pretraining_heads.MLM, pretraining_heads.SBO)
    model = pretraining_heads.pretraining_model(config, vocab_size, "cpu", heads)
    return jax.jit(functools.partial(pretraining_heads.apply, model))


def by_hand(weights: Weights, query: Query, counts: np.ndarray) -> list[list[np.ndarray]]:
    """For each wanted position of a query [log p of MLM, log p of SBO or None, log p of the mixture], over the pieces
    that count: one row by itself, with the boundaries found by walking away from the position."""
    scores_of = jitted(weights.config.model.family, weights.tokenizer.vocab_size)
    places = []
    for position in query.wanted:
        left = right = position
        while left in query.masked:
            left -= 1
        while right in query.masked:
            right += 1
        places.append((position, left, right, position - left - 1))
    names = ("masked_positions", "span_left", "span_right", "span_offset")
    batch: NumpyBatch = dict(zip(names, np.array(places, np.int32).T[:, None], strict=True))
    batch = {name: np.pad(values, [(0, 0), (0, 6 - len(places))]) for name, values in batch.items()}
    ids = [*query.ids, *[0] * (40 - len(query.ids))]
    batch |= {"input_ids": np.array([ids], np.int32), "lengths": np.array([len(query.ids)], np.int32)}
    scores = scores_of(params_of(weights), batch)

    def normalised(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        return values - np.log(np.exp(values).sum())

    found = []
    for slot, (_, left, right, offset) in enumerate(places):
        mlm, sbo = (normalised(np.asarray(scores[name][0, slot])[np.flatnonzero(counts)]) for name in ("mlm", "sbo"))
        length = right - left - 1
        nearer = min(offset, length - 1 - offset)
        weight = WEIGHTS[0 if length == 1 else 3 if nearer else 1 if length < 5 else 2]
        usable = left > 0 and right < len(query.ids) - 1 and offset < OFFSETS
        mixed = normalised((1 - weight) * mlm + weight * sbo) if usable else mlm
        found.append([mlm, sbo if usable else np.full_like(sbo, np.nan), mixed])
    return found


def queries_of(weights: Weights) -> list[Query]:
    """Rows with one span, with several, with spans at either end, with neighbours, and with a span of six pieces."""
    rng = np.random.default_rng(1)
    fillable = np.flatnonzero(piece_classes(weights.tokenizer).any(axis=0))
    found = []
    for masked, wanted, length in (
        ((3,), (3,), 8),
        ((1, 2, 5), (1, 2, 5), 9),
        ((4, 5, 7), (5,), 9),
        (tuple(range(3, 9)), tuple(range(3, 9)), 20),
        ((2, 3, 8, 9, 10), (9, 2), 33),
    ):
        ids = [weights.tokenizer.cls_id, *rng.choice(fillable, length - 2).tolist(), weights.tokenizer.sep_id]
        for position in masked:
            ids[position] = weights.tokenizer.mask_id
        found.append(Query(ids, masked, wanted))
    return found


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_scores_are_those_of_the_heads_with_boundaries_as_the_masks_are(
    family: str, request: pytest.FixtureRequest
) -> None:
    infiller = request.getfixturevalue(family)
    weights = WEIGHTS_OF[family]
    classes, queries = piece_classes(weights.tokenizer), queries_of(weights)
    counts = classes.any(axis=0)
    gold = [[int(np.flatnonzero(counts)[7 + place]) for place in range(len(query.wanted))] for query in queries]
    of_gold = infiller.scorer.given(queries, gold, [FITTED, Mixture((0.0,) * 4, ())], False)
    whole = infiller.scorer.given(queries, gold, [FITTED], True)
    for number, (query, scores) in enumerate(zip(queries, infiller.scorer.best(queries, FITTED), strict=True)):
        assert scores.pieces.shape == (len(query.wanted), 3, BEST)
        expected = by_hand(weights, query, counts)
        everything = by_hand(weights, query, np.ones_like(counts))
        for slot, (mlm, sbo, mixed) in enumerate(expected):
            log_probs = np.full((3, len(counts)), -np.inf)
            log_probs[:, counts] = mlm, sbo, mixed
            for kind in range(3):
                order = np.flatnonzero(classes[kind])
                order = order[np.argsort(-log_probs[2][order], kind="stable")][:BEST]
                np.testing.assert_array_equal(scores.pieces[slot, kind, : len(order)], order)
                np.testing.assert_allclose(scores.log_probs[slot, kind, : len(order)], log_probs[2][order], atol=1e-4)
                assert np.all(scores.log_probs[slot, kind, len(order) :] == -np.inf)
                with np.errstate(divide="ignore"):
                    mass = np.log(np.exp(log_probs[2][classes[kind]]).sum())
                np.testing.assert_allclose(scores.masses[slot, kind], mass, atol=1e-4)
                of_heads = log_probs[:2, order].T
                np.testing.assert_allclose(scores.by_head[slot, kind, : len(order)], of_heads, atol=1e-4)
            piece = gold[number][slot]
            np.testing.assert_allclose(of_gold[number].log_probs[slot], log_probs[[2, 0], piece], atol=1e-4)
            assert list(of_gold[number].likeliest[slot]) == [log_probs[2].argmax(), log_probs[0].argmax()]
            begins = np.log(np.exp(log_probs[2][classes[[SPACED, JOINED]].any(axis=0)]).sum())
            np.testing.assert_allclose(of_gold[number].begins[slot, 0], begins, atol=1e-4)
            np.testing.assert_allclose(whole[number].log_probs[slot, 0], everything[slot][2][piece], atol=1e-4)


def test_the_benchmarks_chain_gives_a_filling_the_probability_that_the_filling_had(modern: Infiller) -> None:
    spans = [HeldOutSpan(query, ()) for query in queries_of(WEIGHTS_OF["modern"]) if len(query.masked) in (1, 6)]
    tasks = [Task(tuple(span.query.ids), span.query.masked, (Target(span.query.masked),)) for span in spans]
    score = functools.partial(modern.scorer.best, mixture=FITTED, whole=True)
    filled = [of[0] for of in fill(tasks, "left_to_right", 1, score, UNIGRAM.ends_word)]
    pieces = [
        tuple(of.choices[p].chosen.piece for p in span.query.masked) for of, span in zip(filled, spans, strict=True)
    ]
    begins = word_starts(UNIGRAM, pieces[-1])
    assert 1 < sum(begins) < len(begins)  # words of several pieces among several words
    spans = [span._replace(pieces=of) for span, of in zip(spans, pieces, strict=True)]
    answers = left_to_right(Material(modern.scorer, FITTED, UNIGRAM, None, spans))  # type: ignore[arg-type]
    assert answers.right.all() and answers.nats is not None
    of_spans = np.split(answers.nats, np.cumsum([len(of) for of in pieces])[:-1])
    np.testing.assert_allclose([-of.sum() for of in of_spans], [of.log_prob for of in filled], atol=1e-4)


TEXTS = ["a b [MASK] c", "he ___ to (___), and", "[MASK] [MASK] end", "x ___"]


@pytest.mark.parametrize("family", ["bert", "modern"])
@pytest.mark.parametrize("order", ["parallel", "confidence", "left_to_right", "beam"])
def test_a_text_is_filled_with_whole_words_and_offsets_hold(
    family: str, order: str, request: pytest.FixtureRequest
) -> None:
    infiller: Infiller = request.getfixturevalue(family)
    tokenizer = WORDPIECE if family == "bert" else UNIGRAM
    ids = {tokenizer.piece(id): id for id in range(tokenizer.vocab_size)}
    for text, filled in zip(TEXTS, infiller.infill(TEXTS, words=(2, 3), order=order, beam=2), strict=True):
        at = after = 0
        for gap in filled.gaps:
            (start, end), pieces = gap.replaced, [ids[piece.piece] for piece in gap.pieces]
            assert filled.text[after : gap.start] == text[at:start]
            assert filled.text[gap.start : gap.end] == gap.text == spelled(tokenizer, pieces)[0] == gap.text.strip()
            at, after = end, gap.end
            words = word_starts(tokenizer, pieces).sum()
            assert 2 <= words <= 3 if text[start] == "_" else len(pieces) == text[start:end].count("[")
            ends = [gap.start, *(piece.end for piece in gap.pieces)]
            for piece, before in zip(gap.pieces, ends, strict=False):
                assert before <= piece.start <= piece.end and not filled.text[before : piece.start].strip()
                assert filled.text[piece.start : piece.end] == tokenizer.surface(ids[piece.piece])
                assert piece.probability <= max(one.probability for one in piece.alternatives) and piece.alternatives
            total = sum(math.log(piece.probability) for piece in gap.pieces)
            assert gap.log_probability == pytest.approx(total, abs=1e-4)
        assert filled.text[after:] == text[at:]


def test_a_text_is_filled_as_if_it_were_alone(bert: Infiller) -> None:
    def nearly(one: Infilled) -> str:
        return str(jax.tree.map(lambda x: round(x, 3) if isinstance(x, float) else x, one.to_json()))

    together = bert.infill(TEXTS, words=(2, 3))
    assert [nearly(one) for one in together] == [nearly(bert.infill([text], words=(2, 3))[0]) for text in TEXTS]
    assert bert.infill([]) == []


def test_the_length_is_the_best_by_the_score(bert: Infiller) -> None:
    """Of one gap: each length alone, written as so many [MASK]s, has the probability that the open gap found for it."""
    open_gap = bert.infill(["a b ___ c d"], words=(1, 2), order="left_to_right")[0].gaps[0]
    found = {len(open_gap.pieces): open_gap.log_probability}
    found |= {other.pieces: other.log_probability for other in open_gap.others}
    assert sorted(found) == [1, 2, 3, 4]
    one = bert.infill(["a b [MASK] c d"], order="left_to_right")[0].gaps[0]
    assert one.log_probability == pytest.approx(found[1], abs=1e-4)
    scores = {n: log_prob / n - math.log(LONGEST) for n, log_prob in found.items()}
    assert open_gap.score == pytest.approx(max(scores.values())) and len(open_gap.pieces) == max(scores, key=scores.get)  # type: ignore[arg-type]
    assert [other.score for other in open_gap.others] == sorted(
        (other.score for other in open_gap.others), reverse=True
    )


def test_gaps_choose_their_lengths_and_are_then_filled_together(bert: Infiller) -> None:
    filled = bert.infill(["he ___ to ___ ."], words=(1, 2), order="confidence")[0]
    masks = [" ".join(["[MASK]"] * len(gap.pieces)) for gap in filled.gaps]
    steps = sorted(piece.step for gap in filled.gaps for piece in gap.pieces)
    assert steps == list(range(len(steps)))
    for gap, other in itertools.permutations(range(2)):
        assert {one.pieces for one in filled.gaps[gap].others} | {len(filled.gaps[gap].pieces)} == {1, 2, 3, 4}
        assert filled.gaps[other].text
    assert len(masks) == 2


def test_spans_are_replaced_and_mix_chooses_the_head(bert: Infiller) -> None:
    text = "the ___ old cat"
    filled = bert.infill([text], [[(8, 11)]], 1)[0]
    assert filled.text.startswith("the ___ ") and filled.text.endswith(" cat") and len(filled.gaps) == 1
    for mix, head in ((0.0, "mlm"), (1.0, "sbo")):
        piece = bert.infill([text], [[(8, 11)]], 1, mix=mix)[0].gaps[0].pieces[0]
        assert piece.probability == pytest.approx(piece.heads[head], abs=1e-5)
        for one in piece.alternatives:
            assert one.probability == pytest.approx(one.heads[head], abs=1e-5) and set(one.heads) == {"mlm", "sbo"}


def test_sbo_does_not_predict_beside_the_ends_of_a_row(bert: Infiller) -> None:
    assert set(bert.infill(["[MASK] a b"])[0].gaps[0].pieces[0].heads) == {"mlm"}


@pytest.mark.parametrize("head", ["mlm", "sbo"])
def test_weights_with_one_head_use_it_alone(head: str) -> None:
    infiller = infiller_of(random_weights(WORDPIECE, (head,)))
    piece = infiller.infill(["a [MASK] b"])[0].gaps[0].pieces[0]
    assert infiller.heads == (head,) and piece.heads == {head: pytest.approx(piece.probability, abs=1e-6)}
    with pytest.raises(UserError, match=f"mix is 0.5, and these weights have {head.upper()} alone"):
        infiller.infill(["a [MASK] b"], mix=0.5)


def test_what_cannot_be_filled_is_refused(bert: Infiller) -> None:
    for options, message in (
        ({"order": "best"}, "order is 'best'; it must be one of parallel"),
        ({"beam": 11}, "beam is 11; expected a number from 1 to 10"),
        ({"alternatives": -1}, "alternatives is -1"),
        ({"mix": 1.5}, "mix is 1.5; expected a number from 0"),
    ):
        with pytest.raises(UserError, match=message):
            bert.infill(["a [MASK]"], **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^texts\[1\]: 'no gap' has nothing"):
        bert.infill(["a [MASK]", "no gap"])
    with pytest.raises(UserError, match="the text has 41 pieces with 8 of them in gaps, and the model takes 38"):
        bert.infill(["x " * 33 + "___"])
    with pytest.raises(UserError, match="random weights: has no head that predicts masked pieces"):
        infiller_of(random_weights(WORDPIECE, ()))
    untrained = random_weights(WORDPIECE, ("sbo",))
    config = dataclasses.replace(untrained.config, train=dataclasses.replace(untrained.config.train, sbo_weight=0.0))
    with pytest.raises(UserError, match="has no head"):
        infiller_of(dataclasses.replace(untrained, config=config))


def test_after_the_warm_up_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(WORDPIECE, max_length=16)
    config = dataclasses.replace(weights.config, data=dataclasses.replace(weights.config.data, lengths=1))
    infiller = infiller_of(dataclasses.replace(weights, config=config))
    infiller.warm_up()
    compiled: list[object] = []
    compile_it = jax.stages.Lowered.compile

    def counted(lowered: jax.stages.Lowered, *arguments: Any) -> Any:
        compiled.append(lowered)
        return compile_it(lowered, *arguments)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    infiller.infill(["a ___ b", "x x [MASK] y", *["[MASK] " * 9 + "c"] * 5], words=(1, 3))
    TextScorer(infiller.scorer, WORDPIECE).score(["a b c", "x"])
    assert not compiled


@pytest.mark.parametrize("broken", [np.nan, -np.nan, np.inf])  # top_k ranks NaN first, and -NaN last
def test_numbers_that_are_not_finite_are_one_line_that_names_the_checkpoint(broken: float) -> None:
    weights = renamed(WEIGHTS_OF["bert"], Path("runs/broken"))
    params = {**params_of(weights), "mlm": jax.tree.map(lambda values: values + broken, params_of(weights)["mlm"])}
    made = Infiller(weights, params, sharding.batch_sharding(sharding.make_mesh(Config().mesh)))
    for use in (lambda: made.infill(["a [MASK] b"]), lambda: TextScorer(made.scorer, WORDPIECE).score(["a"])):
        with pytest.raises(NotFinite, match=r"^runs/broken: the model's numbers are not finite; name an earlier"):
            use()


def test_a_fitted_mixture_is_read_for_its_own_checkpoint_alone(tmp_path: Path) -> None:
    weights = random_weights(WORDPIECE)
    checkpoint = write_pretrained(tmp_path / "run", weights)
    weights = renamed(weights, checkpoint)
    assert read_mixture(str(checkpoint), made_for(weights)) is None
    law = tuple((np.arange(LONGEST, 0, -1) / 210).tolist())
    write_mixture(Mixture(WEIGHTS, law, 0.5), str(checkpoint), made_for(weights), {"spans": 3})
    made = Infiller(weights, params_of(weights), sharding.batch_sharding(sharding.make_mesh(Config().mesh)))
    assert made.mixture == Mixture(WEIGHTS, law, 0.5, True)
    other = dataclasses.replace(weights, metadata=dataclasses.replace(weights.metadata, step=4))  # type: ignore[type-var]
    with pytest.raises(UserError, match=r"infilling.json was fitted for another checkpoint \(step 3, not 4\); fit it"):
        read_mixture(str(checkpoint), made_for(other))
    for text in ("{", '{"made_for": {}, "weights": [2, 0, 0, 0], "lengths": [1], "alpha": 1}', "[]"):
        (checkpoint / FILE).write_text(text)
        with pytest.raises(UserError, match=r"infilling.json is damaged .*; fit it again \(tools/fit_mixture.py\)"):
            read_mixture(str(checkpoint), made_for(weights))
