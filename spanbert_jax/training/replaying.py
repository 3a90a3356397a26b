"""Runs one step of a run again, row by row, and finds the first operation whose result is not finite.

Invariant: nothing in the run's directory changes. The state before the step is that of the run: the nearest checkpoint
before the step, and the run's own train step from there. The losses and gradients of the rows add up to those of the
step, because an objective's losses are divided by counts over the whole batch.
"""

import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.training import sharding
from spanbert_jax.training.checkpoint import CHECKPOINTS, read_metadata, restore_state, whole_steps
from spanbert_jax.training.loop import Recipe, check_same_data, new_state
from spanbert_jax.training.step import (
    Objective,
    State,
    Sums,
    abstract_state,
    all_finite,
    dropout_key,
    make_train_step,
    trained_params,
)

_PACKAGE = Path(__file__).resolve().parents[1]


class ReplayedRow(NamedTuple):
    """A row of the batch."""

    row: int  # in the batch
    block: int  # its number, as in `Recipe.blocks`
    loss: float  # the row's part of the step's loss
    gradient_norm: float

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient_norm))


class Group(NamedTuple):
    """The parameters under one name, such as "encoder/attention"."""

    name: str
    norm: float  # of the parameters
    gradient_norm: float
    not_finite: int  # values of the gradient


class Replay(NamedTuple):
    """A step that was run again."""

    start: int | None  # the checkpoint from which the steps before were run again; None: the run's start
    skipped: list[int]  # of the steps before, those that were skipped
    overflowed: int | None  # the first of the steps before whose update made parameters that are not finite
    loss: float  # that the step minimises
    sums: Sums  # of the whole batch, as in a window
    groups: list[Group]
    rows: list[ReplayedRow]  # those that are not finite first, then by their loss
    first_operation: str  # in words; "" where all results are finite


def replay(config: Config, recipe: Recipe, workdir: epath.Path, step: int, show: Callable[[str], None]) -> Replay:
    """Runs `step` again. show: takes a few words on what is done.

    Raises UserError where the run has no such step, or the nearest checkpoint before it cannot be read.
    """
    if not 0 <= step < config.train.steps:
        raise UserError(f"--step {step}: the run in {workdir} has the steps 0 to {config.train.steps - 1}")
    with jax.set_mesh(sharding.mesh_of(config)):
        mesh = jax.sharding.get_mesh()
        abstract = abstract_state(config, recipe.init, mesh)
        start, state = _nearest(config, recipe, workdir, abstract, step)
        batches = recipe.train_batches(sharding.batch_sharding(mesh), start or 0, step + 1)
        train_step = make_train_step(config, recipe.objective, abstract)
        skipped, overflowed = [], None
        for number in range(start or 0, step):
            show(f"step {number:,}")
            state, sums = train_step(state, next(batches))
            if sums["skipped_for"]:
                skipped.append(number)
            if overflowed is None and not all_finite(state["params"]):
                overflowed = number
        batch = next(batches)
    # On one device: a row needs no other, and single operations cannot be divided.
    params, batch = jax.device_put(jax.device_get((state["params"], batch)), jax.local_devices()[0])
    loss = functools.partial(_row_loss, config, recipe.objective, step)
    sums, rows, gradients = _row_by_row(config, loss, params, batch, recipe.blocks(step), show)
    show("looking for the first operation")
    return Replay(
        start=start,
        skipped=skipped,
        overflowed=overflowed,
        loss=sum(row.loss for row in rows),
        sums=sums,
        groups=list(_groups(trained_params(config, params), gradients)),
        rows=rows,
        first_operation="" if rows[0].is_finite else _first_operation(config, loss, params, batch, rows[0].row),
    )


def _nearest(
    config: Config, recipe: Recipe, workdir: epath.Path, abstract: State, step: int
) -> tuple[int | None, State]:
    """(the newest checkpoint that is not after `step`, its state); without one, None and the run's first state."""
    for checkpoint in whole_steps(workdir / CHECKPOINTS):
        if int(checkpoint.name) <= step:
            check_same_data(recipe, read_metadata(checkpoint), workdir)  # a later version's is refused by name
            return int(checkpoint.name), restore_state(checkpoint, abstract)
    return None, new_state(config, recipe, abstract)


