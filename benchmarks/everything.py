"""All subjects, one after another, each shortened to minutes on two cores or on one accelerator.

Invariant: a subject that cannot run here, because data or a library is missing, is named with the reason; the others
run.
"""

from collections.abc import Callable

from benchmarks import corpus, extensions, input, padding, save, start, step, window
from benchmarks.measure import Options, Result, SideFailed
from benchmarks.report import terminal
from spanbert_jax.errors import UserError

_MINUTES = 4.0  # that a sweep may take


def run(options: Options) -> list[Result]:
    """The subject `all`."""
    console = terminal()
    platform = step.probe()["platform"]

    def steps(size: str) -> Callable[[], list[Result]]:
        spec = {"size": size, "precision": None, "length": 512, "batch": None}
        free = ["attention", "unroll", "batch", "flags"]
        return lambda: step.run(spec, free, "", list(step.PEERS), _MINUTES, options)

    # For subjects whose rounds take half a minute and vary little.
    few = options._replace(rounds=min(options.rounds, 2))
    sizes = ("small", "base") if platform == "cpu" else ("base", "large")
    subjects: dict[str, Callable[[], list[Result]]] = {f"step, {size}": steps(size) for size in sizes}
    subjects |= {
        "padding": lambda: padding.run(options),
        "input": lambda: input.run(options),
        "corpus": lambda: corpus.run(few),
        "window": lambda: window.run(options),
        "extensions": lambda: extensions.run(options),
        "save": lambda: save.run(few),
        "start": lambda: start.run(options),
    }
    results: list[Result] = []
    for name, subject in subjects.items():
        try:
            results += subject()
        except (UserError, SideFailed) as error:
            console.print(f"{name}: left out: {error}", markup=False)
    if not results:
        raise UserError("nothing could be measured; the lines above say why")
    return results
