"""What a run says about steps that were skipped and about loss spikes: lines for people, and objects for metrics.jsonl.

Invariant: every line and every object names the step and blocks of its batch, so that `tools/replay.py` can run the
step again. A line is bounded however large the batch is.
"""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spanbert_jax.training.skips import Skipped
from spanbert_jax.training.step import skip_reason
from spanbert_jax.training.window import Event

_NAMED = 8  # blocks that a line names


class Events:
    """The words for the events of one run."""

    def __init__(self, blocks: Callable[[int], np.ndarray], of: str, trained: Any, workdir: str):
        """blocks, of: as in `loop.Recipe`. trained: a tree with the trained parameters' names."""
        self._blocks_of, self._of, self._trained, self._workdir = blocks, of, trained, workdir

    def record(self, event: Event) -> dict[str, Any]:
        """The event as a JSON object; docs/pretraining.md lists the fields."""
        known: dict[str, Any] = {"step": event.step}
        if event.skipped_for:
            known |= {"event": "skipped", "not_finite": skip_reason(event.skipped_for, self._trained)}
        else:
            known |= {"event": "spike", "loss": event.loss, "z": event.z, "median": event.median}
        return known | {self._of: self._blocks(event.step).tolist()}

    def spike(self, event: Event) -> str:
        """A line about a spike."""
        return (
            f"Step {event.step:,}: loss {event.loss:.4g} is a spike, {event.z:.0f} deviations above the median "
            f"{event.median:.4g}; {self._named(event.step)}"
        )

    def skipped(self, skipped: Skipped) -> str:
        """A line about a step that was skipped."""
        reason = skip_reason(skipped.reason, self._trained)
        return f"Step {skipped.step:,}: skipped, {reason} is not finite; {self._named(skipped.step)}"

    def given_up(self, in_a_row: Sequence[Skipped], step: int, saved: int | None) -> str:
        """The line with which a run gives up at `step`. in_a_row: the skipped steps before, or none where an update by
        finite gradients made parameters that are not finite. saved: the newest checkpoint."""
        newest = "there is no checkpoint" if saved is None else f"the newest checkpoint is {saved}"
        first = in_a_row[0].step if in_a_row else step - 1
        if in_a_row:
            reason = skip_reason(in_a_row[0].reason, self._trained)
            what = (
                f"{len(in_a_row):,} steps in a row were skipped; in step {first:,}, the first, {reason} is not finite"
            )
        else:
            what = f"the update of step {first:,}, or of an earlier one, made parameters that are not finite"
        command = f"python tools/replay.py --workdir {shlex.quote(self._workdir)} --step {first}"
        return f"{self._workdir}: {what}; {self._named(first)}; {newest}; to see where the number arises: {command}"

    def _blocks(self, step: int) -> np.ndarray:
        blocks = self._blocks_of(step)
        return blocks[blocks >= 0]

    def _named(self, step: int) -> str:
        blocks = self._blocks(step)
        more = f", ... ({len(blocks):,})" if len(blocks) > _NAMED else ""
        return f"{self._of} {', '.join(map(str, blocks[:_NAMED]))}{more}"
