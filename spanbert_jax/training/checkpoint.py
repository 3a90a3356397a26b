"""Checkpoints of a run: the training state with its metadata, and checkpoints of parameters alone.

Invariant: a checkpoint named n is the state before batch n. Orbax saves it in the background, on an interval, on
preemption and at the end. A step's directory exists only when it is whole: Orbax renames the directory into place, or
marks it as complete in a bucket, where nothing can be renamed. No damaged checkpoint is deleted.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from spanbert_jax.config import TrainConfig
from spanbert_jax.errors import UserError
from spanbert_jax.files import absolute, disk_errors, is_remote
from spanbert_jax.training.metadata import Metadata, from_json

# The parts of a run's directory that make its checkpoints: folders of steps, and the vocabulary of all of them.
CHECKPOINTS, BEST, TOKENIZER = "checkpoints", "best", "tokenizer"
_STATE, _METADATA = "state", "metadata"  # the parts of a step: arrays, and JSON that says what they are


class Checkpoints:
    """The checkpoints under one directory."""

    def __init__(self, directory: epath.Path, config: TrainConfig):
        # FixedIntervalPolicy alone would replace Orbax's default policy, preemption saves included.
        save = checkpoint_managers.AnySavePolicy(
            [
                checkpoint_managers.FixedIntervalPolicy(config.checkpoint_every),
                checkpoint_managers.PreemptionCheckpointingPolicy(),
            ]
        )
        self._manager = ocp.CheckpointManager(
            absolute(epath.Path(directory)),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=save,
                preservation_policy=checkpoint_managers.LatestN(config.keep_checkpoints),
                cleanup_tmp_directories=True,
            ),
        )

    def restore_newest(self, abstract: Any, check: Callable[[Metadata], None]) -> tuple[int, Any] | None:
        """(step, state) of the newest checkpoint that is whole; None where there is no checkpoint.

        abstract: the state's ShapeDtypeStructs with shardings, by which it is laid out whatever mesh wrote it.
        check: raises UserError for a checkpoint to which this run must not go back.
        A damaged checkpoint is renamed to STEP.damaged, with a line on stderr, and an earlier one is taken. Raises
        UserError where none is whole; where one is damaged and several processes or a bucket forbid to rename it; and
        where one is whole and holds another model's state.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with _orbax_errors():
                    saved = self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]
                    check(from_json(saved, self._name(step)))
                    state = self._restore(step, state=ocp.args.StandardRestore(abstract))["state"]
            except _Damaged as error:
                self._check_shapes(step, abstract)
                damaged[step] = str(error)
                if jax.process_count() == 1 and not is_remote(self._manager.directory):
                    continue
                break
            self._set_aside(damaged, step)
            return step, state
        if damaged:
            step = max(damaged)
            raise UserError(
                f"{self._name(step)}: this checkpoint is damaged ({damaged[step]}); move that directory away to go on "
                "from an earlier one, or, where there is none, to begin anew"
            )
        return None

    def _name(self, step: int) -> str:
        return f"{self._manager.directory}/{step}"

    def _restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_shapes(self, step: int, abstract: Any) -> None:
        """Raises UserError where a checkpoint that could not be restored holds parameters of other names or shapes."""
        try:
            saved = read_shapes(self._manager.directory / str(step))
        except UserError:  # too damaged to tell
            return
        wanted = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract["params"])
        if saved != wanted:
            raise UserError(
                f"{self._name(step)}: its parameters are not those of this configuration's model; choose another "
                "--workdir, or go on with the version of spanbert_jax that wrote it"
            )

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        """Renames each damaged checkpoint to STEP.damaged, with a line on stderr. step: the one to go on from."""
        for number, why in damaged.items():
            there = self._manager.directory / str(number)
            kept = there.with_name(f"{number}.damaged")
            while kept.exists():
                kept = kept.with_name(f"{kept.name}+")
            there.rename(kept)
            print(f"warning: {there} is damaged ({why}): kept as {kept.name}; going on from {step}", file=sys.stderr)
        if damaged:
            self._manager.reload()

    def save(self, step: int, state: Any, metadata: Metadata, force: bool = False) -> bool:
        """Saves in the background if the step is due, or `force`; True where a save began.

        Raises UserError where the disk is too full for this save or for the one before.
        """
        if step == self._manager.latest_step():
            return False
        items = {"state": ocp.args.StandardSave(state), "metadata": ocp.args.JsonSave(metadata.to_json())}
        with disk_errors(self._manager.directory):
            return self._manager.save(step, args=ocp.args.Composite(**items), force=force)

    def preempted(self, step: int) -> bool:
        """Whether the cluster asked the processes, all at one step, to stop."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

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


def is_run(path: epath.Path) -> bool:
    """Whether `path` is the directory of a run, or a checkpoint in it."""
    return any((path / name).is_dir() for name in (CHECKPOINTS, BEST, _STATE))


def run_of(checkpoint: epath.Path) -> epath.Path:
    """The directory of the run that wrote a checkpoint; `TOKENIZER` lies there."""
    return checkpoint.parent.parent


def find_checkpoint(path: epath.Path) -> epath.Path:
    """The checkpoint that `path` names. `path` may be a checkpoint itself; a workdir, of which the best checkpoint is
    taken where one was kept, else the newest; or a folder of checkpoints, of which the newest is taken.

    Raises UserError where there is none.
    """
    if (path / _STATE).is_dir() and path.name.isdigit():
        return path
    found = next((step for name in (BEST, CHECKPOINTS, ".") if (step := newest_step(path / name))), None)
    if found is None:
        raise UserError(f"{path}: no checkpoint there; give a run's --workdir or one of its checkpoints/STEP")
    return found


def newest_step(folder: epath.Path) -> epath.Path | None:
    """The newest whole checkpoint directly in a folder; None where there is none."""
    steps = [child for child in (folder.iterdir() if folder.is_dir() else ()) if child.name.isdigit()]
    whole = [step for step in steps if ocp.utils.is_checkpoint_finalized(step)]
    return max(whole, key=lambda step: int(step.name), default=None)


def read_metadata(checkpoint: epath.Path) -> Metadata:
    """The metadata of a checkpoint that `find_checkpoint` found.

    Raises UserError where the checkpoint is damaged, or a later version wrote it.
    """
    with _readable(checkpoint), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        saved = checkpointer.restore(absolute(checkpoint) / _METADATA)
    return from_json(saved, str(checkpoint))


def read_params(checkpoint: epath.Path) -> dict[str, Any]:
    """The parameters as NumPy arrays, whatever mesh wrote them; the rest of the state is not read.

    Raises UserError where the files are damaged.
    """
    with _readable(checkpoint), ocp.PyTreeCheckpointer() as checkpointer:
        state = absolute(checkpoint) / _STATE
        tree = {"params": _saved_tree(checkpointer, state)["params"]}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
        return checkpointer.restore(state, args=arguments)["params"]


def read_shapes(checkpoint: epath.Path) -> dict[str, Any]:
    """The parameters' shapes alone; raises UserError where the files are damaged."""
    with _readable(checkpoint), ocp.PyTreeCheckpointer() as checkpointer:
        tree = _saved_tree(checkpointer, absolute(checkpoint) / _STATE)["params"]
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def _saved_tree(checkpointer: ocp.PyTreeCheckpointer, state: epath.Path) -> Any:
    metadata = checkpointer.metadata(state).item_metadata
    if metadata is None:
        raise ValueError(f"{state} does not say what it holds")
    return metadata.tree


