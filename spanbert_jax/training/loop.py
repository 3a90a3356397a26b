"""The training loop, the same for pre-training and for every fine-tuning task.

Invariant: the order of the loop's body never changes: evaluate, save, stop if asked to, take batch[step], step, log the
previous window. A checkpoint named n is therefore the state before batch n, and the device never waits for logging.
Step n is the step that takes batch n.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.training import lifeline, sharding
from spanbert_jax.training.checkpoint import BEST, CHECKPOINTS, Checkpoints, newest_sound, read_metadata, write_params
from spanbert_jax.training.events import Events
from spanbert_jax.training.metadata import Metadata
from spanbert_jax.training.progress import MetricsWriter, Show, Stage, metric_records
from spanbert_jax.training.skips import Skipped, Skips
from spanbert_jax.training.step import (
    BatchSize,
    Objective,
    State,
    Sums,
    abstract_state,
    all_finite,
    init_state,
    make_eval_step,
    make_train_step,
    trained_params,
    with_params,
)
from spanbert_jax.training.stopping import StopSignals
from spanbert_jax.training.together import decided
from spanbert_jax.training.watchdog import Watchdog
from spanbert_jax.training.window import STEPS_AHEAD, Row, Window, add_sums


class Recipe(NamedTuple):
    """A task, as the loop needs it."""

    init: Callable[[jax.Array], Any]  # key -> params
    objective: Objective
    train_batches: Callable[[NamedSharding, int, int], Iterator[Batch]]  # (layout, first step, last step)
    # (params, layout, a function that takes the fraction that is done, for the display) -> "held_out/..." metrics
    evaluate: Callable[[Any, NamedSharding, Show], dict[str, float]]
    metrics: Callable[[Mapping[str, float]], dict[str, float]]  # the sums of a window's steps, added up -> metrics
    describe: Callable[[Mapping[str, float]], str]  # metrics -> a few words for the progress display
    batch_size: Callable[[Batch], BatchSize]
    metadata: Metadata  # saved with every checkpoint, with its step
    blocks: Callable[[int], np.ndarray]  # step -> int64, the numbers of its batch's blocks; -1: an empty row
    of: str = "blocks"  # the things that `blocks` numbers, for people
    initial_params: Callable[[], Any] | None = None  # NumPy arrays, for some groups of the tree or all; else `init`'s
    best: str = ""  # a metric of `evaluate`: parameters are kept under best/ where it is highest; "": none are


class Result(NamedTuple):
    """Where the loop stopped."""

    step: int
    finished: bool  # False where it was asked to stop, be it at its last step
    saved: int | None  # the newest checkpoint's step, None where there is no checkpoint
    evaluation: dict[str, float]  # of the last evaluation; empty where there was none


def run(config: Config, recipe: Recipe, workdir: epath.Path, claim: Callable[[], None] = lambda: None) -> Result:
    """Trains from the newest checkpoint in the workdir, or from the start, to the last step or a request to stop.

    claim: is called once the first state is there, and so after all that a mistake in the configuration can fail at.

    Raises UserError where the mesh, the batch and the devices do not fit together, the devices' memory is too small, no
    checkpoint can be read, the disk is full, or too many steps in a row were skipped because a number was not finite.
    """
    try:
        with jax.set_mesh(sharding.mesh_of(config)):
            return _run(config, recipe, workdir, claim)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of memory ({str(error).partition(chr(10))[0]}); cut the batch of {config.train.batch_size} rows "
            f"into more microbatches: --config.train.accumulation={2 * config.train.accumulation}"
        ) from error


def _run(config: Config, recipe: Recipe, workdir: epath.Path, claim: Callable[[], None]) -> Result:
    mesh = jax.sharding.get_mesh()
    layout, last = sharding.batch_sharding(mesh), config.train.steps
    abstract = abstract_state(config, recipe.init, mesh)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.train)
    first, state, restored = _first_state(config, recipe, workdir, checkpoints, abstract)
    claim()
    best, skips = _Best(recipe, workdir), Skips(config.train.max_skipped)
    window = Window(first, config.train.log_every, recipe.metrics, mesh, restored.window)
    watchdog = Watchdog(config.train.stall_seconds, _place())
    events = Events(recipe.blocks, recipe.of, trained_params(config, abstract["params"]), str(workdir))
    evaluation: dict[str, float] = {}
    is_due = False  # whether a save is

    unevaluated = restored.evaluation_is_due  # whether the evaluation of this step is still to be done

    signals, stepping = StopSignals(), lifeline.stepping()
    with _Log(recipe, workdir, first, last, events, unevaluated) as log, signals, stepping as stop_at, watchdog:
        log.say(f"Step {first:,} of {last:,}, {mesh.size} x {mesh.devices.flat[0].device_kind}; compiling")
        train_step = make_train_step(config, recipe.objective, abstract)
        batches = recipe.train_batches(layout, first, last)
        steps = _Steps(recipe, train_step, batches, window, skips, signals, watchdog, log)
        step = first
        while True:
            at_end = step == last
            unevaluated |= at_end or (step % config.train.eval_every == 0 and step > first)
            if unevaluated:
                began = time.monotonic()
                watchdog.leave()
                log.windows(window.finish(step))
                show = functools.partial(log.evaluating, step)
                show(0.0)
                found = signals.unless_asked(functools.partial(recipe.evaluate, state["params"], layout, show))
                if found is not None:
                    evaluation, unevaluated = found, False
                    best.keep(step, state["params"], evaluation, checkpoints)
                    log.evaluation(step, evaluation)
                if step == first:
                    log.skip(time.monotonic() - began)  # made up for an earlier start
                window.start()
            stop = signals.asked or stop_at(step)
            is_due = step > first and (is_due or step % config.train.checkpoint_every == 0 or stop or at_end)
            if stop:
                log.say(f"Asked to stop: ending at step {step:,}")
            if is_due:
                watchdog.leave()
                log.skipped(skips.finish())
                if skips.may_save(state["params"], at_end):
                    checkpoints.save(step, state, _described(recipe, step, window, log, unevaluated))
                    is_due = False
            if at_end or stop or skips.too_many():
                break
            state = steps.take(step, state)
            step += 1
        given_up = skips.too_many() or (at_end and is_due)
        if given_up:
            log.windows(window.finish(step))
        saved = checkpoints.newest
        checkpoints.close()
    log.close()
    if given_up:
        raise UserError(events.given_up(skips.in_a_row, step, saved))
    return Result(step, at_end and not stop, saved, evaluation)


class _Steps:
    """Takes the steps of a run, one after another."""

    def __init__(
        self,
        recipe: Recipe,
        train_step: Callable[[State, Batch], tuple[State, Sums]],
        batches: Iterator[Batch],
        window: Window,
        skips: Skips,
        signals: StopSignals,
        watchdog: Watchdog,
        log: "_Log",
    ):
        self._recipe, self._train_step, self._batches = recipe, train_step, batches
        self._window, self._skips, self._signals, self._watchdog, self._log = window, skips, signals, watchdog, log
        # The shapes of a batch for which the step is compiled -> the batch's size.
        self._sizes: dict[tuple[tuple[int, ...], ...], BatchSize] = {}

    def take(self, step: int, state: State) -> State:
        """The state after `step`. Waits for the step STEPS_AHEAD before, and logs windows that are ready."""
        self._watchdog.begin(step)
        asked = time.monotonic()
        batch = next(self._batches)
        began = time.monotonic()
        self._window.waited += began - asked
        shapes = tuple(array.shape for array in batch.values())
        known = self._sizes.get(shapes)
        size = known or self._recipe.batch_size(batch)
        if self._sizes and not known:
            self._log.at(step, f"compiling for {size.words}")
        if not known:
            self._watchdog.leave()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, sums = self._train_step(state, batch)
        del batch  # frees its arrays while the device is busy: freed with the next batch, they would hold that up
        if not known:
            self._sizes[shapes] = size
            self._window.skip(time.monotonic() - began)
            self._log.skip(time.monotonic() - asked)  # the first batch waits for its pipeline to start
        self._signals.wait_for_saves()
        self._watchdog.doing = "the device"
        self._log.skipped(self._skips.add(step, sums))
        self._watchdog.end()
        self._log.windows(self._window.add(step + 1, sums, size))
        self._log.at(step + 1)
        return state


def _place() -> str:
    """This process among those of the run, for the beginning of a line; "" where there is one."""
    return f"process {jax.process_index()} of {jax.process_count()}: " if jax.process_count() > 1 else ""


def _first_state(
    config: Config, recipe: Recipe, workdir: epath.Path, checkpoints: Checkpoints, abstract: State
) -> tuple[int, State, Metadata]:
    """(step, state, metadata) to begin with: of the newest sound checkpoint, or, where there is none, 0, a new state
    and the recipe's metadata."""
    tried: list[Metadata] = []

    def check(saved: Metadata) -> None:
        check_same_data(recipe, saved, workdir)
        tried.append(saved)

    found = checkpoints.restore_newest(abstract, check)
    if found:
        return *found, tried[-1]
    return 0, new_state(config, recipe, abstract), recipe.metadata


