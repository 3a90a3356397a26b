"""A run's vocabulary and blocks: found where an earlier start left them, or made.

Invariant: a vocabulary is reused only for the text and the settings it was made from, and blocks only for theirs; both
appear under their names when they are complete. With several processes the first does the work.
"""

import concurrent.futures
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from spanbert_jax.config import Config
from spanbert_jax.data import blocks as block_data
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.weights import open_weights
from spanbert_jax.text import tokenizer as tokenizers
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.progress import Stage
from spanbert_jax.training.workdir import make_directory

_NOTE = "made_from.json"


def prepare(config: Config, workdir: Path) -> tuple[Tokenizer, Path]:
    """Finds or makes the tokenizer and the blocks; returns the tokenizer and the directory of both.

    Raises UserError where the text cannot be read, or what is there was made for another configuration; in the other
    processes, where the first one failed.
    """
    data = Path(config.data.dir) if config.data.dir else workdir / "data"
    failure: BaseException | None = None
    if jax.process_index() == 0:
        try:
            _prepare(config, workdir, data)
        except BaseException as error:
            failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.int32(failure is not None))
        if failed and failure is None:
            raise UserError("process 0 could not prepare the data; its own message says why")
    if failure is not None:
        raise failure
    return tokenizers.load_tokenizer(data / "tokenizer"), data


def _prepare(config: Config, workdir: Path, data: Path) -> None:
    make_directory(data, "--config.data.dir")
    if block_data.is_built(data / "blocks"):
        tokenizer = tokenizers.load_tokenizer(data / "tokenizer")
        _check_tokenizer(config, tokenizer, data / "tokenizer")
        block_data.check_blocks(block_data.read_metadata(data / "blocks"), config, tokenizer)
    else:
        tokenizer = _make_tokenizer(config, data / "tokenizer")
        with Stage("Building blocks") as stage:
            block_data.build_blocks(config, tokenizer, data / "blocks", _reporter(stage))
    _copy_tokenizer(data / "tokenizer", workdir / "tokenizer")


def _reporter(stage: Stage) -> Callable[[float | None, int, int], None]:
    """Shows counts and speeds."""
    began = time.monotonic()

    def show(fraction: float | None, documents: int, pieces: int) -> None:
        seconds = max(time.monotonic() - began, 1e-3)
        parts = [f"{documents:,} documents ({documents / seconds:,.0f}/s)"]
        if pieces:
            parts.append(f"{pieces:,} pieces ({pieces / seconds:,.0f}/s)")
        stage.update(fraction, ", ".join(parts))

    return show


def _make_tokenizer(config: Config, directory: Path) -> Tokenizer:
    """The tokenizer of a build that did not finish, if it was for the same text and settings, or a new one."""
    settings = {**dataclasses.asdict(config.tokenizer), "vocab_file": ""}
    given = given_tokenizer(config)
    made_from = json.dumps(
        [given.fingerprint] if given else [settings, block_data.source_fields(config.corpus)], sort_keys=True
    )
    note = directory / _NOTE
    if note.exists() and note.read_text() == made_from:
        return tokenizers.load_tokenizer(directory)
    if directory.exists() and not note.exists():
        raise UserError(
            f"{directory} exists and holds no tokenizer of ours; give another --config.data.dir, or move it"
        )
    tokenizer = given or _train_tokenizer(config)
    aside = directory.with_name("tokenizer.tmp")
    for old in (aside, directory):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir()
    tokenizer.save(aside)
    (aside / _NOTE).write_text(made_from)
    aside.rename(directory)
    return tokenizer


def _check_tokenizer(config: Config, found: Tokenizer, directory: Path) -> None:
    wanted = config.tokenizer
    elsewhere = "choose another --config.data.dir or --workdir"
    source = wanted.vocab_file or config.init_from
    if source:
        # On another machine it may be gone: the directory has all that it said.
        given = given_tokenizer(config) if Path(source).exists() else None
        if given and found.fingerprint != given.fingerprint:
            raise UserError(f"{directory}: not the vocabulary of {source}; {elsewhere}")
    elif (found.kind, found.vocab_size) != (wanted.kind, wanted.vocab_size):
        raise UserError(
            f"{directory} holds a {found.kind} vocabulary of {found.vocab_size} pieces, and config.tokenizer asks for "
            f"{wanted.kind} with {wanted.vocab_size}; {elsewhere}"
        )


def given_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer that the configuration names; None where one is to be trained."""
    if config.init_from:
        with open_weights(Path(config.init_from)) as weights:
            return weights.tokenizer
    if not config.tokenizer.vocab_file:
        return None
    path = Path(config.tokenizer.vocab_file)
    if config.tokenizer.kind == "wordpiece":
        return tokenizers.wordpiece_from_vocab(path, config.tokenizer.lowercase)
    return tokenizers.sentencepiece_from_model(path)


def _train_tokenizer(config: Config) -> Tokenizer:
    wanted = config.tokenizer
    with Stage("Sampling text for the vocabulary") as stage:
        sentences = list(block_data.sample_sentences(config, _reporter(stage)))
    title = f"Training a vocabulary of {wanted.vocab_size:,} pieces"
    with Stage(title) as stage, concurrent.futures.ThreadPoolExecutor(1) as thread:
        training = thread.submit(tokenizers.train_sentencepiece, sentences, wanted.kind, wanted.vocab_size)
        while not concurrent.futures.wait([training], timeout=0.5).done:
            stage.update(None, f"{len(sentences):,} sentences")
        return training.result()


def _copy_tokenizer(source: Path, target: Path) -> None:
    if target.exists():
        if tokenizers.load_tokenizer(target).fingerprint != tokenizers.load_tokenizer(source).fingerprint:
            raise UserError(f"{target}: another vocabulary than that of the blocks, {source}; choose another --workdir")
        return
    aside = target.with_name("tokenizer.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns(_NOTE))
    aside.rename(target)
