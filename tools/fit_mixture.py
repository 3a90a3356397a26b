"""Fits how infilling mixes the masked-language-model and the span-boundary head, on held-out blocks of the run.

    python tools/fit_mixture.py --checkpoint runs/tiny

Half of the held-out blocks are used: a span of 1 to 6 words in each is masked. The weights, the law of lengths and
what they were measured to be worth are written into the checkpoint's directory, as infilling.json, where
tools/infill.py and spanbert_jax.load find them. benchmarks/infilling.py judges the mixture on the other half.

Invariant: the file is written whole or not at all, and is read for this checkpoint alone.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from spanbert_jax import cli
from spanbert_jax.errors import UserError

if TYPE_CHECKING:
    from spanbert_jax.runs.fit_mixture import Fit


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, or one of its checkpoints")
    parser.add_argument("--data", type=Path, help="the directory of the blocks; default: where the run has them")
    parser.add_argument("--spans", type=int, default=1000, help="spans to fit on, at most; default %(default)s")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from spanbert_jax.config import Config
    from spanbert_jax.runs.fit_mixture import fit_mixture
    from spanbert_jax.runs.held_out_spans import FIT, blocks_of, held_out_spans
    from spanbert_jax.serving.gaps import piece_classes
    from spanbert_jax.serving.infilling import made_for
    from spanbert_jax.serving.mixture import FILE, write_mixture
    from spanbert_jax.serving.slot_scores import SlotScorer
    from spanbert_jax.serving.weights import open_weights
    from spanbert_jax.training import sharding
    from spanbert_jax.training.progress import Stage

    if arguments.spans < 1:
        raise UserError(f"--spans is {arguments.spans}; expected a number from 1 on")
    with open_weights(arguments.checkpoint) as weights:
        if weights.metadata is None:
            raise UserError(f"{weights.source}: no checkpoint of this project; convert it first, and give --data")
        layout = sharding.batch_sharding(sharding.make_mesh(Config().mesh))
        scorer = SlotScorer(weights, weights.load()[0], layout, piece_classes(weights.tokenizer))
    blocks, span_p = blocks_of(weights, arguments.data, "held_out"), weights.config.masking.span_p
    spans = held_out_spans(blocks, weights.tokenizer, scorer.longest, span_p, FIT, arguments.spans)
    with Stage(f"Fitting on {len(spans):,} spans", enabled=sys.stderr.isatty()) as stage:
        fit = fit_mixture(scorer, weights.tokenizer, spans, stage.update)
    write_mixture(fit.mixture, weights.source, made_for(weights), fit.measured())
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table(fit))
    print(
        f"alpha {fit.mixture.alpha:g} finds the number of pieces of {fit.lengths_found:.1%} of the spans; "
        f"always the commonest number: {fit.lengths_commonest:.1%}"
    )
    print(f"Wrote {weights.source}/{FILE}")


def table(fit: "Fit") -> Table:
    """The weight of each bucket, and the nats a piece by each head and by the mixture."""
    from spanbert_jax.serving.mixture import BUCKETS

    shown = Table("place in the span", "pieces", "SBO's weight", "MLM, nats", "SBO, nats", "mixture, nats", box=None)
    for bucket, name in enumerate(BUCKETS):
        nats = [f"{fit.nats[of][bucket]:.3f}" for of in ("mlm", "sbo", "mixture")]
        shown.add_row(name, f"{fit.pieces[bucket]:,}", f"{fit.mixture.weights[bucket]:.2f}", *nats)
    whole = fit.measured()["nats"]
    shown.add_row("all", f"{sum(fit.pieces):,}", "", *(f"{whole[of]:.3f}" for of in ("mlm", "sbo", "mixture")))
    return shown


if __name__ == "__main__":
    cli.run(main)
