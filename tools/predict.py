"""Predicts with a fine-tuned model for new examples.

    python tools/predict.py --checkpoint runs/squad --input questions.json --output predictions.json
    echo "A film to see twice." | python tools/predict.py --checkpoint runs/sst2

Without --input, standard input is read: the content of an input file, or, for a task with one text, plain text with one
example on each line. Without --output, JSON lines are printed. An output named .jsonl gets JSON lines (offsets, scores,
text); an output with any other name gets the official scorer's format.

Invariant: every example gets one prediction, in the order of the input.
"""

import argparse
import json
import sys
from pathlib import Path

from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a fine-tuning run's workdir (its best checkpoint)"
    )
    parser.add_argument("--input", help="a file as for training, whose labels may be missing; default: standard input")
    parser.add_argument("--output", type=Path, help="default: JSON lines on standard output")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from spanbert_jax.serving.answers import open_answerer
    from spanbert_jax.serving.prediction_files import write_for_scorer, write_jsonl
    from spanbert_jax.serving.weights import open_weights
    from spanbert_jax.tasks.example_files import Contents

    output = arguments.output
    if output is not None:
        make_directory(output.parent, "--output")
        if output.is_dir():
            raise UserError(f"{output} is a directory; name a file with --output")
    with open_weights(arguments.checkpoint) as weights:
        answerer = open_answerer(weights)
    source = arguments.input or Contents("standard input", sys.stdin.buffer.read())
    examples, predictions = answerer.answer_source(source, "predict", sys.stderr.isatty())
    if output is None:
        for prediction in predictions:
            print(json.dumps(prediction, ensure_ascii=False))
        return
    if output.suffix == ".jsonl":
        write_jsonl(predictions, output)
    else:
        write_for_scorer(answerer.task, examples, predictions, output.parent, output.name)
    print(f"{len(predictions):,} predictions in {output}")


if __name__ == "__main__":
    cli.run(main)
