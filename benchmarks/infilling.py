"""What stands in a masked span: MLM, SBO, their mixture and orders of filling, the span decoder, and two guesses
without a model.

    python -m benchmarks.infilling --checkpoint runs/small
    python -m benchmarks.infilling --checkpoint runs/small --spans 2000 --work runs/infilling

Held-out spans of 1 to 6 words, all of whose pieces are [MASK], with their number of pieces known. Three measures by the
number of pieces: the share of the pieces that are right, the share of the spans that are right altogether, and nats a
piece. The nats of "all at once" are those of each piece with every piece of the span masked; those of "left to right"
are of the chain, in which a word sees the right words before it. The other orders have no nats of their own. The
decoder's row has one [MASK] for the span, and its nats are those of the chain too, in which the decoder knows whether a
piece is the last. In "decoder, open length" it finds the number of pieces by itself: pieces are right only where the
number is, and the nats include those of the number.

Invariant: no span comes from a block that tools/fit_mixture.py fits on. Every method is asked for the same pieces, and
gives a probability to every piece of the vocabulary.
"""

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import NamedSharding

from benchmarks.report import machine, write
from spanbert_jax import cli
from spanbert_jax.config import Config
from spanbert_jax.corpus.blocks import Blocks
from spanbert_jax.corpus.neighbours import count_neighbours
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory, written_aside
from spanbert_jax.model.pretraining_heads import DECODER
from spanbert_jax.runs.held_out_spans import JUDGE, HeldOutSpan, blocks_of, held_out_spans
from spanbert_jax.serving.decoding import Query, Score, Target, Task, fill
from spanbert_jax.serving.gaps import JOINED, SPACED, piece_classes
from spanbert_jax.serving.infilling import BEAM, Infiller
from spanbert_jax.serving.mixture import Mixture, uniform_mixture
from spanbert_jax.serving.predictor import Params
from spanbert_jax.serving.slot_scores import Given, SlotScorer
from spanbert_jax.serving.span_writer import SpanQuery, SpanWriter
from spanbert_jax.serving.weights import Weights, open_weights
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training import sharding
from spanbert_jax.training.progress import Stage

# The groups of spans by their number of pieces: title, fewest, most.
GROUPS = (("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4, 5", 4, 5), ("6 on", 6, 10**6), ("all", 1, 10**6))
MEASURES = {"pieces": "right pieces, %", "spans": "right spans, %", "nats": "nats a piece"}
_AT_ONCE = 256  # spans that are scored together


class Material(NamedTuple):
    """All that a method may use."""

    scorer: SlotScorer
    mixture: Mixture
    tokenizer: Tokenizer
    train: Blocks  # the blocks that the model was trained on
    spans: Sequence[HeldOutSpan]


class Answers(NamedTuple):
    """A method's answers for the pieces of all spans, one after another."""

    right: np.ndarray  # bool [pieces]: whether the method would fill in the piece that was there
    nats: np.ndarray | None  # float [pieces]: -log of the probability of the piece that was there; None: it has none


Method = Callable[[Material], Answers]


def commonest(material: Material) -> Answers:
    """Always the commonest piece of the training blocks, with 1 added to every count."""
    counts = material.train.metadata.piece_counts + 1.0
    pieces = _pieces(material)
    return Answers(pieces == np.argmax(counts), -np.log(counts[pieces] / counts.sum()))


def neighbours(material: Material) -> Answers:
    """The guess from the visible pieces beside the span (corpus/neighbours.py)."""
    left, right = [], []
    for span in material.spans:
        between = [-1] * (len(span.pieces) - 1)
        left += [span.query.ids[span.query.masked[0] - 1], *between]
        right += [*between, span.query.ids[span.query.masked[-1] + 1]]
    guess = count_neighbours(material.train, material.tokenizer).guess(
        np.array(left), np.array(right), _pieces(material)
    )
    return Answers(guess.right, -np.log(guess.probability))


def all_at_once(mixture: Callable[[Material], Mixture]) -> Method:
    """Each piece by its own distribution, with the whole span masked."""

    def method(material: Material) -> Answers:
        queries = [span.query for span in material.spans]
        found = _given(material, queries, [span.pieces for span in material.spans], mixture(material))
        return Answers(found.likeliest == _pieces(material), -found.log_probs)

    return method


