"""Whether two runs of one configuration came to the same end: parameters, optimizer, metrics, results.

Invariant: nothing is rounded. Arrays are compared by their bytes and metrics by their digits. Only the speeds are left
out, because they depend on the machine and on its load.
"""

import collections
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from spanbert_jax.training.checkpoint import BEST, CHECKPOINTS, read_state, whole_steps
from spanbert_jax.training.progress import metric_records
from spanbert_jax.training.window import SPEEDS

_RESULTS = ("predictions.jsonl", "results.json")  # of fine-tuning, where the first run has them


class Check(NamedTuple):
    """One thing that was compared."""

    what: str
    same: bool
    words: str  # the finding


def compare(first: Path, second: Path) -> list[Check]:
    """Compares two finished workdirs, of fine-tuning each trial. Raises UserError where a checkpoint is damaged."""
    checks: list[Check] = []
    for one, other in zip(places(first), places(second), strict=False):
        found = [*_states(one, other), _metrics(one, other), _events(other), *_files(one, other)]
        checks += [check._replace(what=f"{other.name}: {check.what}") if one != first else check for check in found]
    counts = [len(places(workdir)) for workdir in (first, second)]
    if counts[0] != counts[1]:
        checks.append(Check("trials", False, f"{counts[0]} and {counts[1]}"))
    return checks if places(first) == [first] else [*checks, *_files(first, second)]


def places(workdir: Path) -> list[Path]:
    """The directories of a run's checkpoints and metrics: of each trial where there are several, otherwise the
    workdir."""
    trials = workdir.glob("trial_*")
    return sorted(trials, key=lambda place: int(place.name.removeprefix("trial_"))) or [workdir]


def _states(one: Path, other: Path) -> Iterator[Check]:
    for folder, what in ((CHECKPOINTS, "final parameters and optimizer state"), (BEST, "best parameters")):
        found = [whole_steps(epath.Path(place / folder))[:1] for place in (one, other)]
        names = [step[0].name if step else "none" for step in found]
        if names[0] != names[1]:
            yield Check(what, False, f"at step {names[0]} and at step {names[1]}")
        elif found[0]:
            yield Check(what, *_same_arrays(*(read_state(step[0]) for step in found)))


def _same_arrays(one: Any, other: Any) -> tuple[bool, str]:
    ours, theirs = (dict(_leaves(tree)) for tree in (one, other))
    differing = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    if differing:
        return False, f"{len(differing)} of {len(ours)} arrays differ, such as {min(differing)}"
    return True, f"{len(ours)} arrays, bitwise equal"


def _leaves(tree: Any) -> Iterator[tuple[str, tuple[str, tuple[int, ...], bytes]]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        yield jax.tree_util.keystr(path), (str(array.dtype), array.shape, array.tobytes())


def _lines(place: Path) -> list[tuple[int, bool, str]]:
    """(step, whether it is an evaluation, the metrics without speeds) of each line of metrics.jsonl."""
    records = [record for _, record in metric_records(epath.Path(place / "metrics.jsonl"))]
    kept = [{name: value for name, value in record.items() if name not in SPEEDS} for record in records]
    return [
        (int(row["step"]), any("held_out/" in name for name in row), json.dumps(row, sort_keys=True)) for row in kept
    ]


def _metrics(one: Path, other: Path) -> Check:
    """Whether `other` has each line of metrics once, and the same ones as `one`."""
    ours, theirs = _lines(one), _lines(other)
    counts = collections.Counter(line[:2] for line in theirs)
    twice = [step for (step, _), count in counts.items() if count > 1]
    if twice:
        return Check("metrics.jsonl", False, f"has step {min(twice)} more than once")
    differing = sorted(set(ours) ^ set(theirs))
    if differing:
        return Check("metrics.jsonl", False, f"differs in {len(differing)} lines, first at step {differing[0][0]}")
    return Check("metrics.jsonl", ours == theirs, f"each of {len(theirs)} lines once, equal but for speeds")


def _events(place: Path) -> Check:
    """Whether TensorBoard shows each step of each metric once, and the steps of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    wanted: dict[str, list[int]] = {}
    for _, record in metric_records(epath.Path(place / "metrics.jsonl")):
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):  # and no list of events
                wanted.setdefault(name, []).append(int(record["step"]))
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of each restart
    events = EventAccumulator(str(place / "tensorboard"), {SCALARS: 0})  # 0: all, and no sample
    events.Reload()
    tags = set(events.Tags()[SCALARS])
    shown = {name: [event.step for event in events.Scalars(name)] for name in tags}
    differing = [name for name in wanted.keys() | tags if wanted.get(name) != shown.get(name)]
    if differing:
        return Check("TensorBoard", False, f"shows other steps than metrics.jsonl, such as of {min(differing)}")
    return Check("TensorBoard", True, f"each step of {len(wanted)} metrics once")


def _files(one: Path, other: Path) -> Iterator[Check]:
    for name in _RESULTS:
        if (one / name).exists():
            same = (other / name).exists() and (one / name).read_bytes() == (other / name).read_bytes()
            yield Check(name, same, "equal" if same else "differs or is missing")
