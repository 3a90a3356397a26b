"""Tells which devices JAX sees.

Invariant: the process ends before another side uses the devices.
"""

from typing import Any

import jax


def start(spec: dict[str, Any]) -> tuple[dict[str, Any], Any]:
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
