"""Opens a run again, as it is in its directory, so that one of its steps can be run once more.

Invariant: the configuration is the one in the run's config.json. Blocks, rows and vocabulary are those of the run.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from spanbert_jax.config import Config
from spanbert_jax.corpus.blocks import Blocks, is_built, open_blocks, parse_records
from spanbert_jax.errors import UserError
from spanbert_jax.runs import finetuning, pretraining
from spanbert_jax.runs.prepare import data_directory, prepare
from spanbert_jax.runs.start_from import StartingWeights
from spanbert_jax.tasks.registry import finetuning_task
from spanbert_jax.text.packing import FEATURE
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.loop import Recipe
from spanbert_jax.training.workdir import read_config


class OpenedRun(NamedTuple):
    """A run, as `training.replaying.replay` needs it."""

    config: Config
    recipe: Recipe
    text: Callable[[int], str]  # the number of a block, or of a row of fine-tuning -> its text


@contextlib.contextmanager
def opened_run(workdir: epath.Path) -> Iterator[OpenedRun]:
    """The run in `workdir`, or the trial of fine-tuning where `workdir` is a run's trial_N.

    Raises UserError where there is no run, or its data or the weights that it started from cannot be read.
    """
    is_run = (workdir / "config.json").exists()  # a run may be called trial_1 too
    name = None if is_run else re.fullmatch(r"trial_(\d+)", workdir.name)
    root, trial = (workdir.parent, int(name[1])) if name else (workdir, 0)
    if not (root / "config.json").exists():
        raise UserError(f"{workdir}: no run there (config.json is missing); give a run's --workdir")
    config = read_config(root / "config.json")
    if config.trials > 1 and not name:
        raise UserError(f"{workdir}: a run of {config.trials} trials; give one of its folders, {workdir}/trial_N")
    with StartingWeights(config) as start:
        yield (_pretraining if config.task == "pretraining" else _finetuning)(config, root, start, trial)


def _pretraining(config: Config, workdir: epath.Path, start: StartingWeights, trial: int) -> OpenedRun:
    blocks = data_directory(config, workdir) / "blocks"
    if not is_built(blocks):
        raise UserError(f"{blocks}: the run's blocks are not there; bring them back to replay a step")
    tokenizer, data = prepare(config, workdir, start)
    train, held_out = (open_blocks(data / "blocks", split) for split in ("train", "held_out"))
    recipe = pretraining.make_recipe(config, tokenizer, train, held_out, start)
    return OpenedRun(config, recipe, lambda number: _block_text(train, tokenizer, number))


def _block_text(blocks: Blocks, tokenizer: Tokenizer, number: int) -> str:
    pieces = parse_records(blocks.read(np.array([number])))[FEATURE]  # [1, pieces]
    return tokenizer.decode(np.asarray(pieces)[0].tolist())


def _finetuning(config: Config, workdir: epath.Path, start: StartingWeights, trial: int) -> OpenedRun:
    kind, path = finetuning_task(config.task, config), Path(workdir)
    if not (path / "tokenizer").is_dir():
        raise UserError(f"{path}/tokenizer: the run's vocabulary is not there; bring it back to replay a step")
    tokenizer = finetuning.task_tokenizer(kind, config, path, start)
    data = finetuning.prepare_data(kind, config, tokenizer, path / "rows")
    one, recipe = finetuning.trial_recipe(config, data, tokenizer, start, trial)
    return OpenedRun(one, recipe, lambda number: tokenizer.decode(data.train.column("input_ids", number).tolist()))
