"""Fills the gaps of a text with whole words, by MLM and SBO together, or by the span decoder.

    python tools/infill.py --checkpoint runs/tiny "The [MASK] sat on the ___ ."
    python tools/infill.py --checkpoint runs/tiny --span 4:7 --words 1-2 "The cat sat on the mat."
    python tools/infill.py --checkpoint runs/tiny --json < texts.txt

[MASK] is one piece, ___ is some words, and --span replaces characters of the text as it stands. Without a text, each
line of standard input is one. SBO's weight is the one that tools/fit_mixture.py fitted, or else 0.5; --mix gives
another one. With --heads decoder the span decoder of configs/decoder.py writes the gaps. docs/infilling.md says more.

Invariant: the text outside of the gaps is printed as it was given, with a space for a tab or a control character.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from spanbert_jax import cli

if TYPE_CHECKING:
    from spanbert_jax.serving.infilling import FilledGap, Infilled, PieceChoice

FILLED = "bold black on yellow"


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("text", nargs="?", help="a text with gaps; default: the lines of standard input")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, or weights that others publish")
    parser.add_argument("--vocab", type=Path, help="the vocabulary of others' weights that have none beside them")
    parser.add_argument("--span", action="append", metavar="START:END", help="characters to replace; may be repeated")
    parser.add_argument("--words", default="1-4", help="words in a gap of open length: 2, or 1-4 (default)")
    parser.add_argument("--order", default="confidence", help="parallel, confidence (default), left_to_right or beam")
    parser.add_argument(
        "--beam", type=int, default=5, help="fillings that --order beam and the decoder keep; default 5"
    )
    parser.add_argument("--mix", type=float, help="SBO's weight, 0 to 1; default: as fitted, or else 0.5")
    parser.add_argument("--alternatives", type=int, default=5, help="pieces shown at each place; default %(default)s")
    parser.add_argument("--heads", default="mixture", help="mixture, of MLM and SBO (default), or decoder")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each text")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    import spanbert_jax

    words = cli.two_numbers("--words", arguments.words, "-")
    spans = [cli.two_numbers("--span", given, ":") for given in arguments.span or ()]
    infiller = spanbert_jax.load(arguments.checkpoint, arguments.vocab).infiller
    texts = [arguments.text] if arguments.text is not None else cli.lines_of_standard_input()
    found = infiller.infill(
        texts,
        [spans] * len(texts) if spans else None,
        words,
        arguments.order,
        arguments.beam,
        arguments.mix,
        arguments.alternatives,
        arguments.heads,
    )
    console = Console(highlight=False, soft_wrap=True)
    for filled in found:
        if arguments.json:
            print(json.dumps(filled.to_json(), ensure_ascii=False))
        else:
            show(console, filled, infiller.heads if arguments.heads == "mixture" else (arguments.heads,))


def show(console: Console, filled: "Infilled", heads: tuple[str, ...]) -> None:
    """Prints the text with the fillings in colour; then for each piece its alternatives with each head's probability,
    and the fillings of other lengths."""
    text = cli.coloured_text(filled.text)
    for gap in filled.gaps:
        text.stylize(FILLED, gap.start, gap.end)
    console.print(text)
    for gap in filled.gaps:
        show_gap(console, gap, heads)
    console.print()


def show_gap(console: Console, gap: "FilledGap", heads: tuple[str, ...]) -> None:
    """Prints a line for each piece, and one for the other fillings."""
    console.print(Text.assemble("  ", (f" {gap.text} ", FILLED), f"  log p {gap.log_probability:.2f}"))
    for piece in gap.pieces:
        others = [one for one in piece.alternatives if one.piece != piece.piece]
        shown = "  ".join(f"{one.piece} {one.probability:.1%}" for one in others)
        console.print(Text.assemble(f"    {piece.step + 1}. ", (piece.piece, "bold"), f"  {odds(piece, heads)}"))
        if shown:
            console.print(Text(f"       {shown}", style="bright_black"))
    if gap.others:
        shown = "  ".join(f"‹{one.text}› {one.score:.2f}" for one in gap.others[:5])
        console.print(Text(f"    score {gap.score:.2f}; others: {shown}", style="bright_black"))


def odds(piece: "PieceChoice", heads: tuple[str, ...]) -> str:
    """The probabilities of a piece: of the mixture, and of each head."""
    by_head = [
        f"{name.upper()} {piece.heads[name]:.1%}" if name in piece.heads else f"{name.upper()} -" for name in heads
    ]
    return f"{piece.probability:.1%}" + (f" ({', '.join(by_head)})" if len(heads) > 1 else "")


if __name__ == "__main__":
    cli.run(main)
