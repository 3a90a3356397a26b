"""Tells which devices JAX sees.

Invariant: the process ends before another side uses the devices.
"""

import jax

from benchmarks.worker import Handler, Json


def start(spec: Json) -> tuple[Json, Handler]:
    """Facts: the platform ("cpu", "gpu" or "tpu"), the kind and the number of devices, JAX's version. No request is
    needed."""
    device = jax.devices()[0]
    facts = {
        "platform": {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }
    return facts, lambda request: request
