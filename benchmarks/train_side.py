"""Our side of the train step, in a process of its own that needs no TensorFlow.

Invariant: the step is that of a run (training/step.py), over all devices, with its state donated. The step is compiled
before it is timed.
"""

import resource
import time

import jax
import numpy as np

from benchmarks.batches import VOCAB, make_batch, make_config
from benchmarks.worker import Handler, Json
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import sharding
from spanbert_jax.training.flops import peak_flops, pretraining_row_flops
from spanbert_jax.training.step import abstract_state, init_state, make_train_step

_BATCHES = 4  # that the steps take in turn
_AHEAD = 3  # steps dispatched and not yet finished, as in training/loop.py


class TrainStep:
    """The compiled step with its state and batches."""

    def __init__(self, spec: Json):
        """Makes the state, compiles the step and takes one. spec: as for `make_config`, but "batch" is rows on one
        device."""
        config = self.config = make_config({**spec, "batch": spec["batch"] * jax.device_count()})
        self.mesh = sharding.mesh_of(config)
        layout = sharding.batch_sharding(self.mesh)
        with jax.set_mesh(self.mesh):
            model = pretraining_heads.pretraining_model(config, VOCAB, jax.default_backend())
            abstract = abstract_state(config, lambda key: pretraining_heads.init_params(model, key), self.mesh)
            self.state = init_state(config, lambda key: pretraining_heads.init_params(model, key), abstract)
            self.batches = [jax.device_put(make_batch(config, seed), layout) for seed in range(_BATCHES)]
            began = time.monotonic()
            step = make_train_step(config, objective(model, 0), abstract)
            self.compiled = step.lower(self.state, self.batches[0]).compile()
            self.compile_seconds = time.monotonic() - began
        self.seconds(1)  # the very first step also allocates memory

    def seconds(self, steps: int) -> float:
        """The seconds that `steps` steps take together."""
        began = time.monotonic()
        in_flight: list[jax.Array] = []
        for number in range(steps):
            self.state, sums = self.compiled(self.state, self.batches[number % _BATCHES])
            in_flight.append(sums["mlm_loss"])
            if len(in_flight) > _AHEAD:
                in_flight.pop(0).block_until_ready()
        jax.block_until_ready(self.state)
        self.loss = float(sums["mlm_loss"] / sums["mlm_count"])
        return time.monotonic() - began

    def facts(self) -> Json:
        """The side's facts, as JSON: devices, sizes in bytes, FLOPs and the time of compiling."""
        device, memory = jax.devices()[0], self.compiled.memory_analysis()
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        return {
            "platform": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "jax": jax.__version__,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state["params"])),
            "row_flops": pretraining_row_flops(self.config, VOCAB, self.config.data.block_length),
            "peak_flops": peak_flops(device.device_kind),
            "compile_seconds": self.compile_seconds,
            "state_bytes": state_bytes,
            "batch_bytes": sum(leaf.nbytes for leaf in self.batches[0].values()),
            "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        }


def peak_bytes() -> int:
    """The peak memory so far, in bytes: the first device's, or on CPU the process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: as for `TrainStep`. A request {"steps": n} is answered with the seconds that n steps took, the peak memory
    and the last MLM loss."""
    step = TrainStep(spec)

    def run(request: Json) -> Json:
        seconds = step.seconds(request["steps"])
        if not np.isfinite(step.loss):
            raise FloatingPointError(f"the loss is {step.loss}")
        return {"seconds": seconds, "peak_bytes": peak_bytes(), "loss": step.loss}

    return step.facts(), run
