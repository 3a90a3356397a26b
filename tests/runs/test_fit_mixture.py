"""Held-out spans, and the fit of a mixture: against a search by hand, and from the tool to the Python interface."""

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import spanbert_jax
from spanbert_jax.corpus.blocks import parse_records
from spanbert_jax.errors import UserError
from spanbert_jax.runs.fit_mixture import GRID, MOST_PIECES, fit_mixture
from spanbert_jax.runs.held_out_spans import FIT, JUDGE, HeldOutSpan, blocks_of, held_out_spans
from spanbert_jax.serving.decoding import Query, Scores
from spanbert_jax.serving.mixture import FILE, LONGEST, Mixture
from spanbert_jax.serving.slot_scores import Given
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.text.packing import FEATURE
from spanbert_jax.text.tokenizer import word_starts
from tests.support.runs import tool
from tests.support.tuned import WORDPIECE

VOCAB = 12


@pytest.fixture(scope="module")
def run(finished: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(finished[0], tmp_path_factory.mktemp("fitted") / "run")


def test_spans_are_of_whole_words_inside_their_blocks_and_of_one_half(run: Path) -> None:
    with open_weights(run) as weights:
        blocks, tokenizer = blocks_of(weights, None, "held_out"), weights.tokenizer
    read = parse_records(blocks.read(np.arange(len(blocks))), (FEATURE,))[FEATURE].numpy()
    for half in (FIT, JUDGE):
        spans = held_out_spans(blocks, tokenizer, 64, 0.2, half, 1000)
        of_half = {tuple(block[block >= 0]) for block in read[half::2]}
        assert 5 < len(spans) <= -(-len(blocks) // 2)
        for query, pieces in spans:
            first, last = query.masked[0], query.masked[-1]
            assert query.masked == query.wanted == tuple(range(first, last + 1)) and len(pieces) == len(query.masked)
            assert all(query.ids[position] == tokenizer.mask_id for position in query.masked)
            whole = [*query.ids[1:first], *pieces, *query.ids[last + 1 : -1]]
            starts = [*word_starts(tokenizer, whole), True]
            assert first > 1 and last < len(query.ids) - 2 and starts[first - 1] and starts[last]
            assert 1 <= sum(starts[first - 1 : last]) <= 6
            assert tuple(whole) in of_half
    assert held_out_spans(blocks, tokenizer, 64, 0.2, FIT, 5) == held_out_spans(blocks, tokenizer, 64, 0.2, FIT, 5)
    with pytest.raises(UserError, match="no held-out block has at most 1 pieces"):
        held_out_spans(blocks, tokenizer, 3, 0.2, FIT, 5)


class Heads:
    """Two heads whose distributions are random functions of a row's length, the span's length and the place in it."""

    heads = ("mlm", "sbo")
    longest = 64

    def log_probs(self, query: Query, position: int) -> list[np.ndarray]:
        return self._log_probs((len(query.ids), len(query.masked), position))

    @staticmethod
    @functools.cache
    def _log_probs(key: tuple[int, ...]) -> list[np.ndarray]:
        logits = [np.random.default_rng([*key, head]).normal(0, 1.5, VOCAB) for head in range(2)]
        return [values - np.log(np.exp(values).sum()) for values in logits]

    def mixed(self, query: Query, position: int, mixture: Mixture) -> np.ndarray:
        offset, length = position - query.masked[0], len(query.masked)
        weight = float(mixture.weight(np.array(offset), np.array(length)))
        mlm, sbo = self.log_probs(query, position)
        mixed = (1 - weight) * mlm + weight * sbo
        return mixed - np.log(np.exp(mixed).sum())

    def given(
        self, queries: Sequence[Query], pieces: Sequence[Sequence[int]], mixtures: Sequence[Mixture], whole: bool
    ) -> list[Given]:
        assert whole
        found = []
        for query, of in zip(queries, pieces, strict=True):
            values = [
                [self.mixed(query, p, m)[piece] for m in mixtures] for p, piece in zip(query.wanted, of, strict=True)
            ]
            unused = np.zeros((len(of), len(mixtures)))
            found.append(Given(np.array(values), unused, unused))
        return found

    def best(self, queries: Sequence[Query], mixture: Mixture, whole: bool) -> list[Scores]:
        found = []
        for query in queries:
            values = np.full((len(query.wanted), 3, VOCAB), -np.inf)
            for place, position in enumerate(query.wanted):
                values[place, 2] = np.sort(self.mixed(query, position, mixture))[::-1]
            masses = np.full(values.shape[:2], -np.inf)
            found.append(Scores(np.zeros(values.shape, int), values, np.stack([values, values], -1), masses))
        return found


def spans_of(count: int) -> list[HeldOutSpan]:
    """Spans of 1 to 7 pieces, each drawn from the first head's distribution, or one time in three the second's."""
    rng, heads, found = np.random.default_rng(0), Heads(), []
    for _ in range(count):
        length, pieces = int(rng.integers(1, 8)), int(rng.integers(20, 30))
        masked = tuple(range(5, 5 + length))
        query = Query([7] * pieces, masked, masked)
        drawn = [rng.choice(VOCAB, p=np.exp(heads.log_probs(query, p)[int(rng.random() < 1 / 3)])) for p in masked]
        found.append(HeldOutSpan(query, tuple(map(int, drawn))))
    return found


def test_each_number_is_the_best_on_the_spans() -> None:
    heads, spans = Heads(), spans_of(300)
    fit = fit_mixture(heads, WORDPIECE, spans, lambda done, what: None)  # type: ignore[arg-type]
    totals = np.zeros((4, len(GRID)))
    counts = np.zeros(4, int)
    for query, pieces in spans:
        n = len(pieces)
        for place, piece in enumerate(pieces):
            bucket = 0 if n == 1 else 3 if 0 < place < n - 1 else 1 if n <= 4 else 2
            mlm, sbo = (np.exp(values) for values in heads.log_probs(query, query.masked[place]))
            for i, weight in enumerate(GRID):
                powers = mlm ** (1 - weight) * sbo**weight
                totals[bucket, i] -= np.log(powers[piece] / powers.sum())
            counts[bucket] += 1
    expected = [
        GRID[int(np.argmin(of))] if count >= 50 else GRID[int(np.argmin(totals.sum(0)))]
        for of, count in zip(totals, counts, strict=True)
    ]
    assert fit.mixture.weights == tuple(expected) and fit.pieces == tuple(counts) and fit.mixture.fitted
    assert min(expected) > 0 and max(expected) < 1
    lengths = np.array([len(span.pieces) for span in spans])
    law = np.array([(lengths == n + 1).sum() + 1 for n in range(LONGEST)])
    assert fit.mixture.lengths == pytest.approx(law / law.sum())
    for bucket, means in enumerate(zip(*(fit.nats[name] for name in ("mlm", "sbo", "mixture")), strict=True)):
        place = GRID.index(expected[bucket])
        assert means == pytest.approx([totals[bucket, i] / counts[bucket] for i in (0, -1, place)])
    measured = fit.measured()
    assert measured["nats"]["mlm"] == pytest.approx(totals[:, 0].sum() / counts.sum())
    assert 0 <= measured["lengths_found"] <= 1 and fit.mixture.alpha in (0, 0.25, 0.5, 0.75, 1) and MOST_PIECES == 8


def test_weights_with_one_head_have_nothing_to_mix() -> None:
    heads = Heads()
    heads.heads = ("sbo",)  # type: ignore[assignment]
    with pytest.raises(UserError, match="the weights have SBO alone"):
        fit_mixture(heads, WORDPIECE, spans_of(2), lambda done, what: None)  # type: ignore[arg-type]


def test_what_the_tool_fits_is_what_loading_finds(run: Path, tmp_path: Path) -> None:
    before = spanbert_jax.load(run).infiller.mixture
    printed = tool("fit_mixture", "--checkpoint", run, "--spans", "16").stdout
    checkpoint = next(path for path in sorted((run / "checkpoints").iterdir()) if (path / FILE).exists())
    after = spanbert_jax.load(run).infiller.mixture
    assert not before.fitted and after.fitted and f"Wrote {checkpoint}/{FILE}" in printed
    fields = json.loads((checkpoint / FILE).read_text())
    assert fields["made_for"]["step"] == int(checkpoint.name) == 12 and tuple(fields["weights"]) == after.weights
    assert fields["measured"]["nats"]["mixture"] <= max(
        fields["measured"]["nats"]["mlm"], fields["measured"]["nats"]["sbo"]
    )
    assert f"{fields['measured']['nats']['mixture']:.3f}" in printed
    other = tool("fit_mixture", "--checkpoint", run, "--data", tmp_path / "none", expect=1)
    assert other.stderr.startswith("error: ") and "holds no blocks" in other.stderr
    assert tool("fit_mixture", "--checkpoint", run, "--spans", "0", expect=1).stderr.startswith("error: --spans is 0")
