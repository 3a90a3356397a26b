"""TPUs to compile for without having any: Google Cloud's names for them, and libtpu's descriptions.

Invariant: the devices described here can hold no array; they serve `jit(...).lower(...).compile()` alone.
"""

import importlib.util
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from spanbert_jax.errors import UserError

if TYPE_CHECKING:
    import jax


class Topology(NamedTuple):
    """libtpu's description of a set of TPUs."""

    name: str
    chip: str = "default"
    host: tuple[int, int, int] = (2, 2, 1)  # chips of one host
    slices: int = 1


# The number in the name of a v4 or v5p counts TensorCores. A chip has two of them, which work as one ("megacore").
TOPOLOGIES = {
    "v5e-1": Topology("v5e:1x1", host=(1, 1, 1)),
    "v5e-16": Topology("v5e:4x4"),
    "v5e-256": Topology("v5e:16x16"),
    "2xv5e-256": Topology("v5e:16x16", slices=2),
    "v6e-16": Topology("v6e:4x4"),
    "v6e-256": Topology("v6e:16x16"),
    "v4-32": Topology("v4:2x2x4", "megacore"),
    "v5p-128": Topology("v5:4x4x4", "megacore"),
}

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a TPU VM's metadata server, which may not be there
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any type will do: without one libtpu warns
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once; the lock is for using a TPU
}


def topology(name: str | None) -> Topology:
    """The topology with Google Cloud's name `name`; raises UserError where TOPOLOGIES has none."""
    if name not in TOPOLOGIES:
        raise UserError(f"topology {name!r} is not known; choose from {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[name]


def one_chip(of: Topology) -> Topology:
    """A single chip of the same kind."""
    return Topology(re.sub(r"[0-9]+(?=x|$)", "1", of.name), of.chip, (1, 1, 1))


def compile_only_devices(of: Topology) -> "list[jax.Device]":
    """The devices of a topology; raises UserError where libtpu is not installed."""
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu, the compiler for TPUs, is not installed; pip install -r requirements-tpu.txt")
    os.environ |= _ENVIRONMENT
    described = topologies.get_topology_desc(
        platform="tpu",
        topology_name=of.name,
        chip_config_name=of.chip,
        chips_per_host_bounds=of.host,
        num_slices=of.slices,
    )
    return list(described.devices)
