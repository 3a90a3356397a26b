"""The display of a run's progress, and the files of its metrics: metrics.jsonl and TensorBoard events.

Invariant: metrics.jsonl holds every metric of a step once, whatever the display and however often the run was resumed.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from spanbert_jax import json_files
from spanbert_jax.files import disk_errors, is_remote, written_aside

_SECONDS_BETWEEN_LINES = 10.0
Show = Callable[[float], None]  # shows progress: takes the fraction that is done
SECONDS_BETWEEN_COPIES = 1.0  # to a bucket: Google Cloud Storage accepts one write of an object a second


def quiet(_: float) -> None:
    """Shows nothing."""


def clock(seconds: float) -> str:
    """75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Stage:
    """A stage of work: a bar on a terminal, a line every ten seconds elsewhere, nothing where it is not `enabled`."""

    def __init__(self, title: str, start: float = 0.0, enabled: bool = True):
        """start: the fraction that an earlier run did. The estimate of the time left does not count that fraction."""
        self._title, self._first, self._enabled = title, start, enabled
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._began = self._printed = self._timed = time.monotonic()
        self._detail = ""

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(self._title, total=None, detail="")
            self._bar.start()
        elif self._enabled:
            self._console.print(f"{self._title} ...", markup=False)
        return self

    def update(self, fraction: float | None, detail: str) -> None:
        """Shows the fraction of the stage that is done (None: not known) and `detail`, a few words beside it."""
        now = time.monotonic()
        if fraction is not None and fraction > self._first and now - self._timed > 1:
            left = (now - self._timed) * (1 - fraction) / (fraction - self._first)
            timed = f"{detail} · {clock(left)} left"
        else:
            timed = " · ".join(filter(None, [detail, "" if self._bar else clock(now - self._began)]))
        self._detail = detail
        if self._bar:
            total = None if fraction is None else 1.0
            self._bar.update(self._task, total=total, completed=fraction or 0.0, detail=timed)
        elif self._enabled and now - self._printed >= _SECONDS_BETWEEN_LINES:
            percent = "" if fraction is None else f"{100 * fraction:3.0f}% · "
            self._console.print(f"{self._title}: {percent}{timed}", markup=False)
            self._printed = now

    def skip(self, seconds: float) -> None:
        """Leaves the last `seconds` out of the estimate of the time left: they went into work that does not recur."""
        self._timed += seconds

    def say(self, line: str) -> None:
        """Prints a line that stays, above the bar."""
        if self._enabled:
            self._console.print(line, markup=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.update(self._task, visible=False)
            self._bar.stop()
        if self._enabled and kind is None:
            detail = f" · {self._detail}" if self._detail else ""
            self._console.print(f"{self._title}: {clock(time.monotonic() - self._began)}{detail}", markup=False)


def metric_records(file: epath.Path) -> list[tuple[str, dict[str, float]]]:
    """The lines of a metrics.jsonl, each with the object that it holds; none where there is no file.

    Lines that hold no object with a step are left out: half a line, of a run that was killed while writing, and other
    damage.
    """
    found = []
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        with contextlib.suppress(ValueError):
            record = json_files.parse(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                found.append((line.decode(), record))
    return found


class MetricsWriter:
    """Appends to <workdir>/metrics.jsonl and <workdir>/tensorboard.

    In a bucket no file can be appended to. Both are then written on this machine and copied whole, at most once a
    second and before a save. A run that is killed writes again the lines after the checkpoint that it goes on from.
    """

    def __init__(self, workdir: epath.Path, step: int):
        """Keeps what an earlier start wrote up to `step`, from which this one goes on, and drops the rest."""
        from tensorboard.compat.proto import event_pb2, summary_pb2  # TensorFlow's, or its stand-in where it is missing
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._bucket = workdir if is_remote(workdir) else None
        self._folder = epath.Path(tempfile.mkdtemp()) if self._bucket else workdir
        self._copied = time.monotonic()
        written, self._path = workdir / "metrics.jsonl", self._folder / "metrics.jsonl"
        kept = [line for line, record in metric_records(written) if record["step"] <= step]
        with written_aside(self._path) as aside:
            aside.write_text("".join(f"{line}\n" for line in kept))
        self._file = self._path.open("a")
        with disk_errors(self._folder / "tensorboard"):
            self._events = EventFileWriter(str(self._folder / "tensorboard"))
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # at which TensorBoard drops later steps
        self._add(self._event(step=step + 1, wall_time=time.time(), session_log=started))

    def write(self, step: int, metrics: Mapping[str, float], events: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes one line {"step": ..., name: value} and one event of TensorBoard. Raises UserError where the disk is
        full. events: JSON objects about single steps, which are in the line alone, under "train/events"."""
        line = {"step": step, **metrics} | ({"train/events": list(events)} if events else {})
        with disk_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        values: list[Any] = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))
        if self._bucket and time.monotonic() - self._copied >= SECONDS_BETWEEN_COPIES:
            self._events.flush()
            self._copy(self._bucket)

    def _add(self, event: Any) -> None:
        with disk_errors(self._folder / "tensorboard"):
            self._events.add_event(event)

    def flush(self) -> None:
        """Writes out all that was written so far, to the bucket too, so that a kill of the process loses none of it."""
        with disk_errors(self._folder / "tensorboard"):
            self._events.flush()
        if self._bucket:
            self._copy(self._bucket)

    def _copy(self, bucket: epath.Path) -> None:
        (bucket / "tensorboard").mkdir(parents=True, exist_ok=True)
        for path in (self._folder / "metrics.jsonl", *(self._folder / "tensorboard").iterdir()):
            (bucket / path.relative_to(self._folder)).write_bytes(path.read_bytes())
        self._copied = time.monotonic()

    def close(self) -> None:
        """Writes out both files, and copies them to the bucket where there is one."""
        with disk_errors(self._path):
            self._file.close()
        with disk_errors(self._folder / "tensorboard"):
            self._events.close()
        if self._bucket:
            self._copy(self._bucket)
            self._folder.rmtree()