# (trained parameters, all parameters, batch, number of the row) -> (the row's part of the loss, the row's sums)
_RowLoss = Callable[[Any, Any, Batch, jax.Array | int], tuple[jax.Array, Sums]]


def _row_loss(
    config: Config, objective: Objective, step: int, trained: Any, params: Any, batch: Batch, row: jax.Array | int
) -> tuple[jax.Array, Sums]:
    """A `_RowLoss`, as the step computes it, dropout included."""
    part = jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, row, 1), batch)
    number = jnp.asarray(row, jnp.uint32)[None]
    return objective.loss({**params, **trained}, part, objective.totals(batch), dropout_key(config, step), number)


def _row_by_row(
    config: Config, loss: _RowLoss, params: Any, batch: Batch, blocks: np.ndarray, show: Callable[[str], None]
) -> tuple[Sums, list[ReplayedRow], Any]:
    """(the sums, the rows, the gradients) of the batch. Memory is that of one row, and of two gradients."""
    gradient = jax.value_and_grad(loss, has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(before: Any, params: Any, batch: Batch, row: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        (value, sums), gradients = gradient(trained_params(config, params), params, batch, row)
        return jax.tree.map(jnp.add, before, (sums, gradients)), value, optax.tree.norm(gradients)

    (_, sums), gradients = jax.eval_shape(gradient, trained_params(config, params), params, batch, 0)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (sums, gradients))
    rows = []
    for row, block in enumerate(blocks.tolist()):
        show(f"row {row + 1:,} of {len(blocks):,}")
        total, value, norm = add(total, params, batch, jnp.asarray(row))
        rows.append(ReplayedRow(row, block, float(value), float(norm)))
    return total[0], sorted(rows, key=lambda row: (row.is_finite, -row.loss)), total[1]


def _groups(params: Any, gradients: Any) -> Iterator[Group]:
    """The top-level groups of parameters, of the encoder its parts."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    leaves = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(gradients), strict=True)
    for (path, leaf), gradient in leaves:
        parts = sharding.path_name(path).split("/")
        name = "/".join(parts[:2]) if parts[0] == "encoder" else parts[0]
        groups.setdefault(name, []).append((np.asarray(leaf), np.asarray(gradient)))
    for name, arrays in groups.items():
        norm, of_gradient = (
            float(np.sqrt(sum(np.sum(np.square(pair[i], dtype=np.float64)) for pair in arrays))) for i in (0, 1)
        )
        yield Group(name, norm, of_gradient, sum(int(np.sum(~np.isfinite(gradient))) for _, gradient in arrays))


def _first_operation(config: Config, loss: _RowLoss, params: Any, batch: Batch, row: int) -> str:
    """The first operation of a row's loss or gradients whose result is not finite, with the line of code that asks for
    the operation; "" where all results are finite when each operation is compiled by itself.

    NaN is looked for first, because sound code may hold an infinity for a moment.
    """
    arguments = trained_params(config, params), params, batch, row
    passes = {"loss": loss, "gradients": jax.grad(loss, has_aux=True)}
    for checked in (jax.debug_nans, jax.debug_infs):
        for name, run in passes.items():
            try:
                with jax.disable_jit(), checked(True):
                    run(*arguments)
            except FloatingPointError as error:
                return f"{str(error).partition(chr(10))[0]}, of the {name}{_place(error)}"
    return ""


def _place(error: FloatingPointError) -> str:
    """ ", in FILE, line N": the innermost line of this package that the error comes from. An operation of the backward
    pass has the line of the operation that it is the gradient of, which JAX gives as the error's cause."""
    for one in (error.__cause__, error):
        frames = traceback.extract_tb(one.__traceback__) if one else ()
        ours = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents and frame.filename != __file__]
        if ours:
            file = Path(ours[-1].filename).relative_to(_PACKAGE.parent)
            return f", in {file}, line {ours[-1].lineno}: {ours[-1].line}"
    return ""