def new_state(config: Config, recipe: Recipe, abstract: State) -> State:
    """The state before the first step of a run, laid out as `abstract`."""
    state = init_state(config, recipe.init, abstract)
    return with_params(state, recipe.initial_params()) if recipe.initial_params else state


def _described(recipe: Recipe, step: int, window: Window, log: "_Log", due: bool) -> Metadata:
    """The metadata of a save of `step`. All lines of metrics up to the step are in the files before the save begins: a
    run that goes on from the checkpoint writes the lines after it alone."""
    log.windows(window.full())
    log.flush()
    return dataclasses.replace(recipe.metadata, step=step, window=window.state(), evaluation_is_due=due)


def check_same_data(recipe: Recipe, saved: Metadata, workdir: epath.Path) -> None:
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
        """Writes `params` to best/ if they are finite and the evaluation of `step` is the best so far, after the save
        under way."""
        name = self._recipe.best
        # Never of NaN, which a correlation may be.
        if name and evaluation[name] > self._value and all_finite(params):
            self._value = evaluation[name]
            checkpoints.wait()
            metadata = dataclasses.replace(self._recipe.metadata, step=step, evaluation=evaluation)
            write_params(self._folder, params, metadata)


def _is_in_metrics(workdir: epath.Path, step: int) -> bool:
    """Whether metrics.jsonl has an evaluation of the step, as of a run that was killed after it had made up for it."""
    records = (record for _, record in metric_records(workdir / "metrics.jsonl") if record["step"] == step)
    return any(name.startswith("held_out/") for record in records for name in record)


