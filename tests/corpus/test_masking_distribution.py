"""Masking, as a distribution: 20,000 blocks against 6,000 of a sequential reference with its own random numbers, and
against the numbers that the SpanBERT authors' code was measured to give.

The reference is a loop in Python, so it has fewer blocks: the standard error of a difference is 1.5 times what it would
be with 20,000 on both sides.

Tolerances between samples are standard errors: 4.5 of them, which chance passes once in 150,000 comparisons.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from spanbert_jax.batch import KEPT, MASK, RANDOM
from spanbert_jax.config import Config, DataConfig, MaskingConfig
from spanbert_jax.corpus.masking import Masker, row_keys
from spanbert_jax.text.tokenizer import Tokenizer, word_starts, wordpiece_from_vocab
from tests.support import masking_reference as reference

BLOCKS, EPOCHS = 500, 40  # 20,000 pairs, each masked on its own
REFERENCE_EPOCHS = 12
ERRORS = 4.5
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True, eq=False)  # a key of caches by what it is
class Corpus:
    tokenizer: Tokenizer
    counts: np.ndarray  # int64 [vocab]
    blocks: np.ndarray  # int32 [BLOCKS, 510]
    starts: np.ndarray  # bool [BLOCKS, 510]


def make_corpus(tokenizer: Tokenizer, ids: np.ndarray) -> Corpus:
    blocks = ids[: BLOCKS * 510].reshape(BLOCKS, 510).astype(np.int32)
    starts = np.array([word_starts(tokenizer, block) for block in blocks])
    return Corpus(tokenizer, np.bincount(blocks.reshape(-1), minlength=tokenizer.vocab_size), blocks, starts)


@pytest.fixture(scope="module")
def synthetic() -> Corpus:
    """85% of the pieces begin a word, as in English under BERT's cased vocabulary; counts fall as 1 / rank."""
    pieces = [f"w{i}" for i in range(1500)] + [f"##s{i}" for i in range(500)]
    tokenizer = Tokenizer("wordpiece", "\n".join((*SPECIALS, *pieces)).encode())
    rng = np.random.default_rng(0)
    begins = rng.random(BLOCKS * 510) < 0.85
    weights = 1 / np.arange(1, 1501)
    words = rng.choice(1400, begins.size, p=weights[:1400] / weights[:1400].sum())  # the last hundred never occur
    return make_corpus(tokenizer, 5 + np.where(begins, words, 1500 + rng.integers(0, 500, begins.size)))


@pytest.fixture(scope="module")
def wikipedia(shared_data: Path) -> Corpus:
    tokenizer = wordpiece_from_vocab(shared_data / "vocab" / "bert-base-cased-vocab.txt", lowercase=False)
    path = sorted((shared_data / "text" / "enwiki2015").glob("wiki_*"))[0]
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("<")]
    ids = np.concatenate(tokenizer.tokenize_batch(lines))
    return make_corpus(tokenizer, np.resize(ids, BLOCKS * 510))


@functools.lru_cache(maxsize=1)
def default_graph(corpus: Corpus) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`graph` with the paper's masking, which three tests in a row look at."""
    return graph(corpus)


