"""Prints the metrics of a fine-tuned model, or of a file of predictions, on labelled data.

    python tools/evaluate.py --checkpoint runs/squad --data dev-v1.1.json
    python tools/evaluate.py --checkpoint runs/squad --data dev-v1.1.json --predictions predictions.json

--predictions takes the JSON lines that tools/predict.py writes, or SQuAD's {id: text}. The checkpoint then only
names the task.

Invariant: the numbers are those of the run's own evaluation, by the official definitions in spanbert_jax/metrics.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spanbert_jax import cli, json_files
from spanbert_jax.errors import UserError, shortened

if TYPE_CHECKING:
    from spanbert_jax.tasks.finetuning import Identified
    from spanbert_jax.tasks.registry import AnyTask


def evaluate(
    checkpoint: Path, data: str, predictions: Path | None
) -> tuple["AnyTask", list["Identified"], dict[str, float]]:
    """(task, examples, metrics); raises UserError where data or predictions cannot be read or do not fit the task."""
    from spanbert_jax.serving.answers import open_answerer
    from spanbert_jax.serving.prediction_files import read_predictions
    from spanbert_jax.serving.task_model import trained_task
    from spanbert_jax.serving.weights import open_weights

    with open_weights(checkpoint) as weights:
        if predictions is None:
            answerer = open_answerer(weights)
            examples, made = answerer.answer_source(data, "dev", sys.stderr.isatty())
            return answerer.task, examples, answerer.task.metrics(examples, made)
        task = trained_task(weights)
    examples, warnings = task.read(weights.config, data, "dev")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    task.check(examples, data)
    qa = task.task == "question_answering" and not weights.config.question_answering.unanswerable
    made = read_predictions(predictions, examples, may_lack=qa)
    try:
        return task, examples, task.metrics(examples, made)
    except json_files.OTHER_SHAPE as error:
        raise UserError(
            f"{predictions}: fields are missing or wrong for {task.task} ({shortened(repr(error))}); give the file "
            "that tools/predict.py wrote"
        ) from error


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a fine-tuning run's workdir (its best checkpoint)"
    )
    parser.add_argument("--data", required=True, help="a labelled file, or a TFDS name")
    parser.add_argument("--predictions", type=Path, help="score this file instead of predicting")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _print_metrics(arguments))


def _print_metrics(arguments: argparse.Namespace) -> None:
    task, examples, metrics = evaluate(arguments.checkpoint, arguments.data, arguments.predictions)
    print(f"{len(examples):,} examples of {arguments.data}")
    for name, value in metrics.items():
        print(f"{name:24}{value:10.4f}{'   <' if name == task.best else ''}")


if __name__ == "__main__":
    cli.run(main)
