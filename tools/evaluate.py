"""The metrics of a fine-tuned model, or of a file of predictions, on labelled data.

    python tools/evaluate.py --checkpoint runs/squad --data dev-v1.1.json
    python tools/evaluate.py --checkpoint runs/squad --data dev-v1.1.json --predictions predictions.json

--predictions takes what tools/predict.py writes as JSON lines, or SQuAD's {id: text}; the checkpoint then only says
which task it is.

Invariant: the numbers are those of the run's own evaluation, by the official definitions in spanbert_jax/metrics.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.serving.predictor import trained_task
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.tasks.example_files import field, read_lines, read_records
from spanbert_jax.tasks.finetuning import Prediction
from spanbert_jax.tasks.registry import AnyTask
from tools.predict import predict


def read_predictions(path: Path, examples: list[Any], may_lack: bool) -> list[Prediction]:
    """The predictions for the examples, in their order; those for other ids are counted in a warning.

    may_lack: SQuAD 1.1's scorer counts a question without a prediction as wrong. Raises UserError where one is missing
    otherwise, or all are, or an id comes twice.
    """
    found: dict[str, Prediction] = {}
    for place, record in read_records(path, read_lines(path)):
        if "id" not in record and all(isinstance(text, str) for text in record.values()):
            found |= {name: {"id": name, "text": text} for name, text in record.items()}
            continue
        name = str(field(record, "id", (str, int), place))
        if name in found:
            raise UserError(f"{place}: a second prediction for {name!r}; keep one")
        found[name] = {**record, "id": name}
    wanted = [str(example.id) for example in examples]
    missing = [name for name in wanted if name not in found]
    if missing and (not may_lack or len(missing) == len(wanted)):
        raise UserError(
            f"{path}: lacks {len(missing):,} of the {len(wanted):,} ids in the data, the first {missing[0]!r}; give "
            "the predictions that were made for it"
        )
    others = sorted(set(found) - set(wanted))
    for what, ids in (("no prediction", missing), ("a prediction, and are not in the data", others)):
        if ids:
            print(f"warning: {path}: {len(ids):,} ids have {what}; the first: {ids[0]}", file=sys.stderr)
    return [found[name] for name in wanted if name in found]


def evaluate(checkpoint: Path, data: str, predictions: Path | None) -> tuple[AnyTask, list[Any], dict[str, float]]:
    """(task, examples, metrics); raises UserError where a file is not what it should be."""
    if predictions is None:
        task, examples, made = predict(checkpoint, data, "dev")
        return task, examples, task.metrics(examples, made)
    with open_weights(checkpoint) as weights:
        task = trained_task(weights)
    examples, _ = task.read(weights.config, data, "dev")
    task.check(examples, data)
    qa = task.task == "question_answering" and not weights.config.question_answering.unanswerable
    made = read_predictions(predictions, examples, may_lack=qa)
    try:
        return task, examples, task.metrics(examples, made)
    except (KeyError, ValueError) as error:
        raise UserError(f"{predictions}: not what predict.py writes for {task.task} ({error!r})") from error


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
    sys.exit(main())
