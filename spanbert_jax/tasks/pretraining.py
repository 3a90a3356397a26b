"""SpanBERT pre-training, from raw text to a report.

Invariant: every stage finds what an earlier start finished and goes on from it: vocabulary, blocks, checkpoint.
"""

import dataclasses
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from spanbert_jax.config import Config, flatten, max_masked
from spanbert_jax.data import blocks as block_data
from spanbert_jax.data import input as input_data
from spanbert_jax.errors import UserError
from spanbert_jax.model import heads
from spanbert_jax.tasks.pretraining_loss import describe, metrics, objective
from spanbert_jax.text import tokenizer as tokenizers
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training import flops, loop, sharding
from spanbert_jax.training.progress import Stage
from spanbert_jax.training.workdir import claim_workdir, open_workdir


def run(config: Config, path: str, config_file: str) -> bool:
    """Prepares what is missing, trains from where the workdir stands, reports; False where it was asked to stop.

    `config_file` is named in the commands that the report ends with.
    """
    sharding.mesh_of(config)  # before hours of preparation, not after them
    workdir = open_workdir(config, path)
    tokenizer, data = prepare(config, Path(workdir))
    claim_workdir(config, workdir)
    train, held_out = (block_data.open_blocks(data / "blocks", split) for split in ("train", "held_out"))
    task = make_task(config, tokenizer, train, held_out)
    result = loop.run(config, task, workdir)
    if jax.process_index() == 0:
        print(report(config, workdir, config_file, result))
    return result.finished


def make_task(config: Config, tokenizer: Tokenizer, train: Any, held_out: Any) -> loop.Task:
    """Pre-training on the blocks `train`, evaluated on `held_out`."""
    model = heads.pretraining_model(config, tokenizer.vocab_size, jax.default_backend())
    masked, sbo = max_masked(config), config.train.sbo_weight > 0
    row_flops = flops.encoder_flops(config.model, config.data.block_length) + flops.pretraining_head_flops(
        config.model, tokenizer.vocab_size, masked, sbo
    )
    return loop.Task(
        init=lambda key: heads.init_params(model, key),
        objective=objective(model, config.train.sbo_weight, int(np.argmax(train.metadata.piece_counts))),
        train_batches=lambda layout, first, last: input_data.train_batches(
            config, train, tokenizer, layout, first, last
        ),
        eval_batches=lambda layout: input_data.eval_batches(
            config, held_out, tokenizer, layout, config.train.eval_blocks
        ),
        metrics=lambda totals: metrics(totals, config.train.sbo_weight),
        describe=describe,
        row_flops=row_flops,
        metadata={
            "task": "pretraining",
            "config": flatten(config),
            "data_fingerprint": train.metadata.fingerprint,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        },
    )


def prepare(config: Config, workdir: Path) -> tuple[Tokenizer, Path]:
    """Finds or makes the tokenizer and the blocks; returns the tokenizer and the directory of both.

    The first process does the work, the others wait for it. Raises UserError where what is there was made for
    another configuration.
    """
    data = Path(config.data.dir) if config.data.dir else workdir / "data"
    if jax.process_index() == 0:
        if block_data.is_built(data / "blocks"):
            tokenizer = tokenizers.load_tokenizer(data / "tokenizer")
            _check_tokenizer(config, tokenizer, data / "tokenizer")
            block_data.check_blocks(block_data.read_metadata(data / "blocks"), config, tokenizer)
        else:
            tokenizer = _make_tokenizer(config, data / "tokenizer")
            with Stage("Building blocks") as stage:
                block_data.build_blocks(config, tokenizer, data / "blocks", _reporter(stage))
        _copy_tokenizer(data / "tokenizer", workdir / "tokenizer")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the tokenizer and the blocks are there")
    return tokenizers.load_tokenizer(data / "tokenizer"), data


def _reporter(stage: Stage) -> Any:
    def show(fraction: float | None, documents: int, pieces: int) -> None:
        stage.update(fraction, f"{documents:,} documents" + (f", {pieces:,} pieces" if pieces else ""))

    return show


