"""Checkpoints of a run: the training state with its metadata, and checkpoints of parameters alone.

Invariant: a checkpoint named n is the state before batch n. Orbax saves it in the background. A step's directory exists
only when it is whole: Orbax renames the directory into place, or marks it as complete in a bucket, where nothing can be
renamed. Every array that is read has the checksum that was saved with it. No damaged checkpoint is deleted: a run
renames it to STEP.damaged, and goes on from the newest sound one. All processes go on from the same one.
"""

import contextlib
import dataclasses
import functools
import logging
import sys
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.path import atomicity_types

from spanbert_jax.config import TrainConfig
from spanbert_jax.errors import UserError
from spanbert_jax.files import absolute, bucket_errors, disk_errors, move_directory
from spanbert_jax.training.checksums import checksums, difference
from spanbert_jax.training.metadata import Damaged, Metadata, from_json
from spanbert_jax.training.step import all_finite
from spanbert_jax.training.together import first_text, together

# The parts of a run's directory that make its checkpoints: folders of steps, and the vocabulary of all of them.
CHECKPOINTS, BEST, TOKENIZER = "checkpoints", "best", "tokenizer"
_STATE, _METADATA = "state", "metadata"  # the parts of a step: arrays, and JSON that says what they are


# Orbax takes the wall clock to measure how long it has waited for a save. A wall clock that jumps ahead by more than
# the timeout, 5 to 20 minutes, would fail a sound save. In the modules that compare a time with a timeout, this object
# stands for the module `time`, and its clock does not jump. A test shows that the modules are still these ones.
_STEADY = types.SimpleNamespace(time=time.monotonic, perf_counter=time.perf_counter)
for _name in ("futures.future", "futures.signaling_client", "checkpointers.async_checkpointer"):
    if _module := sys.modules.get(f"orbax.checkpoint._src.{_name}"):
        vars(_module)["time"] = _STEADY