class _Log(Stage):
    """The progress display of the loop, and the files of its metrics: both in the first process alone."""

    def __init__(self, recipe: Recipe, workdir: epath.Path, first: int, last: int, events: Events, unevaluated: bool):
        """first, last: steps. unevaluated: whether the evaluation of the first step is still to be done."""
        primary = jax.process_index() == 0
        self._recipe, self._last, self._events = recipe, last, events
        missing = unevaluated and primary and not _is_in_metrics(workdir, first)
        self._evaluated = -1 if missing else first  # the step whose evaluation is in the files
        self._skipped = 0
        self._of_window = ""  # words about the last window, until an evaluation says more
        self._writer = MetricsWriter(workdir, first) if primary else None
        super().__init__("Training", start=first / last, enabled=primary)

    def at(self, step: int, doing: str = "") -> None:
        """Shows the step, what is done at it or else the last window's metrics, and how many steps of this start were
        skipped."""
        skipped = f"{self._skipped:,} skipped" if self._skipped else ""
        words = [f"step {step:,}", doing or self._of_window, skipped]
        self.update(step / self._last, " · ".join(filter(None, words)))

    def windows(self, rows: list[Row]) -> None:
        """Writes the windows; the last one's metrics are shown from the next step on."""
        for row in rows:
            if self._writer:
                self._writer.write(row.step, row.metrics, [self._events.record(event) for event in row.events])
                for event in row.events:
                    if not event.skipped_for:
                        self.say(self._events.spike(event))
            known = self._recipe.describe(row.metrics) if "train/gradient_norm" in row.metrics else ""
            self._of_window = " · ".join(filter(None, [known, *_speed(row.metrics)]))

    def skipped(self, steps: list[Skipped]) -> None:
        """Shows steps that were skipped, as soon as that is known."""
        self._skipped += len(steps)
        if self._writer:
            for step in steps:
                self.say(self._events.skipped(step))

    def evaluating(self, step: int, done: float) -> None:
        """Shows the fraction of an evaluation that is done."""
        self.at(step, f"evaluating, {done:.0%} done")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and shows an evaluation's metrics. A finished run that is started again has written them already."""
        if self._writer and step > self._evaluated:
            self._writer.write(step, metrics)
        self.say(f"Step {step:,}, held out: {self._recipe.describe(metrics)}")
        self._of_window = ""
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
    rows: int,
) -> Callable[[Any, NamedSharding, Show], dict[str, float]]:
    """An evaluation that adds up the objective's sums over all batches and takes `metrics` of them. rows: the number in
    all batches, for the display; empty ones do not count."""
    step = functools.cache(lambda mesh: make_eval_step(objective, mesh))

    def evaluate(params: Any, layout: NamedSharding, show: Show) -> dict[str, float]:
        totals: collections.Counter[str] = collections.Counter()
        pending: collections.deque[Sums] = collections.deque()
        seen = 0
        for batch in batches(layout):
            pending.append(step(layout.mesh)(params, batch))
            if len(pending) > STEPS_AHEAD:
                add_sums(totals, pending.popleft())
            seen += len(batch["input_ids"])
            show(min(seen / rows, 1.0))
        for sums in pending:
            add_sums(totals, sums)
        return {f"held_out/{name}": value for name, value in metrics(totals).items()}

    return evaluate


def _speed(metrics: Mapping[str, float]) -> list[str]:
    if "train/pieces_per_second" not in metrics:
        return []
    mfu = [f"MFU {metrics['train/mfu']:.1%}"] if "train/mfu" in metrics else []
    return [f"{metrics['train/pieces_per_second']:,.0f} pieces/s", *mfu]
