"""The metrics of a fine-tuned model, or of a file of predictions, on labelled data.

    python tools/evaluate.py --checkpoint runs/squad --data dev-v1.1.json

Invariant: the numbers are those of the run's own evaluation, by the official definitions in spanbert_jax/metrics.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import logging

from spanbert_jax.errors import UserError
from tools.predict import predict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a fine-tuning run's workdir (its best checkpoint)"
    )
    parser.add_argument("--data", required=True, help="a labelled file, or a TFDS name")
    logging.set_verbosity(logging.ERROR)
    arguments = parser.parse_args()
    try:
        task, examples, predictions = predict(arguments.checkpoint, arguments.data, "dev")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(examples):,} examples of {arguments.data}")
    for name, value in task.metrics(examples, predictions).items():
        print(f"{name:24}{value:10.4f}{'   <' if name == task.best else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