def _make_tokenizer(config: Config, directory: Path) -> Tokenizer:
    """The tokenizer of a build that did not finish, if it was for the same configuration, or a new one."""
    made_from = json.dumps([dataclasses.asdict(config.tokenizer), dataclasses.asdict(config.corpus)])
    note = directory / "made_from.json"
    if note.exists() and note.read_text() == made_from:
        return tokenizers.load_tokenizer(directory)
    tokenizer = _given_tokenizer(config) if config.tokenizer.vocab_file else _train_tokenizer(config)
    aside = directory.with_name("tokenizer.tmp")
    for old in (aside, directory):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir(parents=True)
    tokenizer.save(aside)
    (aside / note.name).write_text(made_from)
    aside.rename(directory)
    return tokenizer


def _check_tokenizer(config: Config, found: Tokenizer, directory: Path) -> None:
    wanted = config.tokenizer
    elsewhere = "choose another --config.data.dir or --workdir"
    if wanted.vocab_file and found.fingerprint != _given_tokenizer(config).fingerprint:
        raise UserError(f"{directory}: not the vocabulary of {wanted.vocab_file}; {elsewhere}")
    if not wanted.vocab_file and (found.kind, found.vocab_size) != (wanted.kind, wanted.vocab_size):
        raise UserError(
            f"{directory} holds a {found.kind} vocabulary of {found.vocab_size} pieces, and config.tokenizer asks for "
            f"{wanted.kind} with {wanted.vocab_size}; {elsewhere}"
        )


def _given_tokenizer(config: Config) -> Tokenizer:
    path = Path(config.tokenizer.vocab_file)
    if config.tokenizer.kind == "wordpiece":
        return tokenizers.wordpiece_from_vocab(path, config.tokenizer.lowercase)
    return tokenizers.sentencepiece_from_model(path)


def _train_tokenizer(config: Config) -> Tokenizer:
    with Stage("Sampling text for the vocabulary") as stage:
        sentences = list(block_data.sample_sentences(config, _reporter(stage)))
    with Stage(f"Training a vocabulary of {config.tokenizer.vocab_size:,} pieces"):
        return tokenizers.train_sentencepiece(sentences, config.tokenizer.kind, config.tokenizer.vocab_size)


def _copy_tokenizer(source: Path, target: Path) -> None:
    if target.exists():
        if tokenizers.load_tokenizer(target).fingerprint != tokenizers.load_tokenizer(source).fingerprint:
            raise UserError(f"{target}: another vocabulary than that of the blocks, {source}; choose another --workdir")
        return
    aside = target.with_name("tokenizer.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    aside.rename(target)


def report(config: Config, workdir: epath.Path, config_file: str, result: loop.Result) -> str:
    """What a run ends with: where everything is, how good it is, what to do next."""
    lines = ["", f"Checkpoint:  {workdir}/checkpoints/{result.step}"]
    if not result.finished:
        return "\n".join(
            [*lines, f"Stopped at step {result.step:,} of {config.train.steps:,}; the same command goes on."]
        )
    held_out = {name.removeprefix("held_out/"): value for name, value in result.evaluation.items()}
    for name, title in (("mlm", "Held-out MLM"), ("sbo", "Held-out SBO")):
        if f"{name}_loss" in held_out:
            lines.append(
                f"{title}: loss {held_out[f'{name}_loss']:.3f}, accuracy {held_out[f'{name}_accuracy']:.1%} "
                f"(always the commonest piece: {held_out[f'{name}_commonest']:.1%})"
            )
    return "\n".join(
        [
            *lines,
            "",
            "Next:",
            "  See the curves:           tensorboard --logdir " + str(workdir),
            f"  See what it is asked:     python tools/show_masking.py --config {config_file} --workdir {workdir}",
            "  Pre-train on your text:   python -m spanbert_jax.main --config configs/base.py "
            "--config.corpus.files='data/*.txt' --workdir runs/mine",
        ]
    )
