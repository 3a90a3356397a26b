"""Predictions of a fine-tuned model for new examples.

    python tools/predict.py --checkpoint runs/squad --input questions.json --output predictions.json
    echo "A film to see twice." | python tools/predict.py --checkpoint runs/sst2

Without --input, plain text is read from standard input, an example a line, where the task allows it; without --output,
JSON lines are printed. A .jsonl output gets JSON lines (offsets, scores, text); any other name the community's format.

Invariant: every example gets one prediction, in the order of the input, whatever the batches were.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from spanbert_jax import cli
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.files import make_directory
from spanbert_jax.serving.predictor import Predictor, kept_metrics, rows_of, trained_task, warn_of_cuts, write_jsonl
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import Prediction
from spanbert_jax.tasks.registry import AnyTask
from spanbert_jax.training import sharding
from spanbert_jax.training.progress import Stage


def predict(checkpoint: Path, source: str, role: Role) -> tuple[AnyTask, list[Any], list[Prediction]]:
    """(task, examples, predictions) of a data file or TFDS name by the best checkpoint of a run.

    Raises UserError where the checkpoint is no fine-tuned one, or the data cannot be read.
    """
    with open_weights(checkpoint) as weights:
        task = trained_task(weights)
        params, _ = weights.load()
    examples, warnings = task.read(weights.config, source, role, task.learnt)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if role == "dev":
        task.check(examples, source)
    rows = rows_of(task, examples, source, role, None, sys.stderr.isatty())
    warn_of_cuts(rows, examples, source)
    mesh = sharding.make_mesh(Config().mesh)
    with jax.set_mesh(mesh), Stage("Predicting", enabled=sys.stderr.isatty()) as stage:
        predictor = Predictor(task, sharding.batch_sharding(mesh))
        outputs = predictor.outputs(
            predictor.place(params), rows, lambda done: stage.update(done, f"{done * len(rows):,.0f} rows")
        )
    return task, examples, task.decode(examples, rows, outputs, kept_metrics(weights.metadata))


def _write(task: AnyTask, examples: list[Any], predictions: list[Prediction], output: Path) -> None:
    """The community's file as `output`, and what belongs to it (SQuAD 2.0's null_odds.json) beside it."""
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        written = task.write(examples, predictions, Path(folder))
        for path in Path(folder).iterdir():
            path.replace(output if path == written else output.with_name(path.name))


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a fine-tuning run's workdir (its best checkpoint)"
    )
    parser.add_argument(
        "--input", help="a file as for training, labels may be missing; default: text on standard input"
    )
    parser.add_argument("--output", type=Path, help="default: JSON lines on standard output")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.output is not None:
        make_directory(arguments.output.parent, "--output")
        if arguments.output.is_dir():
            raise UserError(f"{arguments.output} is a directory; name a file with --output")
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.input
        if source is None:
            path = Path(folder) / "standard_input.txt"
            path.write_bytes(sys.stdin.buffer.read())  # a reader that knows lines says what is no UTF-8
            source = str(path)
        task, examples, predictions = predict(arguments.checkpoint, source, "predict")
        if arguments.output is None:
            for prediction in predictions:
                print(json.dumps(prediction, ensure_ascii=False))
            return
        if arguments.output.suffix == ".jsonl":
            write_jsonl(predictions, arguments.output)
        else:
            _write(task, examples, predictions, arguments.output)
    print(f"{len(predictions):,} predictions in {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
