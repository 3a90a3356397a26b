"""Fixtures of every test, and the settings of JAX for all of them.

Invariant: the cache of compiled programs belongs to one call of pytest. The call's workers and their processes share
the cache, and it is removed at the end, unless the caller named a cache with JAX_COMPILATION_CACHE_DIR.
"""

import atexit
import contextlib
import fcntl
import gc
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import spanbert_jax.tensorflow_settings  # noqa: F401 - before a test module imports TensorFlow, with Keras otherwise

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little. XLA compiles a train step in a quarter of the time that it takes at optimisation
# level 0 alone, if it also leaves out its newer emitter of fusions and makes one LLVM module of a program.
_FLAGS = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in _FLAGS))
# Hypothesis otherwise imports the plugins of installed libraries. Trio's registers a random generator, whose owner
# Hypothesis cannot see among the objects that `gc.freeze` hides, and the warning of that would fail the tests.
os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")
# Otherwise each process that a test starts would start itself anew for huge pages (spanbert_jax.cli).
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a worker has its parent's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax_cache_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# A shell that starts a command in the background has it ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tracing makes so many objects that Python's collector, which finds next to nothing, takes 8% of the CPU seconds.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    """Takes what the imports have made, which lives as long as the process, out of the collector's sight."""
    gc.freeze()


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; a test that asks for it skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def once_a_session(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], object]], tuple[Path, object]]:
    """make(name, work) -> (folder, result). One of the session's workers has called `work(folder)`, which filled the
    folder and returned the result, a JSON value. Tests read the folder and change nothing in it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, work: Callable[[Path], object]) -> tuple[Path, object]:
        folder = shared / f"once-{name}"
        with open(shared / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / f"once-{name}.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                (shared / f"once-{name}.json").write_text(json.dumps(work(folder)))
        return folder, json.loads((shared / f"once-{name}.json").read_text())

    return make


@pytest.fixture(scope="session")
def topics(once_a_session: Callable) -> Path:
    """A corpus: the Python documentation's topics, a document each, in one file."""
    from tests.support import runs

    return once_a_session("topics", lambda folder: runs.write_corpus(folder / "topics.txt"))[0] / "topics.txt"


@pytest.fixture(scope="session")
def finished(topics: Path, once_a_session: Callable) -> tuple[Path, str]:
    """The workdir of an uninterrupted pre-training run of 12 steps on `topics`, and the run's standard output."""
    from tests.support import runs

    folder, printed = once_a_session("finished", lambda folder: runs.call(folder / "run", corpus__files=topics).stdout)
    return folder / "run", str(printed)


@pytest.fixture(scope="session")
def longer(topics: Path, finished: tuple[Path, str], once_a_session: Callable) -> tuple[Path, dict[str, object]]:
    """The workdir of an uninterrupted run that is long enough to be stopped by a signal, and the run's fields. Its only
    checkpoint and its only evaluation are at the end, at step 60."""
    from tests.support import runs

    fields = {"corpus__files": topics, "data__dir": finished[0] / "data", "train__steps": 60, "train__eval_blocks": 16}
    fields |= {"train__checkpoint_every": 1000, "train__eval_every": 1000, "train__log_every": 5, "data__lengths": 1}
    folder, _ = once_a_session("longer", lambda folder: runs.call(folder / "run", **fields).stdout)
    return folder / "run", fields


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that records the events "opened" and "released" of the weights that runs in this process start from."""
    from spanbert_jax.runs import start_from

    events: list[str] = []
    open_weights = start_from.open_weights

    @contextlib.contextmanager
    def counted(path: Path) -> Iterator[object]:
        events.append("opened")
        with open_weights(path) as weights:
            yield weights
        events.append("released")

    monkeypatch.setattr(start_from, "open_weights", counted)
    return events
