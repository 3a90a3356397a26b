"""Scores texts: how likely each piece is to the model that sees the rest of the text.

    python tools/score.py --checkpoint runs/tiny "The cat sat on the mat."
    python tools/score.py --checkpoint runs/tiny --span 4:7 --rest-of-word "The cat sat on the mat."
    python tools/score.py --checkpoint runs/tiny --json < texts.txt

The sum over the pieces is the pseudo-log-likelihood of the text, in nats. --span scores the pieces of some characters
alone. With --rest-of-word a piece does not see the pieces after it in its word, so that texts with long words compare.
Without a text, each line of standard input is one.

Invariant: each text is printed as it was given, with a space for a tab or a control character, coloured by how unlikely
its pieces are.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from spanbert_jax import cli

if TYPE_CHECKING:
    from spanbert_jax.serving.scoring import Scored

# From so many nats on, a piece is shown so.
COLOURS = ((8.0, "white on red"), (5.0, "black on yellow"), (2.0, "black on green"), (0.0, ""))


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("text", nargs="?", help="a text; default: the lines of standard input")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, or weights that others publish")
    parser.add_argument("--vocab", type=Path, help="the vocabulary of others' weights that have none beside them")
    parser.add_argument("--span", metavar="START:END", help="score the pieces of these characters alone")
    parser.add_argument("--rest-of-word", action="store_true", help="mask the pieces after a piece in its word too")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each text")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    import spanbert_jax

    span = cli.two_numbers("--span", arguments.span, ":") if arguments.span is not None else None
    scorer = spanbert_jax.load(arguments.checkpoint, arguments.vocab).scorer
    texts = [arguments.text] if arguments.text is not None else cli.lines_of_standard_input()
    console = Console(highlight=False, soft_wrap=True)
    for scored in scorer.score(texts, [span] * len(texts), arguments.rest_of_word):
        if arguments.json:
            print(json.dumps(scored.to_json(), ensure_ascii=False))
        else:
            console.print(coloured(scored))


def coloured(scored: "Scored") -> Text:
    """The sum, the mean and the text, and a line of the pieces with their nats."""
    text = cli.coloured_text(scored.text)
    pieces = []
    for piece in scored.pieces:
        style = next(style for least, style in COLOURS if -piece.log_probability >= least or least == 0)
        text.stylize(style, piece.start, piece.end)
        pieces.append(f"{piece.piece} {piece.log_probability:.1f}")
    total = f"{scored.log_probability:9.2f}  {scored.mean:6.2f} a piece  "
    return Text.assemble(total, text, "\n", (f"{'':27}{'  '.join(pieces)}", "bright_black"))


if __name__ == "__main__":
    cli.run(main)
