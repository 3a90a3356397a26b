"""Running the Pallas kernels on any machine, slowly, without a compiler for an accelerator.

Invariant: outside of `interpreted`, every kernel is compiled for the machine.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_INTERPRETED: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels that are traced in here are interpreted, forward and backward. A function that `jax.jit` traced before
    keeps its compiled kernels."""
    token = _INTERPRETED.set(True)
    try:
        yield
    finally:
        _INTERPRETED.reset(token)


def is_interpreted() -> bool:
    """Whether the kernels that are traced now are to be interpreted: the `interpret` of `pallas_call`."""
    return _INTERPRETED.get()
