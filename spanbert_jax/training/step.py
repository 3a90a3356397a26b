"""The train step and the evaluation step: pure functions of (state, batch), jitted over a mesh.

Invariant: the update depends only on the state and the global batch. Losses are sums whose normalisers are counted over
the whole batch first, and dropout is keyed by (seed, step, global row), so neither the mesh nor the number of
microbatches changes the result beyond rounding. Gradients cross the data axis once a step. A step whose loss or
gradient is not finite changes nothing but the step number.
"""

import contextlib
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config, is_trained, trained_groups
from spanbert_jax.errors import UserError
from spanbert_jax.model import layer_gradients
from spanbert_jax.training import sharding
from spanbert_jax.training.compiler_options import step_options
from spanbert_jax.training.optimizer import learning_rate, make_optimizer

State = dict[str, Any]  # {"params", "opt_state", "step"}
Sums = dict[str, jax.Array]  # fp32 scalars that add over rows, devices and microbatches


class BatchSize(NamedTuple):
    """How large a batch is, known from the shapes of its arrays."""

    rows: int  # for the metric of sequences a second
    flops: float  # model FLOPs of a training step on the batch
    words: str  # the batch's shape in words, for the progress display: "rows of 128 pieces"


class Objective(NamedTuple):
    """What a task minimises.

    totals: batch -> the normalisers of the losses, counted over the whole batch.
    loss: (params, some rows of the batch, totals, dropout key or None, these rows' numbers in the global batch or None)
        -> (loss, sums). The losses of a batch's parts add up to the loss of the batch.
    """

    totals: Callable[[Batch], Any]
    loss: Callable[[Any, Batch, Any, jax.Array | None, jax.Array | None], tuple[jax.Array, Sums]]


def stream_key(seed: int, stream: str, step: jax.Array | int) -> jax.Array:
    """The jax.random key of a named stream of randomness at a step: nothing to carry along, nothing to checkpoint."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def dropout_key(config: Config, step: jax.Array | int) -> jax.Array:
    """The uint32 by which a step's dropout is keyed."""
    return jax.random.bits(stream_key(config.train.seed, "dropout", step), dtype=jnp.uint32)


def abstract_state(config: Config, init: Callable[[jax.Array], Any], mesh: Mesh) -> Any:
    """The state as ShapeDtypeStructs with shardings; nothing is allocated. init: key -> params."""
    shapes = jax.eval_shape(_init_state(config, init))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        sharding.state_shardings(shapes, mesh, config.model.family, config.mesh.shard_optimizer),
    )


def init_state(config: Config, init: Callable[[jax.Array], Any], abstract: State) -> State:
    """The state before the first step, laid out as `abstract`; each leaf is made on the devices that hold it."""
    return jax.jit(_init_state(config, init), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()


def with_params(state: State, params: dict[str, Any]) -> State:
    """The state with `params` in the place of its own parameters.

    params: nested dicts of whole NumPy arrays, the same in every process. What `params` lacks keeps the state's own.
    Raises ValueError where a name or a shape is not the state's.
    """

    def place(path: tuple[Any, ...], array: np.ndarray) -> jax.Array:
        old = current.get(path)
        if old is None or old.shape != array.shape:
            raise ValueError(
                f"{sharding.path_name(path)} {array.shape}: the state has {None if old is None else old.shape}"
            )
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: array[index].astype(old.dtype))

    current = dict(jax.tree_util.tree_leaves_with_path(state["params"]))
    return {**state, "params": _merged(state["params"], jax.tree_util.tree_map_with_path(place, params))}


def _merged(own: Any, given: Any) -> Any:
    """Nested dicts: `own`, with the leaves of `given` in their places."""
    if not isinstance(given, dict):
        return given
    return {**own, **{name: _merged(own[name], value) for name, value in given.items()}}


def trained_params(config: Config, params: dict[str, Any]) -> dict[str, Any]:
    """The groups of `params` that `config` trains. Raises UserError where it names a group that the model lacks."""
    unknown = [group for group in trained_groups(config.train) if group not in params]
    if unknown:
        raise UserError(
            f"config.train.only names {unknown[0]!r}, and the model's groups are {', '.join(params)}; name one of these"
        )
    return {group: tree for group, tree in params.items() if is_trained(config.train, group)}


