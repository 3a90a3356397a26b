"""Makes this directory's checkpoints and numbers with an earlier revision; README.md says how it was called.

    cd CHECKOUT_OF_THE_REVISION && PYTHONPATH=. python THIS_FILE OUTPUT

The imports below are those of revisions 92bcfaa and 2d19632, whose modules lay elsewhere.
"""

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
PRETRAINING = {
    "corpus.files": str(HERE / "corpus.txt"),
    "corpus.held_out": 0.2,
    "corpus.workers": 1,
    "tokenizer.kind": "wordpiece",
    "tokenizer.vocab_file": str(HERE / "vocab.txt"),
    "data.block_length": 48,
    "data.lengths": 2,
    "model.layers": 2,
    "model.embed": 16,
    "model.heads": 2,
    "model.mlp": 32,
    "model.max_length": 48,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.init_std": 0.2,
    "model.span_offset_embed": 8,
    "optimizer.learning_rate": 0.005,
    "optimizer.warmup_steps": 2,
    "train.batch_size": 8,
    "train.steps": 8,
    "train.log_every": 1,
    "train.eval_every": 4,
    "train.checkpoint_every": 8,
}
CLASSIFIER = {
    "data.train": str(HERE / "train.jsonl"),
    "data.dev": str(HERE / "dev.jsonl"),
    "data.block_length": 48,
    "data.lengths": 2,
    "classification.name": "custom",
    "finetuning.epochs": 6,
    "finetuning.eval_every_epochs": 3,
    "model.init_std": 0.2,
    "optimizer.learning_rate": 0.01,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 100,
    "corpus.workers": 1,
}


def run(config: str, workdir: Path, fields: dict[str, Any]) -> None:
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "spanbert_jax.main", "--config", f"configs/{config}.py", "--workdir", str(workdir)]
    subprocess.run([*command, *flags], check=True)


def tool(name: str, *arguments: object) -> None:
    subprocess.run([sys.executable, f"tools/{name}.py", *map(str, arguments)], check=True)


