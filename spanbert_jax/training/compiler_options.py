"""Options of XLA: a TPU runs the reduction of gradients beside arithmetic, and a GPU runs fewer kernels.

Invariant: an option changes when and where something is computed, and changes the results by rounding at most. The
effect of each option was read from the compiled program (tools/compile_tpu.py; on a GPU a trace). Without the options
every all-reduce of a TPU is one instruction that all others wait for. On a GPU a kernel of its own then adds every
gradient of a bias or a residual, since XLA wraps its products for Triton, which does not take these additions.
"""

from jax.sharding import Mesh

# All-reduces of under a megabyte are sent together, and larger ones by themselves. By default XLA combines the larger
# ones too, and the combined one waits for the last layer.
_APART = {"xla_enable_async_all_reduce": True, "xla_jf_crs_combiner_threshold_in_bytes": 1_000_000}
_BY_SPARSE_CORE = _APART | {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    "xla_tpu_sparse_core_all_reduce_offload_min_size_in_bytes": 8192,  # also a layer's biases, sent as one array
}
_FUSED_WITH_WORK = _APART | {
    "xla_tpu_arf_combiner_threshold_in_bytes": 1_000_000,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": True,  # such as the norms of the gradients
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
_OPTIONS = {
    "TPU v5 lite": _FUSED_WITH_WORK,
    "TPU v5": _BY_SPARSE_CORE,
    "TPU v6 lite": _BY_SPARSE_CORE,
}


# Without denormal numbers (ftz), which no gradient needs, an exponential is one instruction instead of four.
_ON_GPU: dict[str, bool | int] = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_ftz": True}


def step_options(mesh: Mesh) -> dict[str, bool | int] | None:
    """The `compiler_options` of `jax.jit` for a step on this mesh; None where the defaults serve."""
    device = mesh.devices.flat[0]
    if device.platform in ("gpu", "cuda"):
        return _ON_GPU
    return _OPTIONS.get(device.device_kind) if mesh.shape["data"] > 1 else None
