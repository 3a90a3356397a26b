"""A reader of files is fed with damaged ones: the outcome is a result or one bounded line, in bounded time and memory.

Invariant: `check` passes for a result and for a UserError of one line of at most `MOST_CHARS`. Nothing else passes.
"""

import contextlib
import random
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from spanbert_jax.errors import UserError
from tests.support.mutations import mutated

MOST_CHARS = 800
_DEEP = (b"[" * 10**5 + b"]" * 10**5, b'{"a":' * 10**5 + b"1" + b"}" * 10**5, b'{"data": [[' + b"[" * 10**5)
_SECONDS = 10  # of CPU for one input; the slowest sound one takes a hundredth
_MEMORY = 2**31  # bytes of address space beyond those that the process has


class Target(NamedTuple):
    """A reader with a small sound input."""

    files: Mapping[str, bytes]  # by name; each is damaged in turn
    read: Callable[[], object]  # reads them in the working directory; raises UserError
    beside: Mapping[str, bytes] = {}  # files that stay as they are


class TooSlow(BaseException):
    """A reader has taken more than its seconds."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raises TooSlow, or MemoryError, where the block takes more CPU or memory than any sound input."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def check(read: Callable[[], object]) -> str:
    """The message of the reader, or "" for a result."""
    try:
        with bounded():
            read()
    except UserError as error:
        message = str(error)
        assert message.isprintable() and 0 < len(message) <= MOST_CHARS, (len(message), message)
        return message
    return ""


def place(files: Mapping[str, bytes]) -> None:
    """Writes files into the working directory."""
    for name, data in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def fuzz(name: str, target: Target, inputs: int) -> int:
    """Reads the sound input and `inputs` damaged ones in the working directory, and in the place of JSON arrays and
    objects that are nested too deeply. Returns how many of the inputs were refused.

    A failure raises AssertionError with the damaged file, which belongs in `fuzz_kept.KEPT`.
    """
    place({**target.beside, **target.files})
    assert check(target.read) == "", "the sound input is refused"
    for file, sound in target.files.items():
        for data in _DEEP if sound.lstrip()[:1] in (b"{", b"[") else ():
            _refused(name, target, file, data)
    names, refused = sorted(target.files), 0
    for number in range(inputs):
        file = names[number % len(names)]
        data = mutated(target.files[file], random.Random(f"{name} {number}"))
        refused += _refused(f"{name}, input {number}", target, file, data)
    return refused


def _refused(name: str, target: Target, file: str, data: bytes) -> bool:
    """Whether the reader refuses the damaged file, which is sound again afterwards."""
    Path(file).write_bytes(data)
    try:
        return bool(check(target.read))
    except (Exception, TooSlow) as error:
        shown = data if len(data) < 3000 else data[:1500] + b" ... " + data[-1500:]
        raise AssertionError(f"{name}, {file}: {type(error).__name__}: {error}\n{shown!r}") from error
    finally:
        Path(file).write_bytes(target.files[file])
