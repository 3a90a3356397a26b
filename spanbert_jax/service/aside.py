"""Work that the engine does not batch: one call at a time, in a thread of its own.

Invariant: no more than `most` calls are in flight. A call that was cancelled before its turn is never made.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from spanbert_jax.serving.engine import NOT_FINITE, ModelFailed
from spanbert_jax.serving.scheduler import Overloaded
from spanbert_jax.serving.slot_scores import NotFinite

_T = TypeVar("_T")


class Aside:
    """A thread with a queue."""

    def __init__(self, name: str, most: int = 32):
        """most: calls in flight."""
        self._thread = ThreadPoolExecutor(1, name)
        self._most, self._count = most, 0
        self._seconds = 1.0  # that the last call took

    async def run(self, function: Callable[[], _T]) -> _T:
        """The result of the function. Raises `Overloaded` where too many calls are waiting, and `ModelFailed`, as the
        engine does, where the function's error is `NotFinite`."""
        if self._count >= self._most:
            raise Overloaded(
                f"{self._count} requests are waiting; {self._most} are the most", self._count * self._seconds
            )
        loop = asyncio.get_running_loop()

        def timed() -> _T:
            begun = time.monotonic()
            try:
                return function()
            except NotFinite as error:  # it is no mistake of the request, and its message has a path of this machine
                raise ModelFailed(NOT_FINITE) from error
            finally:
                self._seconds = time.monotonic() - begun

        def over(_: "Future[_T]") -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._over)

        self._count += 1
        future = self._thread.submit(timed)
        future.add_done_callback(over)
        return await asyncio.wrap_future(future)

    def _over(self) -> None:
        self._count -= 1

    def close(self) -> None:
        """Waits for the call that runs, and makes no other."""
        self._thread.shutdown(cancel_futures=True)
