"""A pre-training run, from raw text to a report.

Invariant: a run goes on from the vocabulary, the blocks and the checkpoint that an earlier start has finished.
"""

import functools
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.corpus import blocks as block_data
from spanbert_jax.corpus import masked_batches
from spanbert_jax.corpus.blocks import Blocks
from spanbert_jax.corpus.neighbours import count_neighbours, evaluated_blocks, guess_masked
from spanbert_jax.model import pretraining_heads
from spanbert_jax.runs.devices import check_devices
from spanbert_jax.runs.prepare import prepare
from spanbert_jax.runs.start_from import StartingWeights, adopt, initial_params
from spanbert_jax.tasks.pretraining_loss import describe, metrics, objective
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training import flops, loop
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.progress import Show
from spanbert_jax.training.step import Batch, BatchSize
from spanbert_jax.training.workdir import claim_workdir, open_workdir
from spanbert_jax.training.workdir_lock import running_alone


def run(config: Config, path: str, arguments: str) -> bool:
    """Makes missing vocabulary and blocks, trains from the newest checkpoint, and reports.

    path: the workdir. arguments: those of the command line, for the commands at the end of the report. Returns False
    where the run was asked to stop. Raises UserError where configuration, text, weights or workdir do not fit together
    or cannot be read.
    """
    with StartingWeights(config) as start:
        config = adopt(config, epath.Path(path), start)
        check_devices(config)  # before hours of preparation
        workdir = open_workdir(config, path)
        with running_alone(workdir):
            tokenizer, data = prepare(config, workdir, start)
            train, held_out = (block_data.open_blocks(data / "blocks", split) for split in ("train", "held_out"))
            recipe = make_recipe(config, tokenizer, train, held_out, start)
            result = loop.run(config, recipe, workdir, functools.partial(claim_workdir, config, workdir))
    if jax.process_index() == 0:
        print(report(config, workdir, arguments, result))
    return result.finished


def make_recipe(
    config: Config, tokenizer: Tokenizer, train: Blocks, held_out: Blocks, start: StartingWeights
) -> loop.Recipe:
    """The training loop's recipe for pre-training on the blocks `train` and evaluating on the blocks `held_out`."""
    model = pretraining_heads.pretraining_model(config, tokenizer.vocab_size, jax.default_backend())
    commonest = int(np.argmax(train.metadata.piece_counts))
    goal = objective(model, commonest)

    def batch_size(batch: Batch) -> BatchSize:
        rows, length = batch["input_ids"].shape
        one = flops.pretraining_row_flops(config, tokenizer.vocab_size, length)
        return BatchSize(rows, rows * one, f"rows of {length} pieces")

    summed = loop.summed_evaluation(
        goal,
        lambda layout: masked_batches.eval_batches(config, held_out, tokenizer, layout, config.train.eval_blocks),
        lambda totals: metrics(totals, config),
        rows=masked_batches.evaluated_rows(held_out, config.train.eval_blocks),
    )
    order = functools.cache(lambda: masked_batches.train_order(config, train))
    guessed = functools.cache(lambda: neighbour_metrics(config, tokenizer, train, held_out))  # the masks never change

    def evaluate(params: Any, layout: jax.sharding.NamedSharding, show: Show) -> dict[str, float]:
        beside = guessed() if jax.process_index() == 0 else {}  # only process 0 reports
        return summed(params, layout, show) | {f"held_out/{name}": value for name, value in beside.items()}

    return loop.Recipe(
        init=lambda key: pretraining_heads.init_params(model, key),
        objective=goal,
        train_batches=lambda layout, first, last: masked_batches.train_batches(
            config, train, tokenizer, layout, first, last
        ),
        evaluate=evaluate,
        metrics=lambda totals: metrics(totals, config),
        describe=describe,
        batch_size=batch_size,
        blocks=lambda step: order().batch(step)[0],
        metadata=Metadata(
            task="pretraining",
            step=0,
            config=config,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            data_fingerprint=train.metadata.fingerprint,
        ),
        initial_params=initial_params(config, start, lambda: pretraining_heads.init_params(model, jax.random.key(0))),
    )


def neighbour_metrics(config: Config, tokenizer: Tokenizer, train: Blocks, held_out: Blocks) -> dict[str, float]:
    """Metrics of the guess from visible neighbours (corpus/neighbours.py) on held-out pieces that became [MASK].

    For each trained head NAME that predicts pieces there are NAME_neighbours_mask, the accuracy, and
    NAME_neighbours_loss_mask, in nats.
    """
    heads = [head for head in pretraining_heads.trained_heads(config) if not head.classes]
    limit = evaluated_blocks(held_out, config.train.eval_blocks)
    batches = masked_batches.local_eval_batches(config, held_out, tokenizer, limit)
    fields = {head.name: head.weights for head in heads}
    guessed = guess_masked(count_neighbours(train, tokenizer), batches, set(fields.values()))
    found = {}
    for name, field in fields.items():
        if field in guessed:
            found[f"{name}_neighbours_mask"], found[f"{name}_neighbours_loss_mask"] = guessed[field]
    return found


def report(config: Config, workdir: epath.Path, arguments: str, result: loop.Result) -> str:
    """The text at the end of a run: the checkpoint, the held-out metrics, and commands to go on with."""
    saved = f"Checkpoint:  {workdir}/checkpoints/{result.saved}"
    lines = ["", "No checkpoint yet." if result.saved is None else saved]
    if not result.finished:
        return "\n".join(
            [*lines, f"Stopped at step {result.step:,} of {config.train.steps:,}; the same command goes on."]
        )
    held_out = {name.removeprefix("held_out/"): value for name, value in result.evaluation.items()}
    for head in pretraining_heads.trained_heads(config):
        lines += _head_lines(head, held_out)
    python = os.path.relpath(sys.executable) if sys.executable.startswith(os.getcwd()) else sys.executable
    python, there = shlex.quote(python), shlex.quote(str(workdir))
    return "\n".join(
        [
            *lines,
            "",
            "Next:",
            f"  See the curves:           {python} -m tensorboard.main --logdir {there}",
            f"  See what it is asked:     {python} tools/show_masking.py {arguments}",
            f"  Hand it to PyTorch users: {python} tools/convert_to_pytorch.py --checkpoint {there} --output export",
            f"  Pre-train on your text:   {python} -m spanbert_jax.main --config configs/base.py "
            "--config.corpus.files='data/*.txt' --workdir runs/mine",
        ]
    )


def _head_lines(head: pretraining_heads.Head, held_out: Mapping[str, float]) -> list[str]:
    """A head's held-out losses and accuracy on pieces that became [MASK], or on all pieces or rows where none did; and
    those of one or two guesses without a model."""
    kind, of = ("_mask", " on [MASK] pieces") if f"{head.name}_loss_mask" in held_out else ("", "")

    def value(measure: str) -> float:
        return held_out[f"{head.name}_{measure}{kind}"]

    guesses = f"always the commonest {'label' if head.classes else 'piece'}: {value('commonest'):.1%}"
    if f"{head.name}_neighbours{kind}" in held_out:
        guesses += f"; from the visible neighbours: {value('neighbours'):.1%}, loss {value('neighbours_loss'):.3f}"
    further = "".join(f", {part} {held_out[f'{head.name}_{part}_loss']:.3f}" for part in head.further)
    return [
        f"Held-out {head.title}{of}: loss {value('loss'):.3f}{further}, accuracy {value('accuracy'):.1%}",
        f"  without a model: {guesses}",
    ]
