"""Writes predictions as JSON lines and as the official scorers' files, and reads both again.

Invariant: a file has its name only when it is whole.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from spanbert_jax.errors import UserError, quoted, shortened
from spanbert_jax.files import disk_errors, written_aside
from spanbert_jax.tasks.example_files import field, read_lines, read_records
from spanbert_jax.tasks.finetuning import ExampleT, FineTuning, Identified, ModelT, Prediction


def write_jsonl(predictions: Sequence[Prediction], path: Path) -> None:
    """Writes each prediction as one line of JSON."""
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(prediction, ensure_ascii=False) + "\n")


def write_for_scorer(
    task: FineTuning[ExampleT, ModelT],
    examples: Sequence[ExampleT],
    predictions: Sequence[Prediction],
    directory: Path,
    name: str = "",
) -> Path:
    """Writes the official scorer's file, and its companions (SQuAD 2.0's null_odds.json), into `directory`.

    name: of the file; "": the task's own. Returns the file's path. Raises UserError where the disk is full.
    """
    with disk_errors(directory / name), tempfile.TemporaryDirectory(prefix=".predictions.", dir=directory) as folder:
        written = task.write(examples, predictions, Path(folder))
        output = directory / (name or written.name)
        for path in Path(folder).iterdir():
            path.replace(output if path == written else directory / path.name)
    return output


def read_predictions(path: Path, examples: Sequence[Identified], may_lack: bool) -> list[Prediction]:
    """The predictions for the examples, in the examples' order, from JSON lines or from SQuAD's {id: text}.

    A warning on stderr counts the ids without a prediction and the predictions for other ids. may_lack: whether
    predictions may be missing, as in SQuAD 1.1, whose scorer counts a question without a prediction as wrong.

    Raises UserError where a prediction is missing that may not be, where all are missing, or an id comes twice.
    """
    found: dict[str, Prediction] = {}
    for place, record in read_records(path, read_lines(path)):
        if "id" not in record and all(isinstance(text, str) for text in record.values()):
            found |= {name: {"id": name, "text": text} for name, text in record.items()}
            continue
        name = str(field(record, "id", (str, int), place))
        if name in found:
            raise UserError(f"{place}: a second prediction for {quoted(name)}; keep one")
        found[name] = {**record, "id": name}
    wanted = [str(example.id) for example in examples]
    missing = [name for name in wanted if name not in found]
    if missing and (not may_lack or len(missing) == len(wanted)):
        raise UserError(
            f"{path}: lacks {len(missing):,} of the {len(wanted):,} ids in the data, the first {quoted(missing[0])}; "
            "give predictions that were made for this data"
        )
    others = sorted(set(found) - set(wanted))
    for what, ids in (("no prediction", missing), ("a prediction, and are not in the data", others)):
        if ids:
            print(f"warning: {path}: {len(ids):,} ids have {what}; the first: {shortened(ids[0])}", file=sys.stderr)
    return [found[name] for name in wanted if name in found]