class Checkpoints:
    """The checkpoints under one directory."""

    def __init__(self, directory: epath.Path, config: TrainConfig):
        self._manager = ocp.CheckpointManager(
            absolute(epath.Path(directory)),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(config.keep_checkpoints),
                cleanup_tmp_directories=True,
                single_host_load_and_broadcast=True,  # the steps that are there, as process 0 lists them
            ),
        )

    def restore_newest(self, abstract: Any, check: Callable[[Metadata], None]) -> tuple[int, Any] | None:
        """(step, state) of the newest sound checkpoint; None where there is no checkpoint.

        abstract: the state's ShapeDtypeStructs with shardings, by which it is laid out whatever mesh wrote it.
        check: raises UserError for a checkpoint to which this run must not go back; last called for the returned one.
        A checkpoint that any process finds damaged is renamed to STEP.damaged, with a line on stderr. Raises UserError
        where every checkpoint is damaged; then none is renamed. Raises it also where a sound checkpoint holds another
        model's state, and where a damaged one cannot be renamed.
        """
        damaged: dict[int, str] = {}
        for step in sorted(map(int, self._manager.all_steps()), reverse=True):
            read = functools.partial(self._read, step, abstract, check)
            state, saved, why = together(f"read {self._place(step)}", read)
            # Where a process could not read its part, no process has a whole state to add up the checksums of.
            if damage := first_text(why) or first_text(difference(saved, state)) or _flaw(state):
                damaged[step] = damage
                del state  # which a process has where only another one finds damage
                continue
            if damaged:
                set_aside = functools.partial(self._set_aside, damaged, step)
                together("set damaged checkpoints aside", set_aside, jax.process_index() == 0)
                self._manager.reload()
            return step, state
        if damaged:
            each = "; ".join(f"{step}: {why}" for step, why in damaged.items())
            raise UserError(
                f"{self._manager.directory}: every checkpoint there is damaged ({each}); put an undamaged copy in "
                "their place, or move them away to begin anew"
            )
        return None

    def _place(self, step: int) -> epath.Path:
        return self._manager.directory / str(step)

    def _read(self, step: int, abstract: Any, check: Callable[[Metadata], None]) -> tuple[Any, Mapping[str, int], str]:
        """(the state, its checksums as they were saved, ""); where the checkpoint is damaged, (None, {}, the damage).

        No process waits for another here: a checkpoint may be damaged where one process reads, and sound elsewhere.
        """
        checkpoint = self._place(step)
        try:
            metadata = read_metadata(checkpoint)
            check(metadata)
            return _restore(checkpoint, abstract), metadata.checksums, ""
        except Damaged as error:
            self._check_shapes(checkpoint, abstract)
            return None, {}, error.why

    def _check_shapes(self, checkpoint: epath.Path, abstract: Any) -> None:
        """Raises UserError where a checkpoint that could not be restored holds parameters of other names or shapes."""
        try:
            saved = read_shapes(checkpoint)
        except UserError:  # too damaged to tell
            return
        wanted = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract["params"])
        if saved != wanted:
            raise UserError(
                f"{checkpoint}: its parameters are not those of this configuration's model; choose another "
                "--workdir, or go on with the version of spanbert_jax that wrote it"
            )

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        for number, why in damaged.items():
            _set_aside(self._place(number), why, f"going on from {step}")

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, the one that is being written included; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metadata: Metadata) -> None:
        """Saves in the background. The caller decides when: `training/loop.py`.

        Raises UserError where the disk is too full for this save or for the one before.
        """
        described = dataclasses.replace(metadata, checksums=checksums(state)).to_json()
        items = {"state": ocp.args.StandardSave(state), "metadata": ocp.args.JsonSave(described)}
        with disk_errors(self._manager.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Waits for the save under way, which must end before another of Orbax's managers writes.

        Processes number their barriers over all managers. Two saves that end at once, in another order on each process,
        would therefore wait for each other for ever.
        """
        with disk_errors(self._manager.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save under way, and releases what Orbax holds."""
        self.wait()
        self._manager.close()


def _flaw(state: Any) -> str:
    """ "" where a run can go on from the state. (Earlier versions saved what no later step could mend.)"""
    return "" if all_finite(state["params"]) else "its parameters are not finite"


def is_run(path: epath.Path) -> bool:
    """Whether `path` is the directory of a run, or a checkpoint in it."""
    return _is_checkpoint(path) or any((path / name).is_dir() for name in (CHECKPOINTS, BEST, _STATE))


def _is_checkpoint(path: epath.Path) -> bool:
    return path.name.isdecimal() and any((path / part).is_dir() for part in (_STATE, _METADATA))


def run_of(checkpoint: epath.Path) -> epath.Path:
    """The directory of the run that wrote a checkpoint; `TOKENIZER` lies there."""
    return checkpoint.parent.parent


def find_checkpoint(path: epath.Path) -> epath.Path:
    """The checkpoint that `path` names. `path` may be a checkpoint itself; a workdir, of which the best checkpoint is
    taken where one was kept, else the newest; or a folder of checkpoints, of which the newest is taken.

    A damaged checkpoint is skipped, with a line on stderr, unless `path` is that checkpoint. Raises UserError where
    there is none, and where every one is damaged.
    """
    if _is_checkpoint(path):
        return path
    skipped: list[str] = []
    for step in (step for folder in (path / BEST, path / CHECKPOINTS, path) for step in whole_steps(folder)):
        why = _damage(step)
        if not why:
            for line in skipped:
                print(f"warning: {line}; {step} is used", file=sys.stderr)
            return step
        skipped.append(f"{step} is damaged ({why})")
    if skipped:
        raise UserError(f"{path}: no sound checkpoint there: {'; '.join(skipped)}; name another, or an undamaged copy")
    raise UserError(f"{path}: no checkpoint there; give a run's --workdir or one of its checkpoints/STEP")


def whole_steps(folder: epath.Path) -> list[epath.Path]:
    """The checkpoints directly in a folder, the newest first, without those whose save was cut off."""
    steps = [child for child in (folder.iterdir() if folder.is_dir() else ()) if child.name.isdecimal()]
    whole = [step for step in steps if ocp.utils.is_checkpoint_finalized(step)]
    return sorted(whole, key=lambda step: int(step.name), reverse=True)


def newest_sound(folder: epath.Path, then: str) -> epath.Path | None:
    """The newest checkpoint of parameters in a folder that is not damaged; None where there is none.

    A damaged one that is newer is renamed to STEP.damaged, with a line on stderr that ends in `then`.
    """
    for step in whole_steps(folder):
        why = _damage(step)
        if not why:
            return step
        _set_aside(step, why, then)
    return None


def _damage(checkpoint: epath.Path) -> str:
    """The damage to a checkpoint's metadata or parameters in one line, "" where there is none. Both are read whole."""
    try:
        read_metadata(checkpoint)
        read_params(checkpoint)
    except Damaged as error:
        return error.why
    return ""


def _set_aside(checkpoint: epath.Path, why: str, then: str) -> None:
    """Renames a damaged checkpoint to STEP.damaged, with a line on stderr. then: the line's end."""
    kept = checkpoint.with_name(f"{checkpoint.name}.damaged")
    while kept.exists():
        kept = kept.with_name(f"{kept.name}+")
    try:
        with bucket_errors(checkpoint, "--workdir"):
            move_directory(checkpoint, kept, atomicity_types.COMMIT_SUCCESS_FILE)
    except OSError as error:
        raise UserError(
            f"{checkpoint}: this checkpoint is damaged ({why}) and cannot be renamed to {kept.name} "
            f"({error.strerror}); move it away, and the same command goes on"
        ) from error
    print(f"warning: {checkpoint} is damaged ({why}): kept as {kept.name}; {then}", file=sys.stderr)


def read_metadata(checkpoint: epath.Path) -> Metadata:
    """The metadata of a checkpoint that `find_checkpoint` found.

    Raises UserError where the checkpoint is damaged, or a later version wrote it.
    """
    with _readable(checkpoint):
        try:
            saved = ocp.JsonCheckpointHandler().restore(absolute(checkpoint) / _METADATA)
        except ValueError as error:
            raise ValueError(f"{_METADATA}: {error}") from error
        return from_json(saved, str(checkpoint))


def restore_state(checkpoint: epath.Path, abstract: Any) -> Any:
    """The state of a run's checkpoint, laid out as `abstract`: ShapeDtypeStructs with shardings.

    Raises UserError where the files are damaged, and where an array is not the one that was saved.
    """
    state = _restore(checkpoint, abstract)
    if why := difference(read_metadata(checkpoint).checksums, state):
        raise Damaged(str(checkpoint), why)
    return state


def _restore(checkpoint: epath.Path, abstract: Any) -> Any:
    """The state of a checkpoint, whose checksums are not yet compared."""
    with _readable(checkpoint), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        return handler.restore(absolute(checkpoint) / _STATE, args=ocp.args.StandardRestore(abstract))


def read_params(checkpoint: epath.Path) -> dict[str, Any]:
    """The parameters as NumPy arrays, whatever mesh wrote them; the rest of the state is not read.

    Raises UserError where the files are damaged, and where an array is not the one that was saved.
    """
    return read_state(checkpoint, ("params",))["params"]


def read_state(checkpoint: epath.Path, parts: Collection[str] = ("params", "opt_state", "step")) -> dict[str, Any]:
    """The parts of the state that are there, as NumPy arrays, whatever mesh wrote them.

    Raises UserError where the files are damaged, and where an array is not the one that was saved.
    """
    saved = read_metadata(checkpoint).checksums
    state = absolute(checkpoint) / _STATE
    with _readable(checkpoint), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = {name: part for name, part in handler.metadata(state).tree.items() if name in parts}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
        found: dict[str, Any] = handler.restore(state, args=arguments)
    if why := difference(saved, found):
        raise Damaged(str(checkpoint), why)
    return found


def read_shapes(checkpoint: epath.Path) -> dict[str, Any]:
    """The parameters' shapes alone; raises UserError where the files are damaged."""
    with _readable(checkpoint), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(absolute(checkpoint) / _STATE).tree["params"]
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def write_params(directory: epath.Path, params: Mapping[str, Any], metadata: Metadata) -> None:
    """Writes a checkpoint of parameters alone, to predict with or to start other runs from: the only one there.

    It is written in small chunks and files, because buffers of Orbax's default sizes would take as much memory as
    BERT-base again. Raises UserError where the disk is full.
    """
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=2**21), params)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(1),
        cleanup_tmp_directories=True,
        single_host_load_and_broadcast=True,
    )
    place = absolute(epath.Path(directory))
    with disk_errors(place), ocp.CheckpointManager(place, options=options) as manager:
        for old in manager.all_steps():
            # A run that went back to an earlier checkpoint left a later one here. Orbax would keep it, not this one.
            if old >= metadata.step:
                manager.delete(old)
        state = ocp.args.PyTreeSave({"params": params}, save_args={"params": chunks}, ocdbt_target_data_file_size=2**24)
        described = dataclasses.replace(metadata, checksums=checksums({"params": params})).to_json()
        manager.save(metadata.step, args=ocp.args.Composite(state=state, metadata=ocp.args.JsonSave(described)))


