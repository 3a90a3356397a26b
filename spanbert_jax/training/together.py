"""How the processes of a run wait for each other's work and agree on its result.

Invariant: where the work fails in one process, every process raises an error, so that none waits for a process that has
ended. A run of one process exchanges nothing. A request to stop is no failure: the lifeline brings it to every process.

Processes exchange texts over the lifeline and not by JAX's collectives, which need a compiled program, give up after 30
seconds at the first exchange on CPUs, and which no signal interrupts: one process may work for hours here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from spanbert_jax.errors import UserError
from spanbert_jax.training import lifeline

_LONGEST = 4096  # bytes of a text that processes exchange: of the longest path on Linux
_T = TypeVar("_T")


def together(task: str, work: Callable[[], _T], here: bool = True) -> _T:
    """Does the work where `here` is true, and waits for the other processes. Returns the result, None elsewhere.

    task: the work in words, for the message: "prepare the data". Raises UserError where another process failed.
    """
    result: Any = None
    failure: BaseException | None = None
    try:
        result = work() if here else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = error
    first, failed = lifeline.first_text("failed" if failure else "")
    if failed and failure is None:
        raise UserError(f"process {first} could not {task}; that process prints the reason")
    if failure is not None:
        raise failure
    return result


def decided(task: str, work: Callable[[], str]) -> str:
    """The text that the work returns in process 0, which alone does the work. task, errors: as for `together`."""
    return first_text(together(task, work, jax.process_index() == 0) or "")


def first_text(text: str) -> str:
    """The text of the first process whose text is not empty, in every process; "" where all are empty. A text is cut
    off after 4,096 bytes."""
    return lifeline.first_text(text.encode()[:_LONGEST].decode(errors="ignore"))[1]
