"""How long the training loop stands still for an asynchronous checkpoint.

Invariant: the time is that of the look for numbers that are not finite and of the call `Checkpoints.save`, with the
whole state after a step, while no earlier save is under way. Writing goes on in the background; the end of writing is
awaited before the next save, and is timed separately.
"""

import math
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Options, Result, Side, alternate, median, started
from benchmarks.step import ROWS, environment, probe
from benchmarks.worker import Handler, Json

_STEPS = 500  # between two saves


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: the keys of `make_config`, and "work" (the directory to write in). A request is answered with the seconds
    of a step ("step"), of the look alone ("looked"), of the look and the call ("still") and until all is written
    ("written"), and the bytes on disk."""
    import jax
    from etils import epath

    from benchmarks.train_side import TrainStep
    from spanbert_jax.training.checkpoint import Checkpoints
    from spanbert_jax.training.metadata import Metadata
    from spanbert_jax.training.step import all_finite

    step = TrainStep(spec)

    def run(request: Json) -> Json:
        with tempfile.TemporaryDirectory(dir=spec["work"]) as folder:
            checkpoints = Checkpoints(epath.Path(folder) / "checkpoints", step.config.train)
            seconds = step.seconds(1)
            jax.block_until_ready(step.state)
            bool(all_finite(step.state["params"]))  # compiles
            began = time.monotonic()
            bool(all_finite(step.state["params"]))
            looked = time.monotonic() - began
            checkpoints.save(1, step.state, Metadata("pretraining", 1, step.config))
            still = time.monotonic() - began
            checkpoints.close()
            written = time.monotonic() - began
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        return {"step": seconds, "looked": looked, "still": still, "written": written, "bytes": size}

    return step.facts(), run


def run(options: Options, size: str = "base") -> list[Result]:
    """The subject `save`."""
    facts = probe()
    platform = facts["platform"]
    spec = {
        "size": size,
        "dropout": "both" if platform == "cpu" else "hidden",
        "length": 512,
        "work": str(options.work),
    }
    spec |= {"batch": ROWS[platform][size], "precision": "fp32" if platform == "cpu" else "bf16"}
    options.work.mkdir(parents=True, exist_ok=True)
    with Side("save", spec, options.cores, environment("", platform)) as side:
        started({"ours": side}, f"Saving, {size}: compiling")
        answers = alternate({"ours": side}, options.rounds, {}, f"Saving, {size}")["ours"]
    step = median([answer["step"] for answer in answers])
    shares = [100 * answer["still"] / (_STEPS * step) for answer in answers]
    looked, still, written = (median([answer[name] for answer in answers]) for name in ("looked", "still", "written"))
    least = math.ceil(100 * still / step)  # steps between saves for which the loop stands still for 1% of the time
    size_on_disk = answers[0]["bytes"] / 1e9
    counted = (
        f"the loop stands still for {still:.2f} s, {looked:.3f} s of them to look at the parameters: under 1% with "
        f"{least} steps or more between saves; {size_on_disk:.2f} GB are on disk after {written:.1f} s; a step "
        f"of {spec['batch']} rows of 512 takes {step:.2f} s"
    )
    return [
        Result(
            f"asynchronous save, {size}: share of {_STEPS} steps",
            median(shares),
            "%",
            counted=counted,
            values={"ours": shares},
            details={"rounds": answers, **side.facts},
        )
    ]
