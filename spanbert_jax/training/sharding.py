"""The mesh of devices, and the part of the training state that each device holds.

Invariant: each parameter matches exactly one row of axes (`model.parameters`), and no mesh axis divides two of its
dimensions; anything else fails before the first step. The optimizer's moments are divided as their parameters are, and
over the data axis too where the configuration says so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spanbert_jax.config import MESH_AXES, Config, MeshConfig
from spanbert_jax.errors import UserError
from spanbert_jax.model.axes import AXES, BATCH_AXES
from spanbert_jax.model.parameters import parameter_axes


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, model) over `devices` (default: all). The size -1 takes the devices that are left.

    Raises UserError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed or (-1 not in sizes.values() and fixed != len(devices)):
        raise UserError(
            f"config.mesh {sizes} does not fit {len(devices)} devices; "
            "the sizes must multiply to that number (-1 takes what is left)"
        )
    data, fsdp, model = (len(devices) // fixed if size == -1 else size for size in sizes.values())
    return Mesh(arrange(devices, (data, fsdp, model)), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def arrange(devices: Sequence[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    """The devices as an array of `shape` (data, fsdp, model); the fastest links join neighbours along the last axes.

    TPU slices are joined by the data centre's network (DCN) alone and follow each other along the data axis. Other
    devices are in the order of their hosts, so the last axes stay within a host where they fit.

    Raises UserError where fsdp x model devices do not fit in a slice.
    """
    _, fsdp, model = shape
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    held = len(devices) // slices
    if held % (fsdp * model):
        raise UserError(
            f"config.mesh: fsdp {fsdp} x model {model} = {fsdp * model} devices do not fit in a slice of {held}, and "
            f"only the data axis goes from one of the {slices} slices to another; lower fsdp or model to a product "
            f"that divides {held}"
        )
    inside = (held // (fsdp * model), fsdp, model)
    return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: rows over the data and fsdp axes, every other dimension whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def mesh_of(config: Config) -> Mesh:
    """The mesh of a configuration over all devices.

    Raises UserError where it does not fit the devices, or the model's sizes or a microbatch do not spread evenly.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.accumulation, mesh)
    for name in ("heads", "mlp", "embed"):
        size, axis = getattr(config.model, name), AXES[name].parameter
        if axis and size % mesh.shape[axis]:
            raise UserError(
                f"config.model.{name} {size} is not divisible by the {mesh.shape[axis]} devices of config.mesh.{axis}; "
                "choose a number of devices that divides it"
            )
    return mesh


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises UserError where a microbatch does not spread evenly over the mesh's data and fsdp axes."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    unit = shards * accumulation
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        raise UserError(
            f"config.train.batch_size {batch_size} is not divisible by {shards} data shards x {accumulation} "
            f"microbatches; use {f'{below} or ' if below else ''}{above}"
        )


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh, family: str) -> PartitionSpec:
    """The mesh axes that divide the parameter at `path`.

    Raises UserError where the mesh does not divide a dimension evenly, and ValueError where no row or several rows name
    the parameter's axes, or the row does not suit `shape`.
    """
    logical = parameter_axes(path, family)
    if len(logical) != len(shape):
        raise ValueError(f"parameter {path} has shape {shape}, and the table names {len(logical)} axes")
    spec = [AXES[name].parameter if name else None for name in logical]
    used = [axis for axis in spec if axis]
    if len(set(used)) != len(used):
        raise ValueError(f"parameter {path}: two of its axes {logical} land on one mesh axis")
    for name, size, axis in zip(logical, shape, spec, strict=True):
        if axis and size % mesh.shape[axis]:
            raise UserError(
                f"parameter {path}: its {name} dimension {size} is not divisible by config.mesh.{axis} "
                f"{mesh.shape[axis]}; choose a mesh axis that divides it"
            )
    return PartitionSpec(*spec)


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def moment_spec(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of a parameter's moments: `spec`, with the first undivided dimension whose size fits divided
    over the data axis (ZeRO stage 1, Rajbhandari et al. 2019). `spec` itself where no dimension fits."""
    for dimension, (axis, size) in enumerate(zip(spec, shape, strict=True)):
        if (axis is None or mesh.shape[axis] == 1) and size % mesh.shape["data"] == 0:
            return PartitionSpec(*spec[:dimension], "data", *spec[dimension + 1 :])
    return spec


def parameter_specs(params: Mapping[str, Any], mesh: Mesh, family: str, moments: bool = False) -> Any:
    """The PartitionSpec of every leaf of abstract parameters; with `moments`, of the leaf's moments, divided over data
    too."""

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        found = parameter_spec(path_name(path), leaf.shape, mesh, family)
        return moment_spec(found, leaf.shape, mesh) if moments else found

    return jax.tree_util.tree_map_with_path(spec, params)


def state_shardings(state: Mapping[str, Any], mesh: Mesh, family: str, shard_optimizer: bool = False) -> Any:
    """The sharding of every leaf of an abstract {"params", "opt_state", "step"}. Leaves that are neither a parameter
    nor a moment of one are replicated.

    family: `config.model.family`. shard_optimizer: whether the moments are divided over the data axis too. Raises as
    `parameter_spec` does.
    """
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"])}

    def specs_of(moments: bool) -> dict[str, PartitionSpec]:
        return dict(zip(shapes, jax.tree.leaves(parameter_specs(state["params"], mesh, family, moments)), strict=True))

    params, moments = specs_of(False), specs_of(shard_optimizer)

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        group, *parts = path_name(path).split("/")
        suffixes = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((s for s in suffixes if shapes.get(s) == leaf.shape), None)
        specs = params if group == "params" else moments
        return NamedSharding(mesh, specs[name] if name else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, state)
