"""The training loop, the same for pre-training and for every fine-tuning task.

Invariant: the order of the loop's body never changes: evaluate, save, stop if asked to, take batch[step], step, log the
previous window. A checkpoint named n is therefore the state before batch n, and the device never waits for logging.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.training import sharding
from spanbert_jax.training.checkpoint import BEST, CHECKPOINTS, Checkpoints, newest_sound, read_metadata, write_params
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.progress import MetricsWriter, Stage
from spanbert_jax.training.step import (
    BatchSize,
    Objective,
    State,
    Sums,
    abstract_state,
    init_state,
    make_eval_step,
    make_train_step,
    with_params,
)
from spanbert_jax.training.stopping import StopSignals
from spanbert_jax.training.together import decided
from spanbert_jax.training.window import STEPS_AHEAD, Window, add_sums


class Recipe(NamedTuple):
    """A task, as the loop needs it."""

    init: Callable[[jax.Array], Any]  # key -> params
    objective: Objective
    train_batches: Callable[[NamedSharding, int, int], Iterator[Batch]]  # (layout, first step, last step)
    evaluate: Callable[[Any, NamedSharding], dict[str, float]]  # (params, layout) -> "held_out/..." metrics
    metrics: Callable[[Mapping[str, float]], dict[str, float]]  # the sums of a window's steps, added up -> metrics
    describe: Callable[[Mapping[str, float]], str]  # metrics -> a few words for the progress display
    batch_size: Callable[[Batch], BatchSize]
    metadata: Metadata  # saved with every checkpoint, with its step
    initial_params: Callable[[], Any] | None = None  # NumPy arrays, for some groups of the tree or all; else `init`'s
    best: str = ""  # a metric of `evaluate`: parameters are kept under best/ where it is highest; "": none are


class Result(NamedTuple):
    """Where the loop stopped."""

    step: int
    finished: bool  # False where it was asked to stop, be it at its last step
    evaluation: dict[str, float]  # of the last evaluation; empty where there was none


def run(config: Config, recipe: Recipe, workdir: epath.Path) -> Result:
    """Trains from the newest checkpoint in the workdir, or from the start, to the last step or a request to stop.

    Raises UserError where the mesh, the batch and the devices do not fit together, the devices' memory is too small, no
    checkpoint can be read, or the disk is full.
    """
    try:
        with jax.set_mesh(sharding.mesh_of(config)):
            return _run(config, recipe, workdir)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of memory ({str(error).partition(chr(10))[0]}); cut the batch of {config.train.batch_size} rows "
            f"into more microbatches: --config.train.accumulation={2 * config.train.accumulation}"
        ) from error


def _run(config: Config, recipe: Recipe, workdir: epath.Path) -> Result:
    mesh = jax.sharding.get_mesh()
    layout, last = sharding.batch_sharding(mesh), config.train.steps
    abstract = abstract_state(config, recipe.init, mesh)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.train)
    first, state, before = _first_state(config, recipe, workdir, checkpoints, abstract)
    train_step = make_train_step(config, recipe.objective, abstract)
    best = _Best(recipe, workdir)
    batches = recipe.train_batches(layout, first, last)
    window = Window(first, config.train.log_every, recipe.metrics, mesh, before)
    in_flight: collections.deque[jax.Array] = collections.deque()
    evaluation: dict[str, float] = {}
    sizes: dict[tuple[tuple[int, ...], ...], BatchSize] = {}  # shapes of a batch that are compiled -> its size

    with _Log(recipe, workdir, first, last) as log, StopSignals() as signals:
        log.say(f"Step {first:,} of {last:,}, {mesh.size} x {mesh.devices.flat[0].device_kind}; compiling")
        step = first
        while True:
            if step == last or (step % config.train.eval_every == 0 and step > first):
                log.windows(window.finish(step))
                log.at(step, "evaluating on held-out blocks")
                evaluation = recipe.evaluate(state["params"], layout)
                best.keep(step, state["params"], evaluation, checkpoints)
                log.evaluation(step, evaluation)
                window.start()
            stop = signals.asked or checkpoints.preempted(step)
            if stop:
                log.say(f"Asked to stop: saving step {step:,}")
            if step > first:
                describe = functools.partial(_describe, recipe, step, window, log)
                checkpoints.save(step, state, describe, force=stop or step == last)
            if step == last or stop:
                break
            asked = time.monotonic()
            batch = next(batches)
            began = time.monotonic()
            window.waited += began - asked
            shapes = tuple(array.shape for array in batch.values())
            known = sizes.get(shapes)
            size = known or recipe.batch_size(batch)
            if sizes and not known:
                log.at(step, f"compiling for {size.words}")
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, sums = train_step(state, batch)
            del batch  # frees its arrays while the device is busy: freed with the next batch, they would hold that up
            if not known:
                sizes[shapes] = size
                window.skip(time.monotonic() - began)
                log.skip(time.monotonic() - asked)  # the first batch waits for its pipeline to start
                log.at(step + 1)
            step += 1
            signals.wait_for_saves()
            in_flight.append(sums["gradient_norm"])
            if len(in_flight) > STEPS_AHEAD:
                in_flight.popleft().block_until_ready()
            log.windows(window.add(step, sums, size))
        checkpoints.close()
    log.close()
    return Result(step, step == last and not stop, evaluation)


def _first_state(
    config: Config, recipe: Recipe, workdir: epath.Path, checkpoints: Checkpoints, abstract: State
) -> tuple[int, State, Mapping[str, float]]:
    """(step, state, sums of the open window) to begin with: of the newest sound checkpoint, or, where there is none, 0,
    a new state and {}."""
    tried: list[Metadata] = []

    def check(saved: Metadata) -> None:
        _check_same_data(recipe, saved, workdir)
        tried.append(saved)

    found = checkpoints.restore_newest(abstract, check)
    if found:
        return *found, tried[-1].window
    state = init_state(config, recipe.init, abstract)
    return 0, with_params(state, recipe.initial_params()) if recipe.initial_params else state, {}


def _describe(recipe: Recipe, step: int, window: Window, log: "_Log") -> Metadata:
    """The metadata of a save of `step`. All lines of metrics up to the step are in the files before the save begins: a
    run that goes on from the checkpoint writes the lines after it alone."""
    log.windows(window.full())
    log.flush()
    return dataclasses.replace(recipe.metadata, step=step, window=window.open_sums())


def _check_same_data(recipe: Recipe, saved: Metadata, workdir: epath.Path) -> None:
    """Raises UserError where the checkpoint was trained on other data than a step would now read."""
    differing = [
        f"{name} {saved.fingerprints[name]} then, {now} now"
        for name, now in recipe.metadata.fingerprints.items()
        if saved.fingerprints[name] != now
    ]
    if differing:
        raise UserError(
            f"{workdir}/checkpoints: these checkpoints were trained on other data ({'; '.join(differing)}); "
            "bring the old data back, or choose another --workdir"
        )


class _Best:
    """Keeps the parameters with the highest `recipe.best` so far in best/; none where a recipe names no metric."""

    def __init__(self, recipe: Recipe, workdir: epath.Path):
        self._recipe, self._folder = recipe, workdir / BEST
        self._value = float(decided("find the best checkpoint", self._kept)) if recipe.best else -math.inf

    def _kept(self) -> str:
        """The value of the checkpoint in best/, in decimal digits; "-inf" where none is sound."""
        kept = newest_sound(self._folder, "the next evaluation makes a new best")
        return str(read_metadata(kept).evaluation[self._recipe.best] if kept else -math.inf)

    def keep(self, step: int, params: Any, evaluation: dict[str, float], checkpoints: Checkpoints) -> None:
        """Writes `params` to best/ if the evaluation of `step` is the best so far, after the save under way."""
        name = self._recipe.best
        if name and evaluation[name] > self._value:  # never of NaN, which a correlation may be
            self._value = evaluation[name]
            checkpoints.wait()
            metadata = dataclasses.replace(self._recipe.metadata, step=step, evaluation=evaluation)
            write_params(self._folder, params, metadata)


class _Log(Stage):
    """The progress display of the loop, and the files of its metrics: both in the first process alone."""

    def __init__(self, recipe: Recipe, workdir: epath.Path, first: int, last: int):
        primary = jax.process_index() == 0
        self._recipe, self._first_step, self._last = recipe, first, last
        self._writer = MetricsWriter(workdir, first) if primary else None
        super().__init__("Training", start=first / last, enabled=primary)

    def at(self, step: int, words: str = "") -> None:
        """Shows the step, and in words what is done at it."""
        self.update(step / self._last, f"step {step:,}{' · ' if words else ''}{words}")

    def windows(self, windows: list[tuple[int, dict[str, float]]]) -> None:
        """Writes and shows the (step, metrics) of windows."""
        for step, metrics in windows:
            if self._writer:
                self._writer.write(step, metrics)
            self.at(step, f"{self._recipe.describe(metrics)}{_speed(metrics)}")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and shows an evaluation's metrics. A finished run that is started again has written them already."""
        if self._writer and step > self._first_step:
            self._writer.write(step, metrics)
        self.say(f"Step {step:,}, held out: {self._recipe.describe(metrics)}")
        self.at(step)

    def flush(self) -> None:
        """Writes out what was logged so far."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Writes out the files."""
        if self._writer:
            self._writer.close()


def summed_evaluation(
    objective: Objective,
    batches: Callable[[NamedSharding], Iterator[Batch]],
    metrics: Callable[[Mapping[str, float]], dict[str, float]],
) -> Callable[[Any, NamedSharding], dict[str, float]]:
    """An evaluation that adds up the objective's sums over all batches and takes `metrics` of them."""
    step = functools.cache(lambda mesh: make_eval_step(objective, mesh))

    def evaluate(params: Any, layout: NamedSharding) -> dict[str, float]:
        totals: collections.Counter[str] = collections.Counter()
        pending: collections.deque[Sums] = collections.deque()
        for batch in batches(layout):
            pending.append(step(layout.mesh)(params, batch))
            if len(pending) > STEPS_AHEAD:
                add_sums(totals, pending.popleft())
        for sums in pending:
            add_sums(totals, sums)
        return {f"held_out/{name}": value for name, value in metrics(totals).items()}

    return evaluate


def _speed(metrics: Mapping[str, float]) -> str:
    if "train/pieces_per_second" not in metrics:
        return ""
    mfu = f" · MFU {metrics['train/mfu']:.1%}" if "train/mfu" in metrics else ""
    return f" · {metrics['train/pieces_per_second']:,.0f} pieces/s{mfu}"
