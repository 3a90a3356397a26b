"""One cell of ablation.py, in a process of its own: pre-training, its held-out loss, and the fine-tunings after it.

Invariant: the held-out loss of every cell is that on the same blocks with the same masks, geometric spans in one
sequence, whatever the cell was trained on.
"""

import contextlib
import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.ablation_grid import LENGTHS
from benchmarks.finetuning_material import made_config, prepare
from benchmarks.finetuning_side import cpu_seconds, train
from benchmarks.worker import Handler, Json
from spanbert_jax.batch import MASK
from spanbert_jax.config import Config, MaskingConfig
from spanbert_jax.corpus.blocks import open_blocks
from spanbert_jax.corpus.masked_batches import local_eval_batches
from spanbert_jax.corpus.neighbours import count_neighbours, guess_masked
from spanbert_jax.model import pretraining_heads
from spanbert_jax.runs import pretraining
from spanbert_jax.serving.weights import open_weights
from spanbert_jax.text.tokenizer import load_tokenizer


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: "config" and "fields" of the pre-training, "workdir", "held_out" (a directory of blocks of single
    sequences), and "tasks": name -> the keys of `finetuning_material.prepare` but "init". Without "workdir" nothing is
    trained, and the guess from the visible neighbours takes the model's place. A request is answered with "loss" and
    "accuracy" by length of span, the "metrics" of the tasks, those of a "guess", and "cpu_seconds"."""

    def run(_: Json) -> Json:
        config, blocks = made_config(spec["config"], spec["fields"]), Path(spec["held_out"])
        if "workdir" not in spec:
            return {**guessed(config, blocks), "metrics": {}, "guess": {}, "cpu_seconds": cpu_seconds()}
        workdir = Path(spec["workdir"])
        with contextlib.redirect_stdout(io.StringIO()):
            pretraining.run(config, str(workdir), "")
        metrics, guesses = {}, {}
        for name, task in spec["tasks"].items():
            with contextlib.redirect_stdout(io.StringIO()):
                material = prepare({**task, "init": str(workdir)})
                predictions = train(material).predict()
            found = material.task.metrics(material.examples, predictions)
            metrics[name], guesses[name] = found[material.task.best], material.baseline[material.task.best]
        found = held_out(workdir, blocks)
        return {**found, "metrics": metrics, "guess": guesses, "cpu_seconds": cpu_seconds()}

    return {"process": os.getpid()}, run


def held_out(workdir: Path, blocks: Path) -> Json:
    """The masked language model on pieces that became [MASK]: "loss" in nats and "accuracy" in percent, each a list
    with a value for all pieces and one for each of `LENGTHS`, the length of the masked span that the piece is in."""
    with open_weights(workdir) as weights:
        params, _ = weights.load()
        trained, tokenizer = weights.config, weights.tokenizer
    corpus = dataclasses.replace(trained.corpus, pairs=False)
    config = dataclasses.replace(trained, masking=MaskingConfig(), corpus=corpus)
    model = pretraining_heads.pretraining_model(config, tokenizer.vocab_size, jax.default_backend())
    heads = (pretraining_heads.MLM,)
    lose = jax.jit(lambda params, batch: pretraining_heads.losses(model, params, batch, heads=heads)["mlm"])
    sums = np.zeros((len(LENGTHS), 3))  # pieces, losses, right ones
    for batch in local_eval_batches(config, open_blocks(blocks, "held_out"), tokenizer, 0):
        found = lose(params, batch)
        for place, here in enumerate(by_length(batch)):
            sums[place] += here.sum(), np.asarray(found.loss)[here].sum(), np.asarray(found.right)[here].sum()
    count, loss, right = np.vstack([sums.sum(0), sums]).T
    return {"loss": (loss / count).tolist(), "accuracy": (100 * right / count).tolist(), "pieces": count.tolist()}


def guessed(config: Config, blocks: Path) -> Json:
    """`held_out` of the guess from the visible neighbours, which are counted in the training blocks beside."""
    tokenizer = load_tokenizer(blocks.parent / "tokenizer")
    batches = []
    for batch in local_eval_batches(config, open_blocks(blocks, "held_out"), tokenizer, 0):
        bins = np.asarray(by_length(batch), np.float32)
        weights = {f"length_{place}": here for place, here in enumerate(bins)}
        batches.append({**batch, **weights, "all": bins.sum(0)})
    names = ["all", *(f"length_{place}" for place in range(len(LENGTHS)))]
    found = guess_masked(count_neighbours(open_blocks(blocks, "train"), tokenizer), batches, names)
    accuracy, loss = zip(*(found[name] for name in names), strict=True)
    pieces = [float(sum(batch[name].sum() for batch in batches)) for name in names]
    return {"loss": list(loss), "accuracy": [100 * share for share in accuracy], "pieces": pieces}


def by_length(batch: dict[str, Any]) -> list[np.ndarray]:
    """bool [rows, slots] for each of `LENGTHS`: the slots of pieces that became [MASK] in spans of such a length."""
    used = (batch["masked_weights"] > 0) & (batch["replacement"] == MASK)
    bins = np.searchsorted([last for _, last in LENGTHS], run_lengths(batch))
    return [used & (bins == place) for place in range(len(LENGTHS))]


def run_lengths(batch: dict[str, Any]) -> np.ndarray:
    """int [rows, slots]: the number of masked pieces side by side that the slot's piece belongs to; 1 in unused
    slots."""
    positions, used = batch["masked_positions"], batch["masked_weights"] > 0
    follows = np.zeros(positions.shape, bool)
    follows[:, 1:] = (np.diff(positions, axis=1) == 1) & used[:, 1:]
    number = np.cumsum(~follows, axis=1) - 1  # of the slot's run in its row
    sizes = np.zeros(positions.shape, int)
    for row in range(len(positions)):
        sizes[row] = np.bincount(number[row], minlength=positions.shape[1])[number[row]]
    return sizes