def logged(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without speeds."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    speeds = ("per_second", "per_step", "input_wait", "mfu")
    return [{name: value for name, value in row.items() if not name.endswith(speeds)} for row in rows]


def predictions(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def computed(workdir: Path) -> dict[str, Any]:
    """Hidden states [2, 12, embed] and the logits of the checkpoint's head for two fixed rows, the second padded."""
    from spanbert_jax.tasks.inference import functions
    from spanbert_jax.tasks.weights import open_weights

    with open_weights(workdir) as weights:
        params, _ = weights.load()
    vocab_size = weights.tokenizer.vocab_size
    ids = np.random.default_rng(0).integers(5, vocab_size, (2, 12)).astype(np.int32)
    lengths, types = np.array([12, 7], np.int32), np.zeros_like(ids)
    made = functions(weights.config, params, vocab_size, len(weights.labels))
    values = {name: np.asarray(made[name](params, ids, lengths, types), np.float64) for name in ("encode", "predict")}
    values["encode"][1, 7:] = 0  # behind a row's end nothing is promised
    if values["predict"].ndim == 3:  # of MLM: the highest logit of each position
        values["predict"] = values["predict"].max(-1)
        values["predict"][1, 7:] = 0
    return {"input_ids": ids.tolist(), **{name: np.round(value, 6).tolist() for name, value in values.items()}}


def batches(fields: dict[str, Any], data: Path, steps: int) -> list[dict[str, str]]:
    """sha256 of every array of every batch."""
    from spanbert_jax.data.blocks import open_blocks
    from spanbert_jax.data.input import train_batches

    from spanbert_jax.config import from_dict
    from spanbert_jax.text.tokenizer import load_tokenizer

    config = importlib.import_module("configs.tiny").get_config()
    config.update_from_flattened_dict(fields)
    made = train_batches(
        from_dict(config.to_dict()),
        open_blocks(data / "blocks", "train"),
        load_tokenizer(data / "tokenizer"),
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        0,
        steps,
    )
    return [
        {name: hashlib.sha256(np.asarray(value).tobytes()).hexdigest()[:16] for name, value in batch.items()}
        for batch in made
    ]


def trained_vocabulary() -> str:
    """The fingerprint of a SentencePiece vocabulary of 400 pieces, trained on the lines of the corpus."""
    from spanbert_jax.text.tokenizer import train_sentencepiece

    lines = [line for line in (HERE / "corpus.txt").read_text().splitlines() if line]
    return train_sentencepiece(lines, "unigram", 400).fingerprint


def keep(workdir: Path, target: Path) -> None:
    """A workdir with a checkpoint of parameters alone, its vocabulary and its config.json.

    The parameters are drawn anew, wide enough that every text gets an answer of its own: after so few steps the trained
    ones give all texts about the same.
    """
    from spanbert_jax.training import checkpoint as checkpoints

    found = checkpoints.find_checkpoint(epath.Path(workdir))
    rng = np.random.default_rng(1)

    def draw(path: tuple[Any, ...], leaf: np.ndarray) -> np.ndarray:
        return rng.normal(float(path[-1].key == "scale"), 0.6, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, checkpoints.read_params(found))
    folder = "best" if found.parent.name == "best" else "checkpoints"
    metadata = checkpoints.read_metadata(found)
    checkpoints.write_params(epath.Path(target) / folder, params, metadata, int(found.name))
    shutil.copy(workdir / "config.json", target)
    shutil.copytree(workdir / "tokenizer", target / "tokenizer")


def keep_checkpoints(work: Path, output: Path) -> None:
    for name in ("pretrained", "classifier"):
        keep(work / name, output / name)
        (output / name / "computed.json").write_text(json.dumps(computed(output / name)) + "\n")
    answers = work / "answers.jsonl"
    tool("predict", "--checkpoint", output / "classifier", "--input", HERE / "dev.jsonl", "--output", answers)
    (output / "classifier" / "predictions.json").write_text(json.dumps(predictions(answers), indent=1) + "\n")


def main(output: Path) -> None:
    work = output / "work"
    before_lengths = not hasattr(importlib.import_module("spanbert_jax.config").DataConfig, "lengths")
    for fields in (PRETRAINING, CLASSIFIER):
        if before_lengths:
            lengths = fields.pop("data.lengths")
            if fields is CLASSIFIER:
                fields["finetuning.lengths"] = lengths
    run("tiny", work / "pretrained", PRETRAINING)
    run("classify", work / "classifier", CLASSIFIER | {"init_from": str(work / "pretrained")})
    keep_checkpoints(work, output)
    if before_lengths:
        return
    tool("convert_to_pytorch", "--checkpoint", work / "pretrained", "--output", work / "export")
    tensors = load_file(work / "export" / "model.safetensors")
    data = json.loads((work / "pretrained" / "data" / "blocks" / "metadata.json").read_text())
    numbers = {
        "pretraining": {
            "fields": PRETRAINING | {"corpus.files": "corpus.txt", "tokenizer.vocab_file": "vocab.txt"},
            "tokenizer": data["tokenizer_fingerprint"],
            "trained_vocabulary": trained_vocabulary(),
            "blocks": data["fingerprint"],
            "batches": batches(PRETRAINING, work / "pretrained" / "data", 8),
            "metrics": logged(work / "pretrained"),
        },
        "finetuning": {
            "fields": CLASSIFIER | {"data.train": "train.jsonl", "data.dev": "dev.jsonl"},
            "metrics": logged(work / "classifier"),
            "predictions": predictions(work / "classifier" / "predictions.jsonl"),
        },
        "export": {
            name: [list(array.shape), round(float(np.linalg.norm(array)), 6)] for name, array in sorted(tensors.items())
        },
    }
    (output / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
