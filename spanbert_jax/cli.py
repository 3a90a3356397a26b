"""How every command line of this project is parsed, and how it ends.

Invariant: a user's mistake and a full disk end in one line on stderr and exit status 1, without a traceback. A signal
that asks the program to stop ends in one line and STOPPED_EARLY (signals.py). This module imports no heavy library.
"""

import argparse
import io
import logging as python_logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from absl import logging

from spanbert_jax import signals
from spanbert_jax.errors import UserError
from spanbert_jax.files import full_disk
from spanbert_jax.signals import STOPPED_EARLY as STOPPED_EARLY
from spanbert_jax.text.lines import numbered_lines

if TYPE_CHECKING:
    from rich.text import Text


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help shows a module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def coloured_text(text: str) -> "Text":
    """A text for rich to colour, in which every character keeps its place. A space stands for each character that rich
    would leave out or, as a tab, replace by several."""
    from rich.text import Text

    return Text(text.translate(dict.fromkeys(b"\a\b\t\v\f\r", " ")))


def status(work: Callable[[], int | None]) -> int:
    """Does the work and returns the exit status: the result of `work` (0 for None), 1 after a user's mistake or a full
    disk, STOPPED_EARLY after a signal to stop."""
    logging.set_verbosity(logging.FATAL)  # Orbax logs 30 lines a checkpoint, and a traceback before it raises an error
    threading.excepthook = _Quiet.over(threading.excepthook)  # TensorBoard's writer raises in its thread as well
    sys.unraisablehook = _Quiet.over(sys.unraisablehook)  # a file that is closed at exit fails once more
    python_logging.getLogger("asyncio").addFilter(_is_worth_a_line)  # writes of Orbax that nobody waits for any more
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # the same, not even begun
    try:
        done = work() or 0
        sys.stdout.flush()
        return done
    except KeyboardInterrupt:
        return _stopped()
    except UserError as error:
        if _is_interrupt(error):
            return _stopped()
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of standard output, such as head, has all that it wants
        _drop_output()
        return 1
    except Exception as error:
        if _is_interrupt(error):
            return _stopped()
        line = full_disk(error)
        if not line:
            raise
        _drop_output()
        print(f"error: {line}", file=sys.stderr)
        return 1


def _stopped() -> int:
    """Says that the program was stopped; returns STOPPED_EARLY."""
    print("stopped; the same command goes on", file=sys.stderr, flush=True)
    return STOPPED_EARLY


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error came about while KeyboardInterrupt was raised, as when the clean-up or a library meets it."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def lines_of_standard_input() -> list[str]:
    """The lines of standard input that are not blank, without their ends (LF or CRLF). Raises UserError, naming the
    line, where it is not UTF-8, as `text.lines.numbered_lines`."""
    data = sys.stdin.buffer.read()
    raw: Any = io.BytesIO(data)
    lines = numbered_lines("standard input", raw, whole=data)
    return [line.rstrip("\r\n") for _, line in lines if line.strip()]


def two_numbers(option: str, given: str, between: str) -> tuple[int, int]:
    """The numbers of an option such as "--span 4:9", where `between` is ":". With "-", a single number stands for both.

    Raises UserError, naming the option, for anything else.
    """
    first, found, second = given.partition(between)
    second = second if found or between != "-" else first
    if not (first.isdecimal() and second.isdecimal()):
        raise UserError(f"{option} {given}: expected two numbers, such as 1{between}4")
    return int(first), int(second)


def _drop_output() -> None:
    """Discards the output that standard output cannot take, so that Python does not complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_worth_a_line(record: python_logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not signals.came() and (error is None or not full_disk(error))


class _Quiet:
    """A hook for exceptions in threads and destructors. It is silent about a full disk, which `status` reports once,
    and about all that a stop cuts off.

    Orbax closes its event loop at the first error, and each write that was under way then raises an error of its own.
    """

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    @classmethod
    def over(cls, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return hook if isinstance(hook, cls) else cls(hook)

    def __call__(self, late: Any) -> None:
        error = late.exc_value
        expected = error is not None and ("Event loop is closed" in str(error) or full_disk(error))
        if not (expected or signals.came()):
            self._hook(late)


def use_huge_pages() -> None:
    """Starts this program anew, once, with glibc's huge pages for large allocations.

    Does nothing where this has been done, where the user sets GLIBC_TUNABLES, and on systems other than Linux. glibc
    before version 2.35 ignores the setting.

    XLA allocates a step's temporaries anew at every step on a CPU, and the kernel maps and clears each page when the
    page is first touched. A step of `configs/tiny.py` has 28,800 page faults, and 450 with huge pages (docs/speed.md).
    glibc reads the variable when a process starts: setting it in `os.environ` alone changes nothing. The new start
    repeats the imports up to here, so commands import heavy libraries inside the functions that use them.
    """
    if sys.platform == "linux" and sys.executable and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # until the new start handles them
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run(main: Callable[[], int]) -> NoReturn:
    """The end of every command's file: starts the program in huge pages, handles signals (signals.py), and exits with
    the status that `main` returns. Only the program itself may call this function: the new start would end a test or a
    notebook."""
    use_huge_pages()
    status: str | int | None = STOPPED_EARLY
    try:
        signals.handle()
        status = main()
    except KeyboardInterrupt:  # before the work, as while the command line is read
        _stopped()
    except SystemExit as end:
        status = end.code
    signals.done(status if isinstance(status, int) else int(status is not None))
    sys.exit(status)