def _init_state(config: Config, init: Callable[[jax.Array], Any]) -> Callable[[], State]:
    def make() -> State:
        params = init(stream_key(config.train.seed, "params", 0))
        opt_state = make_optimizer(config.optimizer, config.train.steps).init(trained_params(config, params))
        return {"params": params, "opt_state": opt_state, "step": jnp.zeros((), jnp.int32)}

    return make


def _microbatches(batch: Batch, count: int) -> Batch:
    """[batch, ...] -> [count, batch / count, ...]. A microbatch takes every count-th row, so it is spread over the
    devices as the batch is."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def _summed_gradients(config: Config, objective: Objective) -> Callable[..., tuple[Any, Sums]]:
    """(params, batch, totals, key, row_numbers) -> (gradients of the trained parameters, sums) of the batch, added over
    the microbatches one after another."""
    count = config.train.accumulation

    def grad(params: Any, *arguments: Any) -> tuple[Any, Sums]:
        def loss(trained: Any) -> tuple[jax.Array, Sums]:
            value, sums = objective.loss({**params, **trained}, *arguments)
            return value, sums | {"objective": value}

        return jax.grad(loss, has_aux=True)(trained_params(config, params))

    def summed(params: Any, batch: Batch, totals: Any, key: jax.Array, row_numbers: jax.Array) -> tuple[Any, Sums]:
        if count == 1:
            return grad(params, batch, totals, key, row_numbers)

        def add(carry: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, grad(params, part[0], totals, key, part[1])), None

        parts = (_microbatches(batch, count), row_numbers.reshape(-1, count).T)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(lambda: grad(params, first[0], totals, key, first[1]))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    return summed


def _reduced_gradients(config: Config, objective: Objective, mesh: Mesh, specs: Any) -> Callable[..., tuple[Any, Sums]]:
    """`_summed_gradients` of the global batch. specs: the PartitionSpec of each gradient.

    Each data shard adds up its own microbatches, and one reduction follows. Left to the compiler, gradients would cross
    the data axis in every microbatch. Where there is one microbatch, each layer's gradients are reduced within the
    backward pass, whose arithmetic can hide the reduction. Mesh axes of size 1 are manual too, so that nothing is left
    to the compiler where only the data axis has several devices.
    """
    local = _summed_gradients(config, objective)
    if mesh.shape["data"] == 1:
        return local
    dtype = jnp.dtype(config.mesh.reduce_dtype)
    alone = mesh.shape["data"] == mesh.size
    early = config.train.accumulation == 1 and not config.mesh.shard_optimizer

    def divided_sum(grad: jax.Array, spec: PartitionSpec) -> jax.Array:
        if "data" not in spec:
            return layer_gradients.summed(grad, "data", dtype, together=False)
        place, sent = spec.index("data"), grad.astype(dtype)
        return jax.lax.psum_scatter(sent, "data", scatter_dimension=place, tiled=True).astype(grad.dtype)

    def reduced(*arguments: Any) -> tuple[Any, Sums]:
        with layer_gradients.summed_over("data", dtype, alone) if early else contextlib.nullcontext():
            grads, sums = local(*arguments)
        if config.mesh.shard_optimizer:
            grads = jax.tree.map(divided_sum, grads, specs)
        else:
            done = {"encoder": grads["encoder"]} if early and "encoder" in grads else {}
            rest = {part: tree for part, tree in grads.items() if part not in done}
            grads = done | layer_gradients.summed(rest, "data", dtype, alone)
        return grads, jax.lax.psum(sums, "data")

    whole, divided = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        reduced,
        mesh=mesh,
        in_specs=(whole, divided, whole, whole, divided),
        out_specs=(jax.tree.map(_only_data, specs), whole),
        axis_names={axis for axis, size in mesh.shape.items() if axis == "data" or size == 1},
        check_vma=False,  # attention kernels do not say over which axes their results vary
    )


def _only_data(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*("data" if axis == "data" else None for axis in spec))


def make_train_step(config: Config, objective: Objective, abstract: State) -> Any:
    """The jitted step (state, batch) -> (state, sums). The state is laid out as `abstract` and is donated.

    The sums include four that do not add over steps: "objective" (the loss that the step minimises), "gradient_norm",
    "learning_rate" and "skipped_for". Where "skipped_for" is not 0, the parameters, the moments and their counts are
    those of before the step; `skip_reason` says what the number means. The learning rate follows the step number.
    """
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    schedule = learning_rate(config.optimizer, config.train.steps)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = layout["step"].mesh
    trained = trained_params(config, abstract["params"])
    specs = sharding.parameter_specs(trained, mesh, config.model.family, config.mesh.shard_optimizer)
    divided = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    gradients = _reduced_gradients(config, objective, mesh, specs)

    def train_step(state: State, batch: Batch) -> tuple[State, Sums]:
        key = dropout_key(config, state["step"])
        row_numbers = jnp.arange(next(iter(batch.values())).shape[0], dtype=jnp.uint32)
        grads, sums = gradients(state["params"], batch, objective.totals(batch), key, row_numbers)
        # Each device updates the part whose moments it holds; out_shardings gathers the parameters again.
        trained = trained_params(config, state["params"])
        grads, trained = (jax.lax.with_sharding_constraint(tree, divided) for tree in (grads, trained))
        norm = optax.tree.norm(grads)
        skipped_for = _skipped_for(sums["objective"], norm, grads)

        def update(trained: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
            updates, opt_state = optimizer.update(grads, opt_state, trained, norm=norm)
            return jax.lax.with_sharding_constraint(optax.apply_updates(trained, updates), divided), opt_state

        def keep(trained: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
            # The last state of the chain is the schedule's count, which is the step number (`make_optimizer`).
            return trained, (*opt_state[:-1], opt_state[-1]._replace(count=opt_state[-1].count + 1))

        trained, opt_state = choice(
            mesh.devices.flat[0].platform, skipped_for == 0, update, keep, trained, state["opt_state"], grads
        )
        params = {**state["params"], **trained}
        sums |= {"gradient_norm": norm, "learning_rate": schedule(state["step"]), "skipped_for": skipped_for}
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, sums

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        train_step, donate_argnums=0, out_shardings=(layout, replicated), compiler_options=step_options(mesh)
    )


_LOSS = 1  # the value of "skipped_for" where the loss is not finite


def _skipped_for(loss: jax.Array, norm: jax.Array, grads: Any) -> jax.Array:
    """float32 scalar: 0 where the loss and the gradients' norm are finite; `_LOSS` where the loss is not; otherwise
    `_LOSS` + 1 + the number of the leaf of `grads` that is not finite, the first of several.

    Where the leaves are finite and the norm overflows, the number is that of the leaf with the largest norm.
    """
    squares = jnp.stack([optax.tree.norm(leaf, squared=True) for leaf in jax.tree.leaves(grads)])  # [leaves]
    of_gradient = jnp.where(jnp.isfinite(norm), 0, _LOSS + 1 + jnp.argmax(squares))  # NaN is the largest, then inf
    return jnp.where(jnp.isfinite(loss), of_gradient, _LOSS).astype(jnp.float32)


def choice(platform: str, first: jax.Array, one: Callable[..., Any], other: Callable[..., Any], *arguments: Any) -> Any:
    """`one(*arguments)` where `first` is true, otherwise `other(*arguments)`.

    A choice between two arrays costs an accelerator nothing, because the update is one fusion with several results. On
    a CPU, whose fusions have one result, such a choice keeps XLA from fusing the update of the moments with that of the
    parameters: a step of `configs/tiny.py` with 4 rows of 128 then moves 14% more bytes. A conditional has no such
    cost there. On a GPU it would make the host wait for the gradients.
    """
    if platform == "cpu":
        return jax.lax.cond(first, one, other, *arguments)
    return jax.tree.map(functools.partial(jnp.where, first), one(*arguments), other(*arguments))


def skip_reason(skipped_for: float, trained: Any) -> str:
    """The value of "skipped_for" in words, such as "the loss". trained: a tree with the trained parameters' names."""
    if skipped_for == _LOSS:
        return "the loss"
    names = [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)]
    return f"the gradient of {names[int(skipped_for) - _LOSS - 1]}"


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number in the arrays is finite: bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def make_eval_step(objective: Objective, mesh: Mesh) -> Any:
    """The jitted (params, batch) -> sums, without dropout."""

    def eval_step(params: Any, batch: Batch) -> Sums:
        return objective.loss(params, batch, objective.totals(batch), None, None)[1]

    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, PartitionSpec()))
