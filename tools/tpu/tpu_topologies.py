"""TPUs to compile for without having any: the names that Google Cloud gives them, and what libtpu calls them.

Invariant: the devices described here hold no array; they are for `jit(...).lower(...).compile()` alone.
"""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from spanbert_jax.errors import UserError


class Topology(NamedTuple):
    """How libtpu describes it."""

    name: str
    chip: str = "default"
    host: tuple[int, int, int] = (2, 2, 1)  # chips of one host
    slices: int = 1


# A v4 or v5p is named by its TensorCores, of which a chip has two that work as one ("megacore").
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
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any: it only keeps libtpu from warning that it found none
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # by several processes; its lock is for those that use a TPU
}


def topology(name: str | None) -> Topology:
    """The topology of that name; raises UserError where there is none."""
    if name not in TOPOLOGIES:
        raise UserError(f"topology {name!r} is not known; choose from {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[name]


def one_chip(of: Topology) -> Topology:
    """A single chip of the same kind."""
    return Topology(re.sub(r"[0-9]+(?=x|$)", "1", of.name), of.chip, (1, 1, 1))


def compile_only_devices(of: Topology) -> list[jax.Device]:
    """Its devices. Raises UserError where libtpu is not installed."""
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
