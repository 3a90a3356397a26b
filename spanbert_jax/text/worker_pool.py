"""Processes that read, split and tokenise, and what they run.

Invariant: results come back in the order of the tasks, whatever the number of processes, and at most a few tasks a
process are under way at any time. Processes import spanbert_jax.text alone: no TensorFlow, no JAX.
"""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from spanbert_jax.errors import UserError
from spanbert_jax.text.packing import pack, serialize
from spanbert_jax.text.sentences import split_sentences
from spanbert_jax.text.tokenizer import Tokenizer

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_AHEAD = 3  # tasks under way, for each process


class Encoder(NamedTuple):
    """All that turns a document into blocks; sent to every process once."""

    tokenizer: Tokenizer
    language: str
    splitter: str
    max_pieces: int  # in a block, without [CLS] and [SEP]


class Encoded(NamedTuple):
    """The blocks of a few documents, in order."""

    records: dict[bool, list[bytes]]  # serialised tf.train.Examples; the key: are they held out?
    lengths: dict[bool, list[int]]  # pieces in each of them
    counts: dict[bool, np.ndarray]  # int64[3]: documents, sentences, pieces
    piece_counts: np.ndarray  # int64[vocab_size], of the documents that are not held out


class Workers:
    """A pool of processes; use as a context manager."""

    def __init__(self, count: int, encoder: Encoder | Callable[[Any], Any] | None = None) -> None:
        """Args: count: of processes, 0 for one a core; encoder: what `encode` uses, or the function of `call`."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.count = count or cores or 1
        self._pool = ProcessPoolExecutor(
            self.count, multiprocessing.get_context("spawn"), initializer=_start, initargs=(encoder,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """`function` of every task, in order; takes tasks only as results are taken. UserErrors come through."""
        under_way: collections.deque[Future[_Result]] = collections.deque()
        try:
            for task in tasks:
                with _no_main_module():
                    under_way.append(self._pool.submit(function, task))
                if len(under_way) >= _AHEAD * self.count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of the {self.count} processes that tokenise was killed, most likely for want of memory; "
                "try fewer: --config.corpus.workers=1"
            ) from error


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """A spawned process imports its parent's main module again, and with it JAX and TensorFlow, unless it has none."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_encoder: Encoder | Callable[[Any], Any] | None = None  # this process's


def _start(encoder: Encoder | Callable[[Any], Any] | None) -> None:
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its processes, and they would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def call(task: Any) -> Any:
    """What this process's function makes of a task; it was sent to the process once, whatever it holds."""
    assert callable(_encoder)
    return _encoder(task)


def encode(task: list[tuple[str, bool]]) -> Encoded:
    """`encode_documents` by this process's encoder."""
    assert isinstance(_encoder, Encoder)
    return encode_documents(_encoder, task)


def encode_documents(encoder: Encoder, task: list[tuple[str, bool]]) -> Encoded:
    """Blocks of a few documents, each (text, whether it is held out)."""
    tokenizer = encoder.tokenizer
    sentences = [split_sentences(text, encoder.language, encoder.splitter) for text, _ in task]
    pieces = iter(tokenizer.encode_batch([sentence for document in sentences for sentence in document]))
    records: dict[bool, list[bytes]] = {False: [], True: []}
    lengths: dict[bool, list[int]] = {False: [], True: []}
    counts = {side: np.zeros(3, dtype=np.int64) for side in records}
    seen: list[np.ndarray] = []
    for (_, held_out), document in zip(task, sentences, strict=True):
        blocks = [np.array(block) for block in pack((next(pieces) for _ in document), encoder.max_pieces)]
        records[held_out] += [serialize(block) for block in blocks]
        lengths[held_out] += map(len, blocks)
        counts[held_out] += (1, len(document), sum(map(len, blocks)))
        if not held_out:
            seen += blocks
    piece_counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *seen]), minlength=tokenizer.vocab_size)
    return Encoded(records, lengths, counts, piece_counts)