def left_to_right(material: Material) -> Answers:
    """The likeliest word at each place from the left; the nats of the chain of decoding.py."""
    tokenizer, pieces = material.tokenizer, _pieces(material)
    begins = np.logical_or(*piece_classes(tokenizer)[[SPACED, JOINED]])
    marks_words = bool(begins.any() or tokenizer.ends_word.any())
    # Of each piece: the row in which its word is masked, or the word before where the piece begins one; the row in
    # which all pieces before it are visible; whether that row alone decides.
    in_word, in_row, alone = [], [], []
    for span in material.spans:
        ids, word = list(span.query.ids), span.query
        for place, (position, piece) in enumerate(zip(span.query.masked, span.pieces, strict=True)):
            row = Query(list(ids), span.query.masked[place:], (position,))
            alone.append(place == 0 or not marks_words or bool(tokenizer.ends_word[span.pieces[place - 1]]))
            in_word.append(word._replace(wanted=(position,)))
            in_row.append(row)
            if alone[-1] or begins[piece]:
                word = row
            ids[position] = piece
    each = [(piece,) for piece in pieces.tolist()]
    of_word, of_row = (_given(material, queries, each, material.mixture) for queries in (in_word, in_row))
    new = begins[pieces] & ~np.array(alone)
    log_probs = np.where(alone, of_row.log_probs, of_word.log_probs)
    log_probs[new] = of_word.begins[new] + of_row.log_probs[new] - of_row.begins[new]
    return in_order("left_to_right")(material)._replace(nats=-log_probs)


def in_order(order: str) -> Method:
    """The filling by an order of decoding.py, without constraints."""

    def method(material: Material) -> Answers:
        score: Score = lambda queries: material.scorer.best(queries, material.mixture, True)  # noqa: E731
        right = []
        for first in range(0, len(material.spans), _AT_ONCE):
            some = material.spans[first : first + _AT_ONCE]
            tasks = [Task(tuple(s.query.ids), s.query.masked, (Target(s.query.masked),)) for s in some]
            filled = fill(tasks, order, BEAM, score, material.tokenizer.ends_word)
            for span, fillings in zip(some, filled, strict=True):
                chosen = [fillings[0].choices[position].chosen.piece for position in span.query.masked]
                right += np.equal(chosen, span.pieces).tolist()
        return Answers(np.array(right), None)

    return method


def decoded(writer: SpanWriter, is_known: bool) -> Method:
    """The likeliest string of the decoder's beam search, with the number of pieces known or not."""

    def method(material: Material) -> Answers:
        queries = [_collapsed(span, is_known) for span in material.spans]
        right: list[bool] = []
        for span, strings in zip(material.spans, writer.write(queries), strict=True):
            best = strings[0].pieces
            right += (
                np.equal(best, span.pieces).tolist() if len(best) == len(span.pieces) else [False] * len(span.pieces)
            )
        given = writer.given(queries, [span.pieces for span in material.spans])
        return Answers(np.array(right), -np.concatenate([p if is_known else p + ends for p, ends in given]))

    return method


def _collapsed(span: HeldOutSpan, is_known: bool) -> SpanQuery:
    first, last = span.query.masked[0], span.query.masked[-1]
    ids = [*span.query.ids[: first + 1], *span.query.ids[last + 1 :]]
    return SpanQuery(ids, first, len(span.pieces) if is_known else 0)


def methods_of(scorer: SlotScorer, mixture: Mixture, writer: SpanWriter | None) -> dict[str, Method]:
    """The rows of the table. writer: None: the weights have no decoder."""
    rows: dict[str, Method] = {"commonest piece": commonest, "visible neighbours": neighbours}
    for name, weight in (("mlm", 0.0), ("sbo", 1.0)):
        if name in scorer.heads:
            rows[name.upper()] = all_at_once(functools.partial(_uniform, weight))
    if len(scorer.heads) > 1:
        rows["mixture, fitted" if mixture.fitted else "mixture, equal"] = all_at_once(lambda material: material.mixture)
    best = "mixture" if len(scorer.heads) > 1 else scorer.heads[0].upper()
    orders = {
        "left to right": left_to_right,
        "surest first": in_order("confidence"),
        f"beam of {BEAM}": in_order("beam"),
    }
    rows |= {f"{best}, {name}": method for name, method in orders.items()}
    if writer:
        rows |= {"decoder": decoded(writer, True), "decoder, open length": decoded(writer, False)}
    return rows


def _writer(weights: Weights, params: Params, layout: NamedSharding) -> SpanWriter | None:
    """The decoder of the weights, which may write every piece of the vocabulary; None where they have none."""
    if DECODER.name not in params:
        return None
    every = np.ones((1, weights.tokenizer.vocab_size), np.bool_)
    return SpanWriter(weights, params, layout, every, BEAM)


def _uniform(weight: float, material: Material) -> Mixture:
    return uniform_mixture(weight)


def _pieces(material: Material) -> np.ndarray:
    return np.array([piece for span in material.spans for piece in span.pieces])


