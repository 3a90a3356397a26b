"""What makes a TPU's compiler run the reduction of gradients beside arithmetic.

Invariant: an option changes when something runs, never its value. Each was read from the program that it makes
(tools/compile_tpu.py): without them every all-reduce is one instruction that all else waits for.
"""

from jax.sharding import Mesh

# All-reduces of under a megabyte are sent together, larger ones by themselves: combined, as is the default, they wait
# for the last layer.
_APART = {"xla_enable_async_all_reduce": True, "xla_jf_crs_combiner_threshold_in_bytes": 1_000_000}
_BY_SPARSE_CORE = _APART | {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": True}
_FUSED_WITH_WORK = _APART | {
    "xla_tpu_arf_combiner_threshold_in_bytes": 1_000_000,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
_OPTIONS = {
    "TPU v5 lite": _FUSED_WITH_WORK,
    "TPU v5": _BY_SPARSE_CORE,
    "TPU v6 lite": _BY_SPARSE_CORE,
}


def overlap_options(mesh: Mesh) -> dict[str, bool | int] | None:
    """The `compiler_options` of `jax.jit` for a step on this mesh; None where there is nothing to overlap."""
    return _OPTIONS.get(mesh.devices.flat[0].device_kind) if mesh.shape["data"] > 1 else None