def write_params(directory: epath.Path, params: Mapping[str, Any], metadata: Metadata) -> None:
    """Writes a checkpoint of parameters alone, to predict with or to start other runs from: the only one there.

    It is written in small chunks and files, because buffers of Orbax's default sizes would take as much memory as
    BERT-base again. Raises UserError where the disk is full.
    """
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=2**21), params)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(1), cleanup_tmp_directories=True
    )
    place = absolute(epath.Path(directory))
    with disk_errors(place), ocp.CheckpointManager(place, options=options) as manager:
        for old in manager.all_steps():
            # A run that went back to an earlier checkpoint left a later one here. Orbax would keep it, not this one.
            if old >= metadata.step:
                manager.delete(old)
        state = ocp.args.PyTreeSave({"params": params}, save_args={"params": chunks}, ocdbt_target_data_file_size=2**24)
        manager.save(
            metadata.step, args=ocp.args.Composite(state=state, metadata=ocp.args.JsonSave(metadata.to_json()))
        )


class _Damaged(Exception):
    """A file of a checkpoint is missing, cut off, or not as it was written. The text says so in one line."""


# Errors of reads that nobody waits for any more.
_LATE = ("Event loop is closed", "Encountered error while reading", "was never awaited")
_NO_DAMAGE = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Permission denied")


@contextlib.contextmanager
def _orbax_errors() -> Iterator[None]:
    """Turns the many exceptions that Orbax raises over a damaged checkpoint into _Damaged.

    Errors of the network and of permissions pass, and so do UserError and a lack of memory.
    """
    # Orbax gives up at the first error and closes its event loop; each read that was under way then prints a traceback.
    hook = sys.unraisablehook
    sys.unraisablehook = lambda late: None if any(w in str(late.exc_value) for w in _LATE) else hook(late)
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        cause = error.__cause__ if type(error) is Exception and error.__cause__ else error
        if any(word in str(cause) for word in _NO_DAMAGE):
            raise
        raise _Damaged(str(cause).partition("\n")[0][:200]) from error
    sys.unraisablehook = hook  # only after success: late reads may come at any time


@contextlib.contextmanager
def _readable(checkpoint: epath.Path) -> Iterator[None]:
    try:
        with _orbax_errors():
            yield
    except _Damaged as error:
        raise UserError(f"{checkpoint}: this checkpoint is damaged ({error}); name another, or move it away") from error
