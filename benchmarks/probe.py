"""Which devices JAX sees.

Invariant: it ends before anything else uses them.
"""

from typing import Any

import jax


def start(spec: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Answers nothing; the facts are all."""
    device = jax.devices()[0]
    facts = {
        "platform": {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }
    return facts, lambda request: request