# Errors of reads that nobody waits for any more, by words of Orbax, asyncio and tensorstore.
_LATE = (
    "Event loop is closed",
    "Encountered error while reading",
    "was never awaited",
    "Error opening",
    "Error reading",
)
_NO_DAMAGE = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Permission denied")


def _is_late(error: BaseException | None) -> bool:
    return any(words in str(error) for words in _LATE)


def _is_no_late_read(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _is_late(record.exc_info[1]))


@contextlib.contextmanager
def _readable(checkpoint: epath.Path) -> Iterator[None]:
    """Turns the many exceptions that Orbax raises over a damaged checkpoint into Damaged.

    Errors of the network and of permissions become a UserError that speaks of no damage. A lack of memory passes.
    """
    # Orbax gives up at the first error and closes its event loop. Each read that was under way then prints a traceback,
    # by Python's hook or by asyncio's logger.
    hook = sys.unraisablehook
    sys.unraisablehook = lambda late: None if _is_late(late.exc_value) else hook(late)
    logging.getLogger("asyncio").addFilter(_is_no_late_read)
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        cause = error.__cause__ if type(error) is Exception and error.__cause__ else error
        why = str(cause).partition("\n")[0][:200]
        if any(word in str(cause) for word in _NO_DAMAGE):
            raise UserError(
                f"{checkpoint}: cannot be read ({why}); check this machine's rights and its connection, and start again"
            ) from error
        raise Damaged(str(checkpoint), why) from error
    sys.unraisablehook = hook  # only after success: late reads may come at any time
