"""Checkpoints of a run: the state and, as JSON, all that says what the state is.

Invariant: a checkpoint named n is the state before batch n. It is saved on an interval, on preemption and at the
end, asynchronously, and a step directory exists only when it is whole (Orbax renames it into place).
"""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from spanbert_jax.config import TrainConfig
from spanbert_jax.errors import UserError


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
            epath.Path(directory).resolve(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=save,
                preservation_policy=checkpoint_managers.LatestN(config.keep_checkpoints),
                cleanup_tmp_directories=True,
            ),
        )

    def latest(self) -> int | None:
        """The newest step that was saved whole."""
        return self._manager.latest_step()

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON that was saved with the state."""
        return self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]

    def restore(self, step: int, abstract: Any) -> Any:
        """The state, laid out as `abstract` (ShapeDtypeStructs with shardings) says, whatever mesh wrote it.

        Raises UserError where the files do not hold such a state.
        """
        return self._restore(step, state=ocp.args.StandardRestore(abstract))["state"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"{self._manager.directory}/{step}: this checkpoint is damaged, or not of this configuration's model "
                f"({str(error).partition(chr(10))[0]}); delete that directory to go on from an earlier one"
            ) from error

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], force: bool = False) -> bool:
        """Saves in the background if the step is due, or `force`; True where a save began."""
        if step == self._manager.latest_step():
            return False
        return self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(dict(metadata))),
            force=force,
        )

    def preempted(self, step: int) -> bool:
        """Whether the cluster asked the processes, all at one step, to stop."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits for the saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()
