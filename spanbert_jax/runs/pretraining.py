"""SpanBERT pre-training, from raw text to a report.

Invariant: every stage finds what an earlier start finished and goes on from it: vocabulary, blocks, checkpoint.
"""

import os
import sys
from typing import Any

import jax
import numpy as np
from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.corpus import blocks as block_data
from spanbert_jax.corpus import masked_batches as input_data
from spanbert_jax.model import pretraining_heads
from spanbert_jax.runs.prepare import prepare
from spanbert_jax.runs.start_from import adopt, initial_params
from spanbert_jax.tasks.pretraining_loss import describe, metrics, objective
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training import flops, loop, sharding
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.step import Batch, BatchSize
from spanbert_jax.training.workdir import claim_workdir, open_workdir


def run(config: Config, path: str, arguments: str) -> bool:
    """Prepares what is missing, trains from where the workdir stands, reports; False where it was asked to stop.

    `arguments` are those of the command line, for the commands that the report ends with.
    """
    config = adopt(config, epath.Path(path))
    sharding.mesh_of(config)  # before hours of preparation, not after them
    workdir = open_workdir(config, path)
    tokenizer, data = prepare(config, workdir)
    claim_workdir(config, workdir)
    train, held_out = (block_data.open_blocks(data / "blocks", split) for split in ("train", "held_out"))
    recipe = make_recipe(config, tokenizer, train, held_out)
    result = loop.run(config, recipe, workdir)
    if jax.process_index() == 0:
        print(report(config, workdir, arguments, result))
    return result.finished


def make_recipe(config: Config, tokenizer: Tokenizer, train: Any, held_out: Any) -> loop.Recipe:
    """Pre-training on the blocks `train`, evaluated on `held_out`."""
    model = pretraining_heads.pretraining_model(config, tokenizer.vocab_size, jax.default_backend())
    commonest = int(np.argmax(train.metadata.piece_counts))
    goal = objective(model, commonest)

    def batch_size(batch: Batch) -> BatchSize:
        rows, length = batch["input_ids"].shape
        one = flops.pretraining_row_flops(config, tokenizer.vocab_size, length)
        return BatchSize(rows, rows * one, f"rows of {length} pieces")

    return loop.Recipe(
        init=lambda key: pretraining_heads.init_params(model, key),
        objective=goal,
        train_batches=lambda layout, first, last: input_data.train_batches(
            config, train, tokenizer, layout, first, last
        ),
        evaluate=loop.summed_evaluation(
            goal,
            lambda layout: input_data.eval_batches(config, held_out, tokenizer, layout, config.train.eval_blocks),
            lambda totals: metrics(totals, config),
        ),
        metrics=lambda totals: metrics(totals, config),
        describe=describe,
        batch_size=batch_size,
        metadata=Metadata(
            task="pretraining",
            step=0,
            config=config,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            data_fingerprint=train.metadata.fingerprint,
        ),
        initial_params=initial_params(config, lambda: pretraining_heads.init_params(model, jax.random.key(0))),
    )


def report(config: Config, workdir: epath.Path, arguments: str, result: loop.Result) -> str:
    """What a run ends with: where everything is, how good it is, what to do next."""
    lines = ["", f"Checkpoint:  {workdir}/checkpoints/{result.step}" if result.step else "No checkpoint yet."]
    if not result.finished:
        return "\n".join(
            [*lines, f"Stopped at step {result.step:,} of {config.train.steps:,}; the same command goes on."]
        )
    held_out = {name.removeprefix("held_out/"): value for name, value in result.evaluation.items()}
    for head in pretraining_heads.trained_heads(config):
        kind, of = ("_mask", " on [MASK] pieces") if f"{head.name}_loss_mask" in held_out else ("", "")
        lines.append(
            f"Held-out {head.title}: loss {held_out[f'{head.name}_loss']:.3f}, "
            f"accuracy{of} {held_out[f'{head.name}_accuracy{kind}']:.1%} "
            f"(always the commonest piece: {held_out[f'{head.name}_commonest{kind}']:.1%})"
        )
    python = os.path.relpath(sys.executable) if sys.executable.startswith(os.getcwd()) else sys.executable
    return "\n".join(
        [
            *lines,
            "",
            "Next:",
            f"  See the curves:           {python} -m tensorboard.main --logdir {workdir}",
            f"  See what it is asked:     {python} tools/show_masking.py {arguments}",
            f"  Hand it to PyTorch users: {python} tools/convert_to_pytorch.py --checkpoint {workdir} --output export",
            f"  Pre-train on your text:   {python} -m spanbert_jax.main --config configs/base.py "
            "--config.corpus.files='data/*.txt' --workdir runs/mine",
        ]
    )
