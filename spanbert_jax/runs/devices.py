"""Whether a configuration fits the devices of this machine, before anything is prepared for it.

Invariant: only the configuration and the devices are asked, so the answer takes no time.
"""

import jax

from spanbert_jax.config import Config
from spanbert_jax.model.encoder import resolved
from spanbert_jax.training import sharding


def check_devices(config: Config) -> None:
    """Raises UserError where the mesh does not fit the devices or the model's sizes, or a kernel cannot run here."""
    sharding.mesh_of(config)
    resolved(config.compute, config.model, jax.default_backend())