def _given(material: Material, queries: Sequence[Query], pieces: Sequence[Sequence[int]], mixture: Mixture) -> Given:
    """The scores of all given pieces, one after another: each [pieces]."""
    found: list[Given] = []
    for first in range(0, len(queries), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        found += material.scorer.given(queries[some], pieces[some], [mixture], True)
    return Given(*(np.concatenate([values[:, 0] for values in of]) for of in zip(*found, strict=True)))


def measured(answers: Answers, spans: Sequence[HeldOutSpan]) -> dict[str, dict[str, float]]:
    """measure -> group of spans -> value; groups without a span, and nats that a method lacks, are left out."""
    lengths = np.array([len(span.pieces) for span in spans])
    of_span = np.repeat(np.arange(len(spans)), lengths)
    whole = np.bincount(of_span, answers.right, len(spans)) == lengths
    found: dict[str, dict[str, float]] = {measure: {} for measure in MEASURES}
    for title, fewest, most in GROUPS:
        inside = (lengths >= fewest) & (lengths <= most)
        if not inside.any():
            continue
        found["pieces"][title] = 100 * float(answers.right[inside[of_span]].mean())
        found["spans"][title] = 100 * float(whole[inside].mean())
        if answers.nats is not None:
            found["nats"][title] = float(answers.nats[inside[of_span]].mean())
    return found


Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # method -> measure -> group -> value


def table(results: Results, spans: Sequence[HeldOutSpan]) -> str:
    """A table for each measure, in Markdown."""
    lengths = np.array([len(span.pieces) for span in spans])
    counts = [int(((lengths >= fewest) & (lengths <= most)).sum()) for _, fewest, most in GROUPS]
    parts = []
    for measure, title in MEASURES.items():
        lines = [[title, *(group for group, _, _ in GROUPS)], ["---", *["---:"] * len(GROUPS)]]
        for method, of in results.items():
            if of[measure]:
                digits = 2 if measure == "nats" else 1
                values = [f"{of[measure][group]:.{digits}f}" if group in of[measure] else "-" for group, _, _ in GROUPS]
                lines.append([method, *values])
        if measure == "pieces":
            lines.insert(2, ["spans of so many pieces", *(f"{count:,}" for count in counts)])
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + f"\n\n{machine()}\n"


def draw(results: Results, output: Path) -> None:
    """A panel for each measure: a line for each method, over the groups of spans."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("matplotlib is missing; pip install -r requirements-dev.txt") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [title for title, _, _ in GROUPS[:-1]]
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(11, 3.8), constrained_layout=True)
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for place, (method, of) in enumerate(results.items()):
            known = [group for group in groups if group in of[measure]]
            style = ":" if place < 2 else "--" if "," in method and "fitted" not in method else "-"
            axis.plot(
                [groups.index(group) for group in known],
                [of[measure][group] for group in known],
                style,
                marker="o",
                ms=4,
                label=method,
            )
        axis.set_xticks(range(len(groups)), groups)
        axis.set(title=title, xlabel="pieces in the span")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    with written_aside(output) as aside:
        figure.savefig(aside, format=output.suffix.removeprefix("."))
    plt.close(figure)


def run(arguments: argparse.Namespace) -> None:
    """Measures every method, and writes the tables, the numbers and the picture."""
    if arguments.spans < 1:
        raise UserError(f"--spans is {arguments.spans}; expected a number from 1 on")
    make_directory(arguments.work, "--work")
    with open_weights(arguments.checkpoint) as weights:
        layout = sharding.batch_sharding(sharding.make_mesh(Config().mesh))
        params = weights.load()[0]
        infiller, writer = Infiller(weights, params, layout), _writer(weights, params, layout)
    blocks = [blocks_of(weights, arguments.data, split) for split in ("train", "held_out")]
    span_p, longest = weights.config.masking.span_p, infiller.scorer.longest
    spans = held_out_spans(blocks[1], weights.tokenizer, longest, span_p, JUDGE, arguments.spans)
    if writer:  # the longer ones are too long for it
        spans = [span for span in spans if len(span.pieces) <= writer.most]
    material = Material(infiller.scorer, infiller.mixture, weights.tokenizer, blocks[0], spans)
    results = {}
    methods = methods_of(infiller.scorer, infiller.mixture, writer)
    with Stage(f"Infilling, {len(spans):,} spans") as stage:
        for number, (name, method) in enumerate(methods.items()):
            stage.update(number / len(methods), name)
            results[name] = measured(method(material), spans)
    found = {"checkpoint": weights.source, "step": weights.step, "spans": len(spans), "results": results}
    write(arguments.work / "infilling.json", json.dumps({"machine": machine(), **found}, indent=2) + "\n")
    write(arguments.work / "infilling.md", table(results, spans))
    draw(results, arguments.work / "infilling.svg")
    print((arguments.work / "infilling.md").read_text(encoding="utf-8"))
    print(f"Wrote infilling.md, infilling.json and infilling.svg in {arguments.work}")


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, or one of its checkpoints")
    parser.add_argument("--data", type=Path, help="the directory of the blocks; default: where the run has them")
    parser.add_argument("--spans", type=int, default=1000, help="spans to judge by, at most; default %(default)s")
    parser.add_argument("--work", type=Path, default=Path("runs/infilling"), help="default %(default)s")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: run(arguments))


if __name__ == "__main__":
    cli.run(main)