def graph(
    corpus: Corpus, length: int = 510, epochs: int = EPOCHS, **fields: object
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(mask bool [epochs * BLOCKS, length], the outputs of mask_batch concatenated over epochs)."""
    config = Config(masking=MaskingConfig(**fields), data=DataConfig(block_length=length + 2))  # type: ignore[arg-type]
    masker = Masker(config, corpus.tokenizer, corpus.counts)
    blocks, lengths = corpus.blocks[:, :length], tf.fill([BLOCKS], length)
    rate = tf.constant(config.masking.rate, tf.float64)

    @tf.function(autograph=False)
    def run(epoch: tf.Tensor) -> dict[str, tf.Tensor]:
        keys = row_keys(5, tf.fill([BLOCKS], epoch), tf.range(BLOCKS, dtype=tf.int64))
        return masker.mask_batch(blocks, lengths, keys, rate, describe=True)

    runs = [run(tf.constant(epoch, tf.int64)) for epoch in range(epochs)]
    out = {name: np.concatenate([x[name] for x in runs]) for name in runs[0]}
    mask = np.zeros((epochs * BLOCKS, length + 2), bool)
    np.put_along_axis(mask, out["masked_positions"], True, axis=1)  # unused slots mark [CLS]
    return mask[:, 1:-1], out


def sequential(
    corpus: Corpus, limit: int = 10, epochs: int = REFERENCE_EPOCHS
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(mask, SBO rows in each block, words of every accepted span) from the reference and its own generator."""
    rng = np.random.default_rng(6)
    masks, rows, words = [], [], []
    for _ in range(epochs):
        for starts in corpus.starts.tolist():
            masked = reference.choose(starts, 0.15, reference.geometric_draws(len(starts), rng, limit=limit))
            masks.append(masked.mask)
            rows.append(len(reference.span_rows(masked.runs, len(starts), 15, external=True)))
            words += masked.words
    return np.array(masks), np.array(rows), words


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Pieces of every merged span of every block."""
    edges = np.diff(np.pad(mask, [(0, 0), (1, 1)]).astype(np.int8), axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


def measurements(mask: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """One number a block for everything that the law of the masks could get wrong; [blocks] each."""
    begins = np.tile(starts, (len(mask) // len(starts), 1))
    word = np.cumsum(begins, axis=1) + np.arange(len(mask))[:, None] * 1000
    size = np.bincount(word.reshape(-1))[word]  # pieces in the word of each piece
    inside = np.pad(mask, [(0, 0), (1, 1)])
    first, last = inside[:, 1:-1] & ~inside[:, :-2], inside[:, 1:-1] & ~inside[:, 2:]
    out = {
        "merged spans": first.sum(1),
        "single-piece spans": (first & last).sum(1),
        "spans that begin inside a word": (first & ~begins).sum(1),
        "spans that end inside a word": (last[:, :-1] & ~begins[:, 1:]).sum(1),
        "first piece": mask[:, 0],
        "last piece": mask[:, -1],
        "gaps of one": (~inside[:, 1:-1] & inside[:, :-2] & inside[:, 2:]).sum(1),
    }
    for pieces in (1, 2, 3, 4):
        out[f"masked pieces of words of {pieces} pieces"] = (mask & (size == pieces)).sum(1)
    for tenth, columns in enumerate(np.array_split(np.arange(mask.shape[1]), 10)):
        out[f"tenth {tenth} of the block"] = mask[:, columns].sum(1)
    for apart in (1, 2, 5, 10, 20):
        out[f"both of two pieces {apart} apart"] = (mask[:, apart:] & mask[:, :-apart]).sum(1)
    return {name: value.astype(np.float64) for name, value in out.items()}


def assert_same_mean(name: str, one: np.ndarray, other: np.ndarray) -> None:
    error = np.sqrt(one.var() / len(one) + other.var() / len(other))
    assert abs(one.mean() - other.mean()) <= ERRORS * error + 1e-12, (
        f"{name}: {one.mean():.5g} against {other.mean():.5g}, a standard error of {error:.2g}"
    )


@pytest.mark.parametrize("source", ["wikipedia", "synthetic"])
def test_masks_have_the_law_of_the_sequential_reference(source: str, request: pytest.FixtureRequest) -> None:
    corpus: Corpus = request.getfixturevalue(source)
    mask, out = default_graph(corpus)
    expected, rows, words = sequential(corpus)
    ours, theirs = measurements(mask, corpus.starts), measurements(expected, corpus.starts)
    for name in ours:
        assert_same_mean(name, ours[name], theirs[name])
    assert_same_mean("SBO rows", out["span_weights"].sum(1), rows)
    assert_same_mean("pieces in a span", run_lengths(mask), run_lengths(expected))
    assert_same_mean("its square", run_lengths(mask) ** 2, run_lengths(expected) ** 2)
    assert np.mean(words) == pytest.approx(3.797, abs=0.02)  # rejection looks at the anchor alone


def test_blocks_look_as_the_authors_code_was_measured_to_make_them(synthetic: Corpus) -> None:
    """The measured values are rounded and from 4,000 blocks: the tolerances are theirs."""
    mask, out = default_graph(synthetic)
    lengths = run_lengths(mask)
    assert np.all(mask.sum(1) == 77)
    assert len(lengths) / len(mask) == pytest.approx(16.2, abs=0.15)
    assert lengths.mean() == pytest.approx(4.74, abs=0.05)
    assert (lengths == 1).mean() == pytest.approx(0.17, abs=0.006)
    assert (lengths > 15).mean() == pytest.approx(0.007, abs=0.001)
    assert out["span_weights"].sum() / mask.sum() == pytest.approx(0.984, abs=0.003)
    for length, coverage in ((126, 0.96), (30, 0.87)):
        short, out = graph(synthetic, length)
        assert out["span_weights"].sum() / short.sum() == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize("granularity", ["span", "piece"])
def test_replacement_is_drawn_once_a_span_or_once_a_piece(synthetic: Corpus, granularity: str) -> None:
    _, out = default_graph(synthetic) if granularity == "span" else graph(synthetic, granularity=granularity)
    used = out["masked_weights"] > 0
    starts = np.diff(out["masked_positions"], axis=1, prepend=-1) != 1
    kinds = out["replacement"][used & starts if granularity == "span" else used]
    for kind, share in ((MASK, 0.8), (RANDOM, 0.1), (KEPT, 0.1)):
        assert abs((kinds == kind).mean() - share) < ERRORS * np.sqrt(share * (1 - share) / kinds.size)
    inside = (used & ~starts)[:, 1:]
    same = (out["replacement"][:, 1:] == out["replacement"][:, :-1])[inside].mean()
    expected = 1.0 if granularity == "span" else 0.8**2 + 2 * 0.1**2
    assert abs(same - expected) < ERRORS * np.sqrt(expected * (1 - expected) / inside.sum()) + 1e-12


def test_whole_word_masks_have_the_law_of_the_sequential_reference(synthetic: Corpus) -> None:
    mask, _ = graph(synthetic, scheme="whole_word")
    ours = measurements(mask, synthetic.starts)
    theirs = measurements(sequential(synthetic, limit=1, epochs=6)[0], synthetic.starts)
    for name in ours:
        assert_same_mean(name, ours[name], theirs[name])


def test_subword_masks_are_uniform(synthetic: Corpus) -> None:
    """Each piece is masked with probability 77 / 510, each pair with that of drawing without replacement."""
    mask, out = graph(synthetic, scheme="subword")
    share = 77 / 510
    error = np.sqrt(share * (1 - share) / len(mask))
    np.testing.assert_allclose(mask.mean(0), share, atol=ERRORS * error)
    pairs = (mask[:, 1:] & mask[:, :-1]).mean()
    assert abs(pairs - share * 76 / 509) < ERRORS * np.sqrt(pairs / mask[:, 1:].size)
    assert not out["span_weights"].any()


def test_span_lengths_follow_the_renormalised_geometric_law_and_anchors_are_uniform(synthetic: Corpus) -> None:
    masker = Masker(Config(), synthetic.tokenizer, synthetic.counts)
    count, draws = 20_000, 30
    keys = row_keys(7, tf.zeros([count], tf.int64), tf.range(count, dtype=tf.int64))
    words, anchors = (
        x.numpy() for x in masker.span_draws(keys, tf.fill([count], 510), tf.constant(0, tf.int64), draws)
    )
    shares = np.bincount(words.reshape(-1), minlength=11)[1:] / words.size
    # PMF is rounded to four digits.
    np.testing.assert_array_less(np.abs(shares - reference.PMF), ERRORS * np.sqrt(shares / words.size) + 5e-5)
    assert words.mean() == pytest.approx(3.797, abs=0.02)
    assert words.min() == 1 and words.max() == 10
    assert stats.chisquare(np.bincount(anchors.reshape(-1), minlength=510)).pvalue > 1e-4
    limit = ERRORS / np.sqrt(words.size)
    for one, other in ((words, anchors), (words[:, 1:], words[:, :-1]), (anchors[:, 1:], anchors[:, :-1]),
                       (words[1:], words[:-1]), (anchors[1:], anchors[:-1])):  # fmt: skip
        assert abs(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1]) < limit * 1.05


def test_random_pieces_follow_the_unigram_law_and_each_piece_has_its_own(synthetic: Corpus) -> None:
    _, out = graph(synthetic, mask_share=0.0, random_share=1.0)
    used = out["masked_weights"] > 0
    shown = np.take_along_axis(out["input_ids"], out["masked_positions"], axis=1)
    drawn = np.bincount(shown[used], minlength=synthetic.tokenizer.vocab_size)
    present = synthetic.counts > 0
    assert not drawn[~present].any() and (~present).sum() > 100
    law = synthetic.counts[present] / synthetic.counts.sum()
    assert stats.chisquare(drawn[present], law * drawn.sum()).pvalue > 1e-4
    neighbours = used[:, 1:]
    same = (shown[:, 1:] == shown[:, :-1])[neighbours].mean()
    expected = (law**2).sum()
    assert abs(same - expected) < ERRORS * np.sqrt(expected / neighbours.sum())
