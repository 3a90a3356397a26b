"""The training loop, the same for pre-training and for every fine-tuning task.

Invariant: the order of the loop's body never changes: evaluate, save, stop if asked to, take batch[step], step, log the
previous window. A checkpoint named n is therefore the state before batch n, and the device never waits for logging.
"""

import collections
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.training import sharding
from spanbert_jax.training.checkpoint import BEST, CHECKPOINTS, Checkpoints, newest_sound, read_metadata, write_params
from spanbert_jax.training.flops import peak_flops
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
from spanbert_jax.training.together import decided

_STEPS_AHEAD = 3  # steps dispatched and not yet finished: the device is never idle, and few batches are held


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
    finished: bool
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
    first, state = _first_state(config, recipe, workdir, checkpoints, abstract)
    train_step = make_train_step(config, recipe.objective, abstract)
    best = _Best(recipe, workdir)
    batches = recipe.train_batches(layout, first, last)
    window = _Window(config, recipe, mesh)
    in_flight: collections.deque[jax.Array] = collections.deque()
    evaluation: dict[str, float] = {}
    sizes: dict[tuple[tuple[int, ...], ...], BatchSize] = {}  # shapes of a batch that are compiled -> its size

    with _Log(recipe, workdir, first, last) as log, _StopSignals() as signals:
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
            if step > first:
                at_step = dataclasses.replace(recipe.metadata, step=step)
                checkpoints.save(step, state, at_step, force=stop or step == last)
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
            step += 1
            in_flight.append(sums["gradient_norm"])
            if len(in_flight) > _STEPS_AHEAD:
                in_flight.popleft().block_until_ready()
            log.windows(window.add(step, sums, size))
        log.windows(window.finish(step))
        checkpoints.close()
    log.close()
    return Result(step, step == last, evaluation)


def _first_state(
    config: Config, recipe: Recipe, workdir: epath.Path, checkpoints: Checkpoints, abstract: State
) -> tuple[int, State]:
    """(step, state) to begin with: of the newest sound checkpoint, or, where there is none, 0 and a new state."""
    found = checkpoints.restore_newest(abstract, lambda saved: _check_same_data(recipe, saved, workdir))
    if found:
        return found
    state = init_state(config, recipe.init, abstract)
    return 0, with_params(state, recipe.initial_params()) if recipe.initial_params else state


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
            if len(pending) > _STEPS_AHEAD:
                _add(totals, pending.popleft())
        for sums in pending:
            _add(totals, sums)
        return {f"held_out/{name}": value for name, value in metrics(totals).items()}

    return evaluate


def _add(totals: collections.Counter[str], sums: Sums) -> None:
    for name, value in sums.items():
        totals[name] += float(value)  # type: ignore[assignment]  # a Counter of floats


def _speed(metrics: Mapping[str, float]) -> str:
    if "train/pieces_per_second" not in metrics:
        return ""
    mfu = f" · MFU {metrics['train/mfu']:.1%}" if "train/mfu" in metrics else ""
    return f" · {metrics['train/pieces_per_second']:,.0f} pieces/s{mfu}"


class _Window:
    """The steps since the last metrics, and the time they took.

    The first step is a window of its own, without speeds. No window counts the time of compilation. A full window is
    handed out a few steps later, when the device has finished its steps.
    """

    def __init__(self, config: Config, recipe: Recipe, mesh: Mesh):
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._config, self._recipe = config, recipe
        self._peak = peak * mesh.size if peak else None
        self._first = True
        self._full: list[tuple[int, list[Sums], list[BatchSize], float, float]] = []
        self.start()

    def start(self) -> None:
        """Begins a window."""
        self._sums: list[Sums] = []
        self._sizes: list[BatchSize] = []
        self._began, self.waited = time.monotonic(), 0.0

    def skip(self, seconds: float) -> None:
        """Leaves the last `seconds` out of the window's time."""
        self._began += seconds

    def add(self, step: int, sums: Sums, size: BatchSize) -> list[tuple[int, dict[str, float]]]:
        """Adds the sums of the step that led to `step`, on a batch of that size; returns (step, metrics) of the windows
        that are ready."""
        self._sums.append(sums)
        self._sizes.append(size)
        if self._first:
            self._first = False
            metrics = self._metrics([sums], [size], None, 0.0)
            self.start()
            return [(step, metrics)]
        if step % self._config.train.log_every == 0:
            self._close(step)
        ready = [full for full in self._full if full[0] + _STEPS_AHEAD <= step]
        self._full = self._full[len(ready) :]
        return [(full[0], self._metrics(*full[1:])) for full in ready]

    def finish(self, step: int) -> list[tuple[int, dict[str, float]]]:
        """Ends the window under way at `step`, waits for its steps, and returns (step, metrics) of the windows that
        are not yet handed out."""
        if self._sums:
            jax.block_until_ready(self._sums[-1])
            self._close(step)
        ready, self._full = self._full, []
        return [(full[0], self._metrics(*full[1:])) for full in ready]

    def _close(self, step: int) -> None:
        self._full.append((step, self._sums, self._sizes, time.monotonic() - self._began, self.waited))
        self.start()

    def _metrics(
        self, sums: list[Sums], sizes: list[BatchSize], seconds: float | None, waited: float
    ) -> dict[str, float]:
        totals: collections.Counter[str] = collections.Counter()
        for one in sums:
            _add(totals, one)
        norm, rate = totals.pop("gradient_norm") / len(sums), float(sums[-1]["learning_rate"])
        del totals["learning_rate"]
        metrics = {**self._recipe.metrics(totals), "gradient_norm": norm, "learning_rate": rate}
        if seconds:
            metrics["pieces_per_second"] = totals["pieces"] / seconds
            metrics["sequences_per_second"] = sum(size.rows for size in sizes) / seconds
            metrics["seconds_per_step"] = seconds / len(sums)
            metrics["input_wait"] = waited / seconds
            if self._peak:
                metrics["mfu"] = sum(size.flops for size in sizes) / seconds / self._peak
        return {f"train/{name}": value for name, value in metrics.items()}


class _StopSignals:
    """Turns SIGTERM and the first Ctrl-C into a request to stop at the next step.

    With several processes JAX's preemption service turns SIGTERM into a request to all of them, at the same step.
    """

    def __enter__(self) -> "_StopSignals":
        self.asked = False
        self._previous: dict[int, Any] = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._previous[number])

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
